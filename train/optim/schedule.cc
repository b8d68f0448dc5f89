#include "train/optim/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "dropless/error.h"

namespace dropless::train {

namespace {

Time batches_at(const YamlMap& map, const char* key, const std::optional<Time>& fallback) {
  const Time time = map.time(key, fallback);
  if (time.unit == TimeUnit::kSecond) {
    map.fail(key, time.str() + " is not a number of batches", "use ba, ep, sp, tok or dur");
  }
  return time;
}

// The run may be made longer later, which must not move these times: no fractions of its length.
void read_inverse_sqrt(const YamlMap& map, ScheduleConfig& config) {
  for (const auto& [key, time] :
       {std::pair("t_scale", &config.t_scale), std::pair("t_cooldown", &config.t_cooldown)}) {
    *time = batches_at(map, key, std::nullopt);
  }
  for (const auto& [key, time] :
       {std::pair("t_warmup", config.t_warmup), std::pair("t_scale", config.t_scale),
        std::pair("t_cooldown", config.t_cooldown)}) {
    if (time.unit == TimeUnit::kDuration) {
      map.fail(key, std::string(key) + " cannot be a fraction of max_duration",
               "use ba, ep, sp or tok");
    }
  }
  if (config.t_scale.value <= 0) map.fail("t_scale", "must be above 0");
  config.alpha_f_decay = map.non_negative<double>("alpha_f_decay", config.alpha_f_decay);
  config.alpha_f_cooldown = map.non_negative<double>("alpha_f_cooldown", config.alpha_f_cooldown);
  if (config.alpha_f_decay < config.alpha_f_cooldown) {
    map.fail("alpha_f_cooldown", "alpha_f_cooldown is above alpha_f_decay",
             "the rate only falls after its warm-up");
  }
}

}  // namespace

ScheduleConfig ScheduleConfig::from_yaml(const YamlMap& map) {
  ScheduleConfig config;
  const std::string name = map.get<std::string>("name");
  if (name == "cosine_with_warmup") {
    config.type = ScheduleType::kCosine;
  } else if (name == "linear_decay_with_warmup") {
    config.type = ScheduleType::kLinear;
  } else if (name == "constant_with_warmup") {
    config.type = ScheduleType::kConstant;
  } else if (name == "inv_sqrt_with_warmup") {
    config.type = ScheduleType::kInverseSqrt;
  } else {
    map.fail("name", "unknown scheduler " + name,
             "one of: cosine_with_warmup, linear_decay_with_warmup, constant_with_warmup, "
             "inv_sqrt_with_warmup");
  }
  config.t_warmup = batches_at(map, "t_warmup", config.t_warmup);
  config.t_max = batches_at(map, "t_max", config.t_max);
  if (config.type == ScheduleType::kInverseSqrt) {
    read_inverse_sqrt(map, config);
  } else {
    config.alpha_f = map.non_negative<double>("alpha_f", config.alpha_f);
  }
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
    : config_(config),
      warmup_(length.batches(config.t_warmup)),
      max_(length.batches(config.t_max)),
      scale_(length.batches(config.t_scale)),
      cooldown_(length.batches(config.t_cooldown)) {
  const bool decays = config.type == ScheduleType::kCosine || config.type == ScheduleType::kLinear;
  // The last batch may be a part of one, as max_batches counts it.
  const auto run = static_cast<double>(length.max_batches);
  if (decays && std::ceil(max_) < run) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("t_max {} ({:g} batches) is below max_duration ({:g} batches): the "
                            "schedule says nothing of the rest",
                            config.t_max.str(), max_, run),
                "leave t_max out (1dur), or make it at least max_duration");
  }
  if (warmup_ > 0 && warmup_ >= run) {
    short_run_ = fmt::format(
        "the run ends during the warm-up of {} ({:g} batches): after its {:g} batches the learning "
        "rate is still below optimizer.lr",
        config.t_warmup.str(), warmup_, run);
  }
}

double Schedule::multiplier(std::int64_t batches_done) const {
  const double t = static_cast<double>(batches_done);
  if (t < warmup_) return t / warmup_;
  // Composer's value where there is no time to decay in.
  const double tau = max_ > warmup_ ? std::min(1.0, (t - warmup_) / (max_ - warmup_)) : 0.0;
  const double alpha = config_.alpha_f;
  switch (config_.type) {
    case ScheduleType::kConstant:
      return 1.0;
    case ScheduleType::kLinear:
      return 1.0 + tau * (alpha - 1.0);
    case ScheduleType::kCosine:
      return alpha + (1.0 - alpha) * 0.5 * (1.0 + std::cos(std::numbers::pi * tau));
    case ScheduleType::kInverseSqrt:
      break;
  }
  const auto decayed = [&](double time) {
    const double floor = config_.alpha_f_decay;
    return floor + (1.0 - floor) * std::sqrt(scale_ / (time - warmup_ + scale_));
  };
  const double cooldown_from = std::max(warmup_, max_ - cooldown_);
  if (t < cooldown_from || cooldown_ == 0) return decayed(std::min(t, cooldown_from));
  const double fraction = std::min(1.0, (t - cooldown_from) / cooldown_);
  const double from = decayed(cooldown_from);
  return from + fraction * (config_.alpha_f_cooldown - from);
}

}  // namespace dropless::train
