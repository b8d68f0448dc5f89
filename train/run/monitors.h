// Composer's speed_monitor and runtime_estimator, and LLM Foundry's mbmoe_tok_per_expert: what they
// add to the figures of metrics.jsonl that are always there.
#pragma once

#include <cstdint>
#include <optional>

#include "train/base/yaml.h"

namespace dropless::train {

struct SpeedMonitorConfig {
  double peak_flops = 0;       // gpu_flops_available; 0: the device's own, where it is known
  double unit_seconds = 3600;  // of time/train, time/val and time/total

  static SpeedMonitorConfig from_yaml(const YamlMap& map);
};

struct RuntimeEstimatorConfig {
  std::int64_t skip_batches = 1;
  double unit_seconds = 3600;

  static RuntimeEstimatorConfig from_yaml(const YamlMap& map);
};

// The time to the run's end: the mean time of a batch since the first `skip_batches` of this
// process, saves included, times the batches to come, and as many evaluations as those so far
// foretell, each of their mean time (but for the first, where there are more).
class RuntimeEstimator {
 public:
  RuntimeEstimator(const RuntimeEstimatorConfig& config, std::int64_t max_batches)
      : config_(config), max_batches_(max_batches), skip_(config.skip_batches) {}

  // `done` batches of the run; `now`: seconds of any steady clock.
  void batch_begins(std::int64_t done, double now);
  std::optional<double> batch_ended(std::int64_t done, double now);  // in units; nullopt: too early
  void evaluated(std::int64_t done, double seconds);

 private:
  RuntimeEstimatorConfig config_;
  std::int64_t max_batches_, skip_;
  std::optional<std::int64_t> first_;  // batches done when the clock was started
  double start_ = 0;
  std::int64_t evaluations_ = 0, last_evaluated_ = 0;
  double evaluating_ = 0, first_evaluation_ = 0;
};

struct ExpertMonitorConfig {
  std::int64_t log_interval = 10;
  bool log_every_layer = false;
  bool normalize = true;  // false: tokens are counted, not their share

  static ExpertMonitorConfig from_yaml(const YamlMap& map);
};

}  // namespace dropless::train
