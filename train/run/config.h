// The whole training config: composes the parts' own Configs out of one LLM-Foundry-style YAML
// file. Keys and defaults are LLM Foundry's (TrainConfig); `device` and `ffn_config.backend` are
// ours.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "train/base/time.h"
#include "train/base/yaml.h"
#include "train/data/loader.h"
#include "train/icl/suite.h"
#include "train/nn/model_config.h"
#include "train/nn/precision_config.h"
#include "train/optim/clip_config.h"
#include "train/optim/optimizer_config.h"
#include "train/optim/schedule.h"
#include "train/run/callback_config.h"
#include "train/run/interval.h"
#include "train/run/profiler_config.h"

namespace dropless::train {

// What a resume by load_path leaves out, by load_ignore_keys: it begins anew.
struct IgnoredState {
  bool optimizer = false;  // state/optimizers
  bool data = false;       // state/dataset_state: the position
  bool rng = false;
};

struct TrainConfig {
  explicit TrainConfig(YamlMap root) : source(std::move(root)) {}

  YamlMap source;  // the document's root: the places of what only shows later to be wrong
  // The resolved document, whose `model` block stands without other files: what checkpoints keep.
  std::string yaml;

  std::string run_name;
  std::uint64_t seed = 17;
  std::string device = "auto";
  Precision precision = Precision::kAmpBf16;
  std::int64_t max_seq_len = 0;
  Time max_duration;
  std::int64_t global_train_batch_size = 0;       // samples an optimiser step
  std::int64_t device_train_microbatch_size = 0;  // 0 (auto): what fits, from the whole batch down
  std::int64_t device_eval_batch_size = 0;

  ModelConfig model;
  std::string pretrained;  // hf_causal_lm's folder, where training starts from its weights
  std::string tokenizer;
  OptimizerConfig optimizer;
  ScheduleConfig scheduler;
  std::optional<ClipConfig> clip;
  bool activation_checkpointing = false;  // fsdp_config's
  // Updates in a row that are left out because loss or gradients are not finite, before that stops
  // the run.
  std::int64_t skip_nonfinite_steps = 0;
  TextDatasetConfig train_loader;
  std::vector<TextDatasetConfig> eval_loaders;
  TaskSuite tasks;  // evaluated with the loaders

  Interval eval_interval{1, TimeUnit::kEpoch};
  std::int64_t eval_subset_num_batches = -1;
  bool eval_first = false;

  std::string save_folder;  // the run folder: `save_folder`, else runs/<run_name or timestamp>
  Interval save_interval{1000, TimeUnit::kBatch};
  int save_num_checkpoints_to_keep = -1;
  bool save_overwrite = false;
  std::string load_path;
  bool load_weights_only = false;
  bool load_strict_model_weights = true;      // false: missing and surplus tensors are warnings
  std::vector<std::string> load_ignore_keys;  // patterns of tensors that are not loaded
  IgnoredState load_ignored;
  bool save_weights_only = false;
  bool save_async = false;
  bool autoresume = false;

  CallbackConfig callbacks;
  std::optional<ProfilerConfig> profiler;

  bool progress_bar = true;
  bool log_to_console = true;

  // Samples a forward pass, of `auto` the first that is tried.
  std::int64_t microbatch_samples() const;
  // The path of eval_loaders[i]'s data set in `source`.
  std::string eval_dataset_path(std::size_t i) const;

  // Reads the document and refuses what it does not know. Throws Error(kInvalidArgument).
  static TrainConfig from_yaml(const YamlDocument& document);
};

// Throws Error(kInvalidArgument) where the device, a GPU or the CPU, has no kernels of the config's
// precision.
void check_precision(const TrainConfig& config, bool on_gpu);

// The tokenizer's name out of its block (`{name: bytes}`), for checkpoints too.
std::string tokenizer_from_yaml(const YamlMap& map);

}  // namespace dropless::train
