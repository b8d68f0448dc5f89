// What watches the figures of metrics.jsonl as they come and may end a run: LLM Foundry's callbacks
// early_stopper and kill_loss_spike.
#pragma once

#include <cstdint>
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "train/base/time.h"
#include "train/base/yaml.h"

namespace dropless::train {

class Watcher {
 public:
  virtual ~Watcher() = default;
  // One line of metrics.jsonl. Throws Error to stop the run as failed.
  virtual void take(const nlohmann::ordered_json& line) = 0;
  // Why the run should stop as done; empty as long as it should go on.
  virtual std::string stop_reason() const { return {}; }
  // Its memory, for checkpoints: a resumed run stops where the straight one would.
  virtual nlohmann::json record() const = 0;
  // Throws nlohmann::json::exception where that is not what record() gave.
  virtual void reload(const nlohmann::json& record) = 0;
};

// callbacks.early_stopper (Composer's keys): stops when `monitor` of the loader `dataloader_label`
// (train, eval, or an eval loader's label) has not improved by more than `min_delta` for longer
// than `patience` (ep or ba). Lower is better for a metric whose name holds loss, error, perplexity
// or CrossEntropy, else higher; Composer takes LanguageCrossEntropy for one to be raised.
struct EarlyStopperConfig {
  std::string key;  // of metrics.jsonl
  bool of_training = false;
  bool lower_is_better = true;
  double min_delta = 0;
  Time patience{1, TimeUnit::kEpoch};

  // `eval_labels`: of the eval loaders, "" for one without. Throws Error(kInvalidArgument).
  static EarlyStopperConfig from_yaml(const YamlMap& map,
                                      const std::vector<std::string>& eval_labels);
};

class EarlyStopper : public Watcher {
 public:
  explicit EarlyStopper(EarlyStopperConfig config) : config_(std::move(config)) {}
  void take(const nlohmann::ordered_json& line) override;
  std::string stop_reason() const override;
  nlohmann::json record() const override;
  void reload(const nlohmann::json& record) override;

 private:
  void compare(double value);
  std::int64_t waited() const;

  EarlyStopperConfig config_;
  std::int64_t step_ = 0, epoch_ = 0;  // of the last line that had them
  std::optional<double> best_;
  std::int64_t best_step_ = 0, best_epoch_ = 0;
  std::int64_t compared_epoch_ = 0;  // of the last comparison
  // A training metric with a patience in epochs is compared by its mean over each epoch.
  double epoch_sum_ = 0;
  std::int64_t epoch_steps_ = 0;
};

// callbacks.kill_loss_spike (LLM Foundry's keys and rules). Against the mean of the last
// `window_size` total losses: more than `patience` losses in a row of at least `outlier_multiplier`
// times it are a spike; from step 2 window_size on, half a window above `loss_cap` is a persistently
// high loss. log_only warns, once for each; else the run fails with Error(kNonFinite).
struct LossSpikeConfig {
  bool log_only = true;
  std::int64_t patience = 4;
  double outlier_multiplier = 2;
  std::int64_t window_size = 100;
  double loss_cap = 10;

  static LossSpikeConfig from_yaml(const YamlMap& map);
};

class LossSpikeWatcher : public Watcher {
 public:
  explicit LossSpikeWatcher(const LossSpikeConfig& config) : config_(config) {}
  void take(const nlohmann::ordered_json& line) override;
  nlohmann::json record() const override;
  void reload(const nlohmann::json& record) override;

 private:
  void found(bool& warned, const std::string& what);

  LossSpikeConfig config_;
  std::deque<double> window_;
  std::int64_t outliers_ = 0;  // in a row
  bool spike_warned_ = false, high_warned_ = false;
};

}  // namespace dropless::train
