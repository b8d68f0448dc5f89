#include "train/run/monitors.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
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

// tokens_e * K / sum_e tokens_e: K / E each at perfect balance.
at::Tensor token_share(const at::Tensor& tokens_LE, std::int64_t top_k) {
  return tokens_LE / tokens_LE.sum(1, /*keepdim=*/true).clamp_min(1.0) * static_cast<double>(top_k);
}

void add_statistics(const at::Tensor& tpe, const std::string& prefix,
                    nlohmann::ordered_json& line) {
  line[prefix + "_min_tpe"] = tpe.min().item<double>();
  line[prefix + "_max_tpe"] = tpe.max().item<double>();
  line[prefix + "_median_tpe"] = tpe.median().item<double>();
  line[prefix + "_std_tpe"] = tpe.numel() > 1 ? tpe.std().item<double>() : 0.0;
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

void add_expert_figures(const at::Tensor& tokens_per_expert_LE, std::int64_t top_k,
                        const ExpertMonitorConfig& config, std::int64_t step,
                        nlohmann::ordered_json& line) {
  at::Tensor tpe_LE = tokens_per_expert_LE.to(at::kDouble);
  if (config.normalize) tpe_LE = token_share(tpe_LE, top_k);
  add_statistics(tpe_LE, "mb_moe/all_layers", line);
  if (!config.log_every_layer || step % config.log_interval != 0) return;
  for (std::int64_t layer = 0; layer < tpe_LE.size(0); ++layer) {
    add_statistics(tpe_LE[layer], fmt::format("mb_moe/layer{}", layer), line);
  }
}

double max_over_mean(const at::Tensor& tokens_per_expert_LE) {
  const at::Tensor share = token_share(tokens_per_expert_LE.to(at::kDouble), /*top_k=*/1);
  return (share.amax(1) * static_cast<double>(share.size(1))).mean().item<double>();
}

}  // namespace dropless::train
