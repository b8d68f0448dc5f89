// Learning-rate multipliers, LLM Foundry's formulas; evaluated before each batch.
//
//   warm-up:  t < t_warmup: t / t_warmup
//   cosine_with_warmup:       alpha_f + (1 - alpha_f) (1 + cos(pi tau)) / 2
//   linear_decay_with_warmup: 1 + tau (alpha_f - 1)
//   constant_with_warmup:     1
//   with tau = (t - t_warmup) / (t_max - t_warmup), at most 1, and 0 where t_max <= t_warmup
//   inv_sqrt_with_warmup:     a(t) = alpha_f_decay + (1 - alpha_f_decay) sqrt(t_scale / (t - t_warmup + t_scale))
//                             from t_c = max(t_warmup, t_max - t_cooldown) on, linearly from a(t_c)
//                             to alpha_f_cooldown within t_cooldown
#pragma once

#include <cstdint>
#include <string>

#include "train/base/time.h"
#include "train/base/yaml.h"

namespace dropless::train {

enum class ScheduleType { kCosine, kLinear, kConstant, kInverseSqrt };

struct ScheduleConfig {
  ScheduleType type = ScheduleType::kCosine;
  Time t_warmup{0, TimeUnit::kBatch};
  Time t_max{1, TimeUnit::kDuration};
  double alpha_f = 0.0;
  // inv_sqrt_with_warmup alone:
  Time t_scale{0, TimeUnit::kBatch}, t_cooldown{0, TimeUnit::kBatch};
  double alpha_f_decay = 0.0, alpha_f_cooldown = 0.0;

  // Reads the `scheduler` block. Throws Error(kInvalidArgument).
  static ScheduleConfig from_yaml(const YamlMap& map);
};

// A run's length and the sizes that turn every unit of Time into batches.
struct TrainingLength {
  std::int64_t max_batches = 0;
  std::int64_t batches_per_epoch = 0;
  std::int64_t samples_per_batch = 0;
  std::int64_t tokens_per_batch = 0;

  // Fractions of a batch are kept (a warm-up of 0.02dur may be 1.5 batches). Throws
  // Error(kInvalidArgument) for seconds, which are no number of batches.
  double batches(const Time& time) const;
};

class Schedule {
 public:
  // Throws Error(kInvalidArgument) where a decay's t_max is below the run's length.
  Schedule(const ScheduleConfig& config, const TrainingLength& length);
  // The factor on the configured learning rate for the batch after `batches_done` finished ones.
  double multiplier(std::int64_t batches_done) const;
  // What to warn of where the run ends before its warm-up does; else empty.
  const std::string& short_run() const { return short_run_; }

 private:
  ScheduleConfig config_;
  double warmup_, max_, scale_, cooldown_;  // in batches
  std::string short_run_;
};

}  // namespace dropless::train
