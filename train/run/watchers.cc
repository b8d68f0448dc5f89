#include "train/run/watchers.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <numeric>

#include "dropless/error.h"
#include "train/base/log.h"

namespace dropless::train {
namespace {

constexpr const char* kTotalLoss = "loss/train/total";

std::optional<double> number_at(const nlohmann::ordered_json& line, const std::string& key) {
  const auto found = line.find(key);
  if (found == line.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

bool sinks_as_it_improves(const std::string& metric) {
  std::string lower;
  for (const char c : metric) lower += static_cast<char>(std::tolower(c));
  for (const char* part : {"loss", "error", "perplexity", "crossentropy"}) {
    if (lower.find(part) != std::string::npos) return true;
  }
  return false;
}

// The key in metrics.jsonl of a metric's short name, or of one that is a key already.
std::string metric_key(const YamlMap& map, const std::string& monitor, const std::string& label,
                       const std::vector<std::string>& eval_labels) {
  constexpr const char* kKnown = "LanguageCrossEntropy or LanguagePerplexity";
  const bool is_language_metric =
      monitor == "LanguageCrossEntropy" || monitor == "LanguagePerplexity";
  if (label == "train") {
    if (monitor.starts_with("loss/train/")) return monitor;
    if (!is_language_metric) {
      map.fail("monitor", "there is no training metric " + monitor,
               std::string("one of: loss/train/total, loss/train/loss, ") + kKnown);
    }
    return "metrics/train/" + monitor;
  }
  if (!is_language_metric) map.fail("monitor", "there is no metric " + monitor, kKnown);
  const std::string name = label == "eval" ? "" : label;
  if (std::find(eval_labels.begin(), eval_labels.end(), name) == eval_labels.end()) {
    std::string labels = "one of: train";
    for (const std::string& known : eval_labels) labels += ", " + (known.empty() ? "eval" : known);
    map.fail("dataloader_label", "no loader is called " + label, labels);
  }
  return "metrics/eval/" + (name.empty() ? "" : name + "/") + monitor;
}

}  // namespace

EarlyStopperConfig EarlyStopperConfig::from_yaml(const YamlMap& map,
                                                 const std::vector<std::string>& eval_labels) {
  EarlyStopperConfig config;
  const auto monitor = map.get<std::string>("monitor");
  const auto label = map.get<std::string>("dataloader_label");
  config.key = metric_key(map, monitor, label, eval_labels);
  config.of_training = label == "train";
  config.lower_is_better = sinks_as_it_improves(monitor);
  config.min_delta = std::abs(map.get<double>("min_delta", 0.0));
  config.patience = map.time("patience", config.patience);
  if (config.patience.unit != TimeUnit::kEpoch && config.patience.unit != TimeUnit::kBatch) {
    map.fail("patience", "patience must be a number of ep or ba");
  }
  map.finish();
  return config;
}

void EarlyStopper::take(const nlohmann::ordered_json& line) {
  const auto epoch = number_at(line, "time/epoch");
  const bool epoch_is_over = epoch && static_cast<std::int64_t>(*epoch) > epoch_;
  const bool by_epoch = config_.of_training && config_.patience.unit == TimeUnit::kEpoch;
  if (by_epoch && epoch_is_over && epoch_steps_ > 0) {
    compare(epoch_sum_ / static_cast<double>(epoch_steps_));
    epoch_sum_ = 0;
    epoch_steps_ = 0;
  }
  if (const auto step = number_at(line, "step")) step_ = static_cast<std::int64_t>(*step);
  if (epoch) epoch_ = static_cast<std::int64_t>(*epoch);
  const auto value = number_at(line, config_.key);
  if (!value) return;
  if (by_epoch) {
    epoch_sum_ += *value;
    ++epoch_steps_;
  } else {
    compare(*value);
  }
}

void EarlyStopper::compare(double value) {
  compared_epoch_ = epoch_;
  const double gain = best_ ? (config_.lower_is_better ? *best_ - value : value - *best_) : 0;
  if (best_ && gain <= config_.min_delta) return;
  best_ = value;
  best_step_ = step_;
  best_epoch_ = epoch_;
}

std::int64_t EarlyStopper::waited() const {
  return config_.patience.unit == TimeUnit::kEpoch ? compared_epoch_ - best_epoch_
                                                   : step_ - best_step_;
}

std::string EarlyStopper::stop_reason() const {
  if (!best_ || static_cast<double>(waited()) <= config_.patience.value) return {};
  return fmt::format("early_stopper: {} has not improved on {:.6g} of step {} for more than {}",
                     config_.key, *best_, best_step_, config_.patience.str());
}

nlohmann::json EarlyStopper::record() const {
  return {{"best", best_ ? nlohmann::json(*best_) : nlohmann::json(nullptr)},
          {"best_step", best_step_},
          {"best_epoch", best_epoch_},
          {"epoch", epoch_},
          {"compared_epoch", compared_epoch_},
          {"epoch_sum", epoch_sum_},
          {"epoch_steps", epoch_steps_}};
}

void EarlyStopper::reload(const nlohmann::json& record) {
  best_.reset();
  if (!record.at("best").is_null()) best_ = record["best"].get<double>();
  best_step_ = record.at("best_step").get<std::int64_t>();
  best_epoch_ = record.at("best_epoch").get<std::int64_t>();
  epoch_ = record.at("epoch").get<std::int64_t>();
  compared_epoch_ = record.at("compared_epoch").get<std::int64_t>();
  epoch_sum_ = record.at("epoch_sum").get<double>();
  epoch_steps_ = record.at("epoch_steps").get<std::int64_t>();
}

LossSpikeConfig LossSpikeConfig::from_yaml(const YamlMap& map) {
  LossSpikeConfig config;
  config.log_only = map.get<bool>("log_only", config.log_only);
  config.patience = map.non_negative<std::int64_t>("patience", config.patience);
  config.outlier_multiplier = map.positive<double>("outlier_multiplier", config.outlier_multiplier);
  config.window_size = map.positive<std::int64_t>("window_size", config.window_size);
  if (constexpr std::int64_t kMost = 1'000'000; config.window_size > kMost) {
    map.fail("window_size", fmt::format("window_size {} is above {}", config.window_size, kMost));
  }
  config.loss_cap = map.positive<double>("loss_cap", config.loss_cap);
  map.finish();
  return config;
}

void LossSpikeWatcher::found(bool& warned, const std::string& what) {
  if (!config_.log_only) {
    throw Error(ErrorKind::kNonFinite, "kill_loss_spike: " + what,
                "lower optimizer.lr, or go on from an earlier checkpoint");
  }
  if (!warned) log_warning("kill_loss_spike: {}; a lower optimizer.lr may help", what);
  warned = true;
}

void LossSpikeWatcher::take(const nlohmann::ordered_json& line) {
  const auto loss = number_at(line, kTotalLoss);
  if (!loss) return;
  if (static_cast<std::int64_t>(window_.size()) == config_.window_size) {
    const double size = static_cast<double>(config_.window_size);
    const double mean = std::accumulate(window_.begin(), window_.end(), 0.0) / size;
    outliers_ = *loss >= mean * config_.outlier_multiplier ? outliers_ + 1 : 0;
    if (outliers_ == 0) spike_warned_ = false;
    if (outliers_ > config_.patience) {
      found(spike_warned_,
            fmt::format("{} losses in a row, the last {:.4g}, are at least {} times the "
                        "mean {:.4g} of the {} before",
                        outliers_, *loss, config_.outlier_multiplier, mean, config_.window_size));
    } else if (number_at(line, "step").value_or(0) >= 2 * size) {
      const auto high = std::count_if(window_.begin(), window_.end(),
                                      [&](double value) { return value > config_.loss_cap; });
      if (static_cast<double>(high) >= size / 2) {
        found(high_warned_, fmt::format("{} of the last {} losses are above loss_cap {}", high,
                                        config_.window_size, config_.loss_cap));
      }
    }
    window_.pop_front();
  }
  window_.push_back(*loss);
}

nlohmann::json LossSpikeWatcher::record() const {
  return {{"window", window_}, {"outliers", outliers_}};
}

void LossSpikeWatcher::reload(const nlohmann::json& record) {
  window_ = record.at("window").get<std::deque<double>>();
  // A window of another size than the config's begins anew.
  if (static_cast<std::int64_t>(window_.size()) > config_.window_size) window_.clear();
  outliers_ = record.at("outliers").get<std::int64_t>();
}

}  // namespace dropless::train
