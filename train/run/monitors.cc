#include "train/run/monitors.h"

#include <string>
#include <utility>

namespace dropless::train {
namespace {

double unit_seconds_at(const YamlMap& map) {
  const auto name = map.get<std::string>("time_unit", "hours");
  constexpr std::pair<const char*, double> kUnits[] = {
      {"seconds", 1}, {"minutes", 60}, {"hours", 3600}, {"days", 86400}};
  for (const auto& [unit, seconds] : kUnits) {
    if (name == unit) return seconds;
  }
  map.fail("time_unit", "unknown time_unit " + name, "one of: seconds, minutes, hours, days");
}

}  // namespace

SpeedMonitorConfig SpeedMonitorConfig::from_yaml(const YamlMap& map) {
  SpeedMonitorConfig config;
  map.no_effect("window_size", "throughput is logged of each step");
  config.peak_flops = map.find_positive<double>("gpu_flops_available").value_or(0);
  config.unit_seconds = unit_seconds_at(map);
  map.finish();
  return config;
}

RuntimeEstimatorConfig RuntimeEstimatorConfig::from_yaml(const YamlMap& map) {
  RuntimeEstimatorConfig config;
  config.skip_batches = map.non_negative<std::int64_t>("skip_batches", config.skip_batches);
  config.unit_seconds = unit_seconds_at(map);
  map.finish();
  return config;
}

void RuntimeEstimator::batch_begins(std::int64_t done, double now) {
  if (first_ || skip_ > 0) return;
  first_ = done;
  start_ = now;
}

std::optional<double> RuntimeEstimator::batch_ended(std::int64_t done, double now) {
  if (!first_) {
    --skip_;
    return std::nullopt;
  }
  const double elapsed = now - start_ - evaluating_;
  const double rate = elapsed / static_cast<double>(done - *first_);
  double remaining = rate * static_cast<double>(max_batches_ - done);
  if (evaluations_ > 0) {
    const auto count = static_cast<double>(evaluations_);
    const double each =
        evaluations_ > 1 ? (evaluating_ - first_evaluation_) / (count - 1) : evaluating_;
    const double all = count * static_cast<double>(max_batches_ - *first_) /
                       static_cast<double>(last_evaluated_ - *first_);
    remaining += each * (all - count);
  }
  return remaining / config_.unit_seconds;
}

void RuntimeEstimator::evaluated(std::int64_t done, double seconds) {
  if (!first_ || done <= *first_) return;
  if (++evaluations_ == 1) first_evaluation_ = seconds;
  evaluating_ += seconds;
  last_evaluated_ = done;
}

ExpertMonitorConfig ExpertMonitorConfig::from_yaml(const YamlMap& map) {
  ExpertMonitorConfig config;
  config.log_interval = map.positive<std::int64_t>("log_interval", config.log_interval);
  config.log_every_layer = map.get<bool>("log_every_layer", false);
  config.normalize = map.get<bool>("normalize", true);
  map.no_effect("all_reduce_stats", "there is one process");
  map.finish();
  return config;
}

}  // namespace dropless::train
