#include "train/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "dropless/error.h"

namespace dropless::train {

ScheduleConfig ScheduleConfig::from_yaml(const YamlMap& map) {
  ScheduleConfig config;
  const std::string name = map.get<std::string>("name");
  if (name == "cosine_with_warmup") {
    config.type = ScheduleType::kCosine;
  } else if (name == "linear_decay_with_warmup") {
    config.type = ScheduleType::kLinear;
  } else if (name == "constant_with_warmup") {
    config.type = ScheduleType::kConstant;
  } else {
    map.fail("name", "scheduler " + name + " is not supported by this version",
             "one of: cosine_with_warmup, linear_decay_with_warmup, constant_with_warmup");
  }
  config.t_warmup = map.time("t_warmup", config.t_warmup);
  config.t_max = map.time("t_max", config.t_max);
  config.alpha_f = map.non_negative<double>("alpha_f", config.alpha_f);
  if (config.type == ScheduleType::kConstant) {
    for (const char* key : {"t_max", "alpha_f"}) map.no_effect(key, "the rate stays where it is");
  }
  map.no_effect("scale_warmup", "there is no scale schedule ratio");
  map.finish();
  return config;
}

double TrainingLength::batches(const Time& time) const {
  switch (time.unit) {
    case TimeUnit::kBatch:
    case TimeUnit::kIteration:
      return time.value;
    case TimeUnit::kEpoch:
      return time.value * static_cast<double>(batches_per_epoch);
    case TimeUnit::kSample:
      return time.value / static_cast<double>(samples_per_batch);
    case TimeUnit::kToken:
      return time.value / static_cast<double>(tokens_per_batch);
    case TimeUnit::kDuration:
      return time.value * static_cast<double>(max_batches);
    case TimeUnit::kSecond:
      break;
  }
  throw Error(ErrorKind::kInvalidArgument, time.str() + " is not a number of batches",
              "use ba, ep, sp, tok or dur");
}

Schedule::Schedule(const ScheduleConfig& config, const TrainingLength& length)
    : type_(config.type),
      warmup_(length.batches(config.t_warmup)),
      max_(length.batches(config.t_max)),
      alpha_f_(config.alpha_f) {
  if (type_ != ScheduleType::kConstant && warmup_ >= max_) {
    throw Error(ErrorKind::kInvalidArgument, "scheduler: t_warmup (" + config.t_warmup.str() +
                                                 ") is not below t_max (" + config.t_max.str() +
                                                 ")");
  }
}

double Schedule::multiplier(std::int64_t batches_done) const {
  const double t = static_cast<double>(batches_done);
  if (t < warmup_) return t / warmup_;
  if (type_ == ScheduleType::kConstant) return 1.0;
  const double tau = std::min(1.0, (t - warmup_) / (max_ - warmup_));
  if (type_ == ScheduleType::kLinear) return 1.0 + tau * (alpha_f_ - 1.0);
  return alpha_f_ + (1.0 - alpha_f_) * 0.5 * (1.0 + std::cos(std::numbers::pi * tau));
}

}  // namespace dropless::train
