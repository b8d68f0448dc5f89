#include "train/run/config.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>

#include "dropless/error.h"
#include "train/bridge/device_name.h"
#include "train/run/hf_block.h"
#include "train/run/run_folder.h"

namespace dropless::train {
namespace {

// Rows, batches and what is read ahead are counted in 32 bits, so that no product overflows 64.
std::int64_t count_at(const YamlMap& map, const char* key,
                      std::optional<std::int64_t> fallback = std::nullopt) {
  const auto value = map.positive<std::int64_t>(key, fallback);
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (value > kMost) map.fail(key, fmt::format("{} is above {}", value, kMost));
  return value;
}

std::int64_t microbatch_at(const YamlMap& map, const char* key) {
  if (!map.has(key) || map.is_string(key)) {
    const std::string text = map.get<std::string>(key, "auto");
    if (text != "auto") {
      map.fail(key, std::string(key) + " is a number of samples or `auto`",
               "a number like 8, or auto");
    }
    return 0;
  }
  return map.positive<std::int64_t>(key);
}

void read_algorithms(const YamlMap& root, TrainConfig& config) {
  const auto algorithms = root.find_map("algorithms");
  if (!algorithms) return;
  if (const auto clip = algorithms->find_map("gradient_clipping")) {
    config.clip = ClipConfig::from_yaml(*clip);
  }
  algorithms->no_effect("low_precision_layernorm", "model.norm_type says how norms are computed");
  for (const char* name : {"alibi", "gated_linear_units"}) {
    algorithms->refuse(name, algorithms->has(name), "the model block has its own key for it");
  }
}

void read_loaders(const YamlMap& root, TrainConfig& config) {
  config.train_loader = TextDatasetConfig::from_yaml(root.map("train_loader"));
  if (!root.has("eval_loader")) {
    root.skip("eval_loader");
    return;
  }
  const std::vector<YamlMap> loaders = root.maps("eval_loader");
  for (const YamlMap& map : loaders) {
    TextDatasetConfig loader = TextDatasetConfig::from_yaml(map);
    if (loaders.size() > 1 && loader.label.empty()) {
      map.fail("label", "each of several eval loaders needs a label");
    }
    for (const TextDatasetConfig& other : config.eval_loaders) {
      if (other.label == loader.label)
        map.fail("label", "two eval loaders are called " + loader.label,
                 "their metrics are told apart by it: give each its own");
    }
    config.eval_loaders.push_back(std::move(loader));
  }
}

// What tells documents apart is needed where attention asks for it, and has no effect elsewhere.
void check_separators(const YamlMap& root, const TrainConfig& config) {
  const auto check = [&](const YamlMap& loader, const TextDatasetConfig& read) {
    const YamlMap dataset = loader.map("dataset");
    // A finetuning loader tells by itself.
    const bool separated = read.separator.has_value() || read.finetuning.has_value();
    if (read.separator && read.separator->id >= config.model.vocab_size) {
      dataset.fail(read.separator->begins ? "bos_token_id" : "eos_token_id",
                   fmt::format("no token has the id {}: model.vocab_size is {}", read.separator->id,
                               config.model.vocab_size),
                   "name the token that stands between documents");
    }
    if (config.model.attention.sequence_ids && !separated) {
      dataset.fail("", "attn_uses_sequence_id needs eos_token_id or bos_token_id",
                   "name the token that stands between documents");
    }
    if (config.model.attention.sequence_ids) return;
    for (const char* key : {"eos_token_id", "bos_token_id"}) {
      dataset.no_effect(key, "model.attn_config.attn_uses_sequence_id is off");
    }
  };
  check(root.map("train_loader"), config.train_loader);
  if (!root.has("eval_loader")) return;
  const std::vector<YamlMap> loaders = root.maps("eval_loader");
  for (std::size_t i = 0; i < loaders.size(); ++i) {
    check(loaders[i], config.eval_loaders[i]);
  }
}

// As in LLM Foundry on one device: a warning, and nothing is sharded; activation_checkpointing alone
// has an effect. A slip in a key is still said.
void read_fsdp(const YamlMap& root, TrainConfig& config) {
  root.no_effect("fsdp_config",
                 "there is one process, nothing is sharded; only activation_checkpointing counts");
  const auto block = root.find_map("fsdp_config");
  if (!block) return;
  const YamlMap fsdp = block->without_warnings();
  config.activation_checkpointing = fsdp.get<bool>("activation_checkpointing", false);
  for (const char* key : {"activation_checkpointing_reentrant",
                          "activation_cpu_offload",
                          "auto_wrap",
                          "backward_prefetch",
                          "backward_prefetch_limit",
                          "cpu_offload",
                          "data_parallel_replicate_degree",
                          "data_parallel_shard_degree",
                          "flatten_parameters",
                          "forward_prefetch",
                          "forward_prefetch_limit",
                          "ignored_modules",
                          "keep_low_precision_grads",
                          "limit_all_gathers",
                          "load_monolith_rank0_only",
                          "load_planner",
                          "mixed_precision",
                          "process_group",
                          "save_planner",
                          "sharded_ckpt_prefix_dir",
                          "sharding_strategy",
                          "state_dict_type",
                          "sync_module_states",
                          "te_checkpoint_wrapper",
                          "te_shard_fp8_weight",
                          "use_orig_params",
                          "verbose"}) {
    fsdp.no_effect(key, "there is one process, nothing is sharded");
  }
  fsdp.refuse("device_mesh", fsdp.has("device_mesh"), "LLM Foundry makes it by itself; remove it");
  fsdp.finish();
}

void accept_without_effect(const YamlMap& root) {
  root.skip("variables");
  for (const char* key : {"expandable_segments", "max_split_size_mb", "cuda_load_lazy"}) {
    root.no_effect(key, "libtorch's allocator is used as it comes");
  }
  root.no_effect("dist_timeout", "there is one process");
  for (const char* key : {"device_train_batch_size", "device_train_grad_accum", "n_gpus"}) {
    root.no_effect(key, "it follows from global_train_batch_size");
  }
  root.no_effect("accumulate_train_batch_on_tokens", "accumulation is always weighted by tokens");
  root.no_effect("python_log_level", "there is no Python");
  root.no_effect("log_config", "the resolved config is saved with every checkpoint");
  root.no_effect("save_filename", "checkpoints are called step-N");
  root.no_effect("save_latest_filename", "the newest checkpoint is called latest");
  root.no_effect("spin_dataloaders",
                 "loaders resume at the sample without reading what came before");
  root.no_effect("compile_config", "nothing is compiled at run time");
  root.no_effect("metadata", "it is not stored");
  root.no_effect("flatten_metadata", "it is not stored");
}

// Fields of LLM Foundry's TrainConfig that would change the run, or what is left of it.
void refuse_unsupported(const YamlMap& root) {
  root.refuse("eval_loaders", root.has("eval_loaders"), "give eval_loader a list");
  root.refuse("code_paths", root.has("code_paths"), "there is no Python to import");
  root.refuse("tp_config", root.has("tp_config"), "there is one process");
  root.refuse("only_hf_checkpoint", root.get<bool>("only_hf_checkpoint", false),
              "callbacks.hf_checkpointer writes beside the checkpoints");
  root.no_effect("only_composer_checkpoint", "checkpoints are this program's own");
  root.refuse("save_ignore_keys", root.has("save_ignore_keys"),
              "a checkpoint without a part cannot be resumed; save_weights_only leaves the "
              "optimizer out");
  root.refuse("train_subset_num_batches",
              root.get<std::int64_t>("train_subset_num_batches", -1) != -1,
              "max_duration ends a run early");
}

void read_batch_sizes(const YamlMap& root, TrainConfig& config) {
  config.max_seq_len = count_at(root, "max_seq_len");
  if (config.max_seq_len < 2)
    root.fail("max_seq_len", "max_seq_len must be at least 2",
              "each token predicts the next: one alone has nothing to learn");
  if (config.max_seq_len > config.model.max_seq_len && config.model.learned_pos_emb) {
    root.fail("max_seq_len",
              "max_seq_len " + std::to_string(config.max_seq_len) +
                  " is above the model's learned positions, " +
                  std::to_string(config.model.max_seq_len),
              "raise model.max_seq_len too, or lower max_seq_len");
  }
  if (config.max_seq_len > config.model.max_seq_len) {
    root.warn("max_seq_len",
              fmt::format("rows of {} tokens are longer than the {} of model.max_seq_len",
                          config.max_seq_len, config.model.max_seq_len));
  }
  config.global_train_batch_size = count_at(root, "global_train_batch_size");
  config.device_train_microbatch_size = microbatch_at(root, "device_train_microbatch_size");
  if (config.device_train_microbatch_size > config.global_train_batch_size) {
    root.warn("device_train_microbatch_size",
              fmt::format("{} is lowered to global_train_batch_size {}",
                          config.device_train_microbatch_size, config.global_train_batch_size));
    config.device_train_microbatch_size = config.global_train_batch_size;
  }
  // Which rows an eval_subset_num_batches evaluates hangs on it, so it is LLM Foundry's.
  const std::int64_t microbatch = config.device_train_microbatch_size;
  config.device_eval_batch_size =
      count_at(root, "device_eval_batch_size", microbatch > 0 ? microbatch : 1);
}

std::string read_run_folder(const YamlMap& root, const std::string& run_name) {
  if (run_name.find('/') != std::string::npos || run_name == "." || run_name == "..") {
    root.fail("run_name", "run_name '" + run_name + "' is a path",
              "it names a folder under runs/; save_folder takes a path");
  }
  const std::string save_folder = root.get<std::string>("save_folder", "");
  if (save_folder.starts_with('~')) {
    root.fail("save_folder", "save_folder " + save_folder + ": ~ is the shell's, not expanded here",
              "write the home folder out, or ./~ for a folder of that name");
  }
  return root.locate("save_folder", [&] { return RunFolder::name(save_folder, run_name); });
}

// Where the run's length in batches follows from the config alone, a schedule that does not cover it
// is refused before the data are opened.
void check_schedule(const YamlMap& root, const TrainConfig& config) {
  const ScheduleConfig& scheduler = config.scheduler;
  for (const Time* time : {&config.max_duration, &scheduler.t_warmup, &scheduler.t_max}) {
    if (time->unit == TimeUnit::kEpoch) return;
  }
  TrainingLength length;
  length.samples_per_batch = config.global_train_batch_size;
  length.tokens_per_batch = config.global_train_batch_size * config.max_seq_len;
  length.max_batches =
      static_cast<std::int64_t>(std::min(std::ceil(length.batches(config.max_duration)), 9e15));
  root.locate("scheduler.t_max", [&] { Schedule(scheduler, length); });
}

// Patterns of Composer's paths: with load_weights_only of tensors, else of what a resume can do
// without.
void read_ignored(const YamlMap& root, TrainConfig& config) {
  constexpr const char* kKey = "load_ignore_keys";
  if (!root.has(kKey)) return root.skip(kKey);
  for (const std::string& pattern : root.get<std::vector<std::string>>(kKey)) {
    const auto names = [&](const std::string& path) {
      return ::fnmatch(pattern.c_str(), path.c_str(), 0) == 0 ||
             ::fnmatch(pattern.c_str(), (path + "/a").c_str(), 0) == 0;
    };
    bool state = false;
    for (const auto& [path, ignored] :
         {std::pair("state/optimizers", &config.load_ignored.optimizer),
          std::pair("state/dataset_state", &config.load_ignored.data),
          std::pair("rng", &config.load_ignored.rng)}) {
      if (!names(path)) continue;
      state = *ignored = true;
    }
    const bool weights = names("state/model") || !state;
    if (weights) config.load_ignore_keys.push_back(pattern);
    if (!weights || config.load_weights_only || config.load_path.empty()) continue;
    root.fail(kKey, fmt::format("'{}' is nothing that a resume can do without", pattern),
              "state/optimizers, state/dataset_state and rng are; the weights only with "
              "load_weights_only: true, for the optimizer's memory is of all of them");
  }
}

void read_saving(const YamlMap& root, TrainConfig& config) {
  const char* run_name = std::getenv("RUN_NAME");
  config.run_name = root.find<std::string>("run_name").value_or(run_name ? run_name : "");
  config.save_folder = read_run_folder(root, config.run_name);
  config.save_interval = interval_from_yaml(root, "save_interval", config.save_interval);
  config.save_num_checkpoints_to_keep = root.get<int>("save_num_checkpoints_to_keep", -1);
  if (config.save_num_checkpoints_to_keep < -1 || config.save_num_checkpoints_to_keep == 0) {
    root.fail("save_num_checkpoints_to_keep",
              "save_num_checkpoints_to_keep is -1 (all) or at least 1");
  }
  config.save_overwrite = root.get<bool>("save_overwrite", false);
  config.load_path = root.get<std::string>("load_path", "");
  config.load_weights_only = root.get<bool>("load_weights_only", false);
  config.load_strict_model_weights = root.get<bool>("load_strict_model_weights", true);
  read_ignored(root, config);
  if (config.load_path.empty() && config.pretrained.empty()) {
    for (const char* key : {"load_weights_only", "load_strict_model_weights", "load_ignore_keys"}) {
      root.no_effect(key, "load_path names nothing");
    }
  } else if (!config.load_weights_only && !config.load_strict_model_weights) {
    root.fail("load_strict_model_weights", "the optimizer's memory is of all weights",
              "it goes with load_weights_only: true");
  }
  config.save_weights_only = root.get<bool>("save_weights_only", false);
  config.save_async = root.get<bool>("save_async", false);
  config.autoresume = root.get<bool>("autoresume", false);
  if (config.autoresume && config.save_overwrite) {
    root.fail("autoresume", "autoresume goes on with the run that save_overwrite would remove",
              "set one of the two to false");
  }
}

}  // namespace

std::int64_t TrainConfig::microbatch_samples() const {
  return device_train_microbatch_size > 0 ? device_train_microbatch_size : global_train_batch_size;
}

std::string TrainConfig::eval_dataset_path(std::size_t i) const {
  return source.is_sequence("eval_loader") ? fmt::format("eval_loader.{}.dataset", i)
                                           : "eval_loader.dataset";
}

void check_precision(const TrainConfig& config, bool on_gpu) {
  if (config.precision == Precision::kAmpFp16 && !on_gpu) {
    config.source.fail("precision", "precision amp_fp16 needs a GPU",
                       "use amp_bf16 or fp32 on a CPU");
  }
  if (config.precision == Precision::kFp64 && on_gpu) {
    config.source.fail("precision", "precision fp64 is for comparisons on a CPU",
                       "set device: cpu, or use fp32");
  }
}

namespace {

// Returns the block of mpt_causal_lm that is the same model, where another stands there; else nothing.
std::string read_model(const YamlMap& root, TrainConfig& config) {
  const YamlMap model = root.map("model");
  if (!is_hf_block(model)) {
    config.model = ModelConfig::from_yaml(model);
    return {};
  }
  const bool loads = !root.get<std::string>("load_path", "").empty();
  HfBlock hf = read_hf_block(model, loads);
  config.model = std::move(hf.model);
  config.pretrained = std::move(hf.weights);
  return hf.block;
}

}  // namespace

std::string tokenizer_from_yaml(const YamlMap& map) {
  const std::string name = map.get<std::string>("name");
  if (const auto arguments = map.find_map("kwargs")) {
    arguments->no_effect("model_max_length", "rows are cut to max_seq_len");
    for (const char* key : {"revision", "use_auth_token"}) {
      arguments->no_effect(key, "nothing is fetched");
    }
    arguments->no_effect("trust_remote_code", "there is no Python to run");
    arguments->no_effect("use_fast", "there is one implementation");
    arguments->finish();
  }
  map.finish();
  return name;
}

TrainConfig TrainConfig::from_yaml(const YamlDocument& document) {
  const YamlMap root = document.root();
  TrainConfig config(root);
  const auto seed = root.get<std::int64_t>("seed", 17);
  if (seed < 0) root.fail("seed", "seed must not be negative", "any from 0 to 2^63 - 1");
  config.seed = static_cast<std::uint64_t>(seed);
  config.device = root.get<std::string>("device", config.device);
  root.locate("device", [&] { parse_device_name(config.device); });
  config.precision = precision_from_yaml(root);
  if (config.device == "cpu") check_precision(config, /*on_gpu=*/false);
  const std::string block = read_model(root, config);
  config.tokenizer = tokenizer_from_yaml(root.map("tokenizer"));
  config.optimizer = OptimizerConfig::from_yaml(root.map("optimizer"));
  config.scheduler = ScheduleConfig::from_yaml(root.map("scheduler"));
  config.max_duration = root.time("max_duration");
  if (config.max_duration.unit == TimeUnit::kDuration ||
      config.max_duration.unit == TimeUnit::kSecond || config.max_duration.value <= 0) {
    root.fail("max_duration", "max_duration must be a positive number of ba, ep, sp or tok",
              "for example 1000ba, 1ep or 2e9tok; a run is not ended by the clock");
  }
  read_batch_sizes(root, config);
  check_schedule(root, config);
  read_loaders(root, config);
  check_separators(root, config);
  read_algorithms(root, config);
  config.eval_interval = interval_from_yaml(root, "eval_interval", config.eval_interval);
  config.eval_subset_num_batches = root.get<std::int64_t>("eval_subset_num_batches", -1);
  if (config.eval_subset_num_batches < -1 || config.eval_subset_num_batches == 0) {
    root.fail("eval_subset_num_batches", "eval_subset_num_batches is -1 (all) or at least 1");
  }
  config.eval_first = root.get<bool>("eval_first", false);
  config.tasks = TaskSuite::from_yaml(
      root, {.batch_size = config.device_eval_batch_size, .max_seq_len = config.max_seq_len});
  read_saving(root, config);
  if (config.model.lora && config.load_path.empty() && config.pretrained.empty()) {
    root.fail("model.peft_config",
              "adapters are trained beside a model, and nothing names one's weights",
              "give load_path");
  }
  std::vector<std::string> labels;
  for (const TextDatasetConfig& loader : config.eval_loaders) labels.push_back(loader.label);
  config.callbacks = CallbackConfig::from_yaml(root, config.model, config.run_name, labels);
  const auto& stopper = config.callbacks.early_stopper;
  if (stopper && stopper->key.starts_with("metrics/eval/") && config.eval_interval.value == 0) {
    root.map("callbacks")
        .no_effect("early_stopper", "eval_interval is 0, and it watches evaluations");
  }
  if (const auto wd_pct = config.callbacks.wd_pct) {
    config.optimizer.scale(config.callbacks.lr_scale, *wd_pct);
  }
  if (const auto profiler = root.find_map("profiler")) {
    config.profiler = ProfilerConfig::from_yaml(*profiler, config.run_name);
  }
  config.skip_nonfinite_steps = root.non_negative<std::int64_t>("skip_nonfinite_steps", 0);
  config.progress_bar = root.get<bool>("progress_bar", true);
  config.log_to_console = root.get<bool>("log_to_console", true);
  root.no_effect("console_log_interval", "the progress line keeps its own pace");
  read_fsdp(root, config);
  accept_without_effect(root);
  refuse_unsupported(root);
  root.finish();
  config.yaml = document.dump();
  if (!block.empty()) {
    // The folder may move; a checkpoint's config must go on saying what its weights are.
    const std::vector<std::string> model{"model=null", "model=" + block};
    config.yaml = YamlDocument::parse(config.yaml, "config", model).dump();
  }
  return config;
}

}  // namespace dropless::train
