#include "train/run/callback_config.h"

#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/convert/hf_config.h"
#include "train/convert/mpt_config.h"
#include "train/run/run_folder.h"

namespace dropless::train {
namespace {

SampleConfig read_generate(const YamlMap& map) {
  SampleConfig config;
  config.prompts = map.get<std::vector<std::string>>("prompts");
  if (config.prompts.empty()) map.fail("prompts", "prompts is empty");
  for (const std::string& prompt : config.prompts) {
    if (prompt.empty()) map.fail("prompts", "a prompt is empty");
  }
  config.interval = interval_from_yaml(map, "interval");
  GenerateOptions& options = config.options;
  options.max_new_tokens = map.positive<std::int64_t>("max_new_tokens", 64);
  // transformers samples only when told to.
  if (map.get<bool>("do_sample", false)) {
    options.temperature = map.positive<double>("temperature", 1.0);
    options.top_k = map.non_negative<std::int64_t>("top_k", 50);
    options.top_p = map.positive<double>("top_p", 1.0);
    if (options.top_p > 1)
      map.fail("top_p", fmt::format("{} is above 1", options.top_p), "1 is off");
    options.seed = static_cast<std::uint64_t>(map.non_negative<std::int64_t>("seed", 0));
  } else {
    options.temperature = 0;
    for (const char* key : {"temperature", "top_k", "top_p", "seed"}) {
      map.no_effect(key, "do_sample is false: the likeliest token is taken");
    }
  }
  map.locate("", [&] { options.check(); });
  map.no_effect("batch_size", "prompts are continued one by one");
  map.no_effect("use_cache", "keys and values are always cached");
  map.finish();
  return config;
}

// Now, not at the first export.
void choose_layout(const YamlMap& map, const ModelConfig& model, HfExportConfig& config) {
  try {
    hf_family_of(model, nullptr);
    return;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUnsupported) throw;
  }
  config.llm_foundry = true;
  try {
    make_mpt_config(model, "float32", nullptr);
  } catch (const Error& error) {
    map.fail("", error.what(), "take the callback out; checkpoints hold the model in any case");
  }
  map.warn("",
           "no class of transformers is this model: it is written for LLM Foundry, and "
           "transformers' own mpt class would read another model");
}

HfExportConfig read_hf_export(const YamlMap& map, const ModelConfig& model,
                              const std::string& run_name) {
  HfExportConfig config;
  const auto folder = map.get<std::string>("save_folder");
  map.locate("save_folder", [&] { config.save_folder = RunFolder::name(folder, run_name); });
  config.interval = interval_from_yaml(map, "save_interval");
  config.folder_name = map.get<std::string>("huggingface_folder_name", config.folder_name);
  if (config.folder_name.empty() || config.folder_name.find('/') != std::string::npos) {
    map.fail("huggingface_folder_name", "huggingface_folder_name is the name of one folder");
  }
  map.locate("huggingface_folder_name", [&] {
    check_variables(config.folder_name, {"{batch}", "{epoch}"});
  });
  const auto precision = map.get<std::string>("precision", "float32");
  if (precision == "bfloat16") config.dtype = DType::kBFloat16;
  if (precision == "float16") config.dtype = DType::kFloat16;
  if (config.dtype == DType::kFloat32 && precision != "float32") {
    map.fail("precision", "unknown precision " + precision, "one of: float32, bfloat16, float16");
  }
  config.overwrite = map.get<bool>("overwrite", true);
  map.refuse("mlflow_registered_model_name", map.has("mlflow_registered_model_name"),
             "there is no service to register with");
  map.no_effect("flatten_imports", "there is no Python to flatten");
  map.finish();
  if (!model.lora)
    choose_layout(map, model, config);  // the trainer knows what adapters stand beside
  return config;
}

std::optional<std::int64_t> read_optimizer_monitor(const YamlMap& map) {
  std::int64_t every = map.positive<std::int64_t>("batch_log_interval", 10);
  if (map.has("interval")) {
    const Time interval = map.time("interval", Time{});
    if (interval.unit != TimeUnit::kBatch || interval.value < 1) {
      map.fail("interval", "interval must be a number of ba");
    }
    every = static_cast<std::int64_t>(interval.value);
  }
  const bool metrics = map.get<bool>("log_optimizer_metrics", true);
  const bool only_global = map.get<bool>("only_global", false);
  map.finish();
  // The global gradient norm is logged anyway.
  return metrics && !only_global ? std::optional(every) : std::nullopt;
}

void read_monitors(const YamlMap& callbacks, const ModelConfig& model, CallbackConfig& config) {
  if (const auto map = callbacks.find_map("speed_monitor")) {
    config.speed_monitor = SpeedMonitorConfig::from_yaml(*map);
  }
  if (const auto map = callbacks.find_map("runtime_estimator")) {
    config.runtime_estimator = RuntimeEstimatorConfig::from_yaml(*map);
  }
  if (const auto map = callbacks.find_map("mbmoe_tok_per_expert")) {
    config.experts = ExpertMonitorConfig::from_yaml(*map);
    if (!model.moe()) callbacks.warn("mbmoe_tok_per_expert", "the model has no experts");
  }
  for (const char* name : {"lr_monitor", "memory_monitor"}) {
    callbacks.no_effect(name, "its figures are always in metrics.jsonl");
    const auto block = callbacks.find_map(name);
    if (!block) continue;
    const YamlMap map = block->without_warnings();
    if (std::string_view(name) == "memory_monitor") {
      for (const char* key : {"memory_keys", "dist_aggregate_batch_interval"}) {
        map.no_effect(key, "the figures are libtorch's");
      }
    }
    map.finish();
  }
}

void read_callbacks(const YamlMap& callbacks, const ModelConfig& model, const std::string& run_name,
                    const std::vector<std::string>& eval_labels, CallbackConfig& config) {
  if (const auto map = callbacks.find_map("early_stopper")) {
    config.early_stopper = EarlyStopperConfig::from_yaml(*map, eval_labels);
  }
  if (const auto map = callbacks.find_map("kill_loss_spike")) {
    config.kill_loss_spike = LossSpikeConfig::from_yaml(*map);
  }
  if (const auto map = callbacks.find_map("generate_callback"))
    config.generate = read_generate(*map);
  if (const auto map = callbacks.find_map("hf_checkpointer")) {
    config.hf_export = read_hf_export(*map, model, run_name);
  }
  if (const auto map = callbacks.find_map("layer_freezing")) {
    config.frozen_parameters = map->get<std::vector<std::string>>("layer_names");
    map->finish();
  }
  if (const auto map = callbacks.find_map("optimizer_monitor")) {
    config.monitor_interval = read_optimizer_monitor(*map);
  }
  if (const auto map = callbacks.find_map("global_lr_scaling")) {
    config.lr_scale = map->positive<double>("lr_scale");
    config.wd_pct = map->non_negative<double>("wd_pct", 0.0);
    map->finish();
  }
  read_monitors(callbacks, model, config);
  callbacks.no_effect("scheduled_gc", "there is no garbage collector");
  callbacks.no_effect("nan_monitor",
                      "a loss that is not finite always stops the run (skip_nonfinite_steps)");
  callbacks.no_effect("run_timeout", "the process ends with the training");
  for (const char* name : {"memory_snapshot", "oom_observer"}) {
    callbacks.no_effect(name, "an allocation that fails is reported with its size");
  }
  for (const char* name : {"env_logging", "eval_output_logging", "system_metrics_monitor",
                           "loss_perp_v_len", "fdiff_metrics"}) {
    callbacks.no_effect(name, "it only logs, and this version does not have it");
  }
  const std::pair<const char*, const char*> refused[] = {
      {"mono_checkpoint_saver", "checkpoints are whole; hf_checkpointer writes them elsewhere too"},
      {"load_checkpoint", "load_path loads one"},
      {"async_eval", "there is no service that evaluates; eval_interval does it here"},
      {"curriculum_learning",
       "train in stages: each run with a train_loader of its own, load_path"},
      {"dataset_swap", "train in stages: each run with a train_loader of its own, load_path"}};
  for (const auto& [name, way] : refused) callbacks.refuse(name, callbacks.has(name), way);
}

}  // namespace

std::string HfExportConfig::folder_of(std::int64_t step, std::int64_t epoch) const {
  std::string name = folder_name;
  for (const auto& [variable, value] :
       {std::pair{std::string("{batch}"), step}, {"{epoch}", epoch}}) {
    if (const auto at = name.find(variable); at != std::string::npos) {
      name.replace(at, variable.size(), std::to_string(value));
    }
  }
  return join_path(save_folder, name);
}

CallbackConfig CallbackConfig::from_yaml(const YamlMap& root, const ModelConfig& model,
                                         const std::string& run_name,
                                         const std::vector<std::string>& eval_labels) {
  CallbackConfig config;
  if (const auto callbacks = root.find_map("callbacks")) {
    read_callbacks(*callbacks, model, run_name, eval_labels, config);
  }
  const auto loggers = root.find_map("loggers");
  if (!loggers) return config;
  if (const auto map = loggers->find_map("tensorboard")) {
    config.tensorboard = true;
    map->no_effect("log_dir", "events are written to the run folder's tensorboard/");
    map->no_effect("flush_interval", "every line is written as it comes");
    map->no_effect("rank_zero_only", "there is one process");
    map->finish();
  }
  for (const char* name : {"wandb", "mlflow", "mosaicml", "inmemory"}) {
    loggers->no_effect(name, "metrics.jsonl in the run folder has every figure");
  }
  loggers->finish();
  return config;
}

}  // namespace dropless::train
