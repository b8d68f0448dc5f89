// The `callbacks` and `loggers` blocks of a config, with LLM Foundry's names and keys.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dropless/dtype.h"
#include "train/base/yaml.h"
#include "train/nn/model_config.h"
#include "train/run/generate_options.h"
#include "train/run/interval.h"
#include "train/run/monitors.h"
#include "train/run/watchers.h"

namespace dropless::train {

// callbacks.generate_callback: samples of a few prompts go to RUN/samples.jsonl every `interval`
// and at the end.
struct SampleConfig {
  std::vector<std::string> prompts;
  Interval interval;
  GenerateOptions options;
};

// callbacks.hf_checkpointer: a checkpoint is also written in Hugging Face's layout, every
// `interval` and at the end.
struct HfExportConfig {
  std::string save_folder;
  Interval interval;
  std::string folder_name = "ba{batch}";
  DType dtype = DType::kFloat32;
  // No family of transformers is the model: written in LLM Foundry's own layout, as LLM Foundry
  // does.
  bool llm_foundry = false;
  bool overwrite = true;

  // Of the export at this step.
  std::string folder_of(std::int64_t step, std::int64_t epoch) const;
};

struct CallbackConfig {
  std::optional<EarlyStopperConfig> early_stopper;
  std::optional<LossSpikeConfig> kill_loss_spike;
  std::optional<SampleConfig> generate;
  std::optional<HfExportConfig> hf_export;
  std::optional<SpeedMonitorConfig> speed_monitor;
  std::optional<RuntimeEstimatorConfig> runtime_estimator;
  ExpertMonitorConfig experts;                   // mbmoe_tok_per_expert
  std::vector<std::string> frozen_parameters;    // layer_freezing.layer_names
  std::optional<std::int64_t> monitor_interval;  // optimizer_monitor: every so many batches
  // global_lr_scaling: OptimizerConfig::scale's arguments.
  double lr_scale = 1;
  std::optional<double> wd_pct;  // absent: there is no such callback
  bool tensorboard = false;      // loggers.tensorboard

  // Reads both blocks out of the document's root. Throws Error(kInvalidArgument).
  static CallbackConfig from_yaml(const YamlMap& root, const ModelConfig& model,
                                  const std::string& run_name,
                                  const std::vector<std::string>& eval_labels);
};

}  // namespace dropless::train
