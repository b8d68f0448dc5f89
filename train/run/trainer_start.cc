// How a run begins: Trainer's constructor. What is wrong is found before the run folder is touched.
#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/base/suggest.h"
#include "train/bridge/device.h"
#include "train/checkpoint/checkpoint.h"
#include "train/convert/peft.h"
#include "train/run/memory.h"
#include "train/run/model_files.h"
#include "train/run/model_tokenizer.h"
#include "train/run/summary.h"
#include "train/run/task_evaluate.h"
#include "train/run/trainer.h"

namespace dropless::train {
namespace {

TrainingLength training_length(const TrainConfig& config, const TextLoader& loader) {
  TrainingLength length;
  length.batches_per_epoch = loader.batches_per_epoch();
  length.samples_per_batch = config.global_train_batch_size;
  length.tokens_per_batch = config.global_train_batch_size * config.max_seq_len;
  const double batches = std::ceil(length.batches(config.max_duration));
  constexpr double kMost = 9007199254740992.0;  // 2^53: beyond, a double does not count one by one
  if (batches > kMost) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("max_duration {} is {:.3g} batches, too many to count",
                            config.max_duration.str(), batches));
  }
  length.max_batches = static_cast<std::int64_t>(batches);
  return length;
}

// The key of a loader's data set, at `path`, that names what is not there; the block where none does.
std::string missing_folder(const YamlMap& source, const TextDatasetConfig& config,
                           const std::string& path) {
  const auto key_of = [&](const StreamConfig& stream, const std::string& at) -> std::string {
    if (!stream.remote.empty()) return "";
    const bool there = is_folder(stream.local);
    if (there && (stream.split.empty() || is_folder(join_path(stream.local, stream.split)))) {
      return "";
    }
    const std::string key = at + (there ? ".split" : ".local");
    // A stream takes over the block's.
    const std::string above = path + (there ? ".split" : ".local");
    return source.where(key) != source.where(at)       ? key
           : source.where(above) != source.where(path) ? above
                                                       : at;
  };
  for (const StreamConfig& stream : config.all_streams()) {
    const std::string at = stream.name.empty() ? path : path + ".streams." + stream.name;
    if (const std::string key = key_of(stream, at); !key.empty()) return key;
  }
  return path;
}

// Blames what names an absent folder, the loader's block, or the size of its batches where it opens with single
// samples.
std::unique_ptr<TextLoader> open_loader(const YamlMap& source, const TextDatasetConfig& config,
                                        const TextLoaderOptions& options, const std::string& path,
                                        const char* batch_key) {
  try {
    return std::make_unique<TextLoader>(config, options);
  } catch (const Error& error) {
    const ErrorKind kind = error.kind();
    if (kind != ErrorKind::kInvalidArgument && kind != ErrorKind::kUnsupported) throw;
    TextLoaderOptions single = options;
    single.batch_size = 1;
    bool opens = true;
    try {
      TextLoader(config, single);
    } catch (const Error&) {
      opens = false;
    }
    source.fail(opens ? batch_key : missing_folder(source, config, path), error.what(),
                error.hint());
  }
}

}  // namespace

Trainer::Trainer(TrainConfig config)
    : config_(std::move(config)),
      device_(config_.source.locate("device", [&] { return choose_device(config_.device); })) {
  const YamlMap& source = config_.source;
  check_precision(config_, device_.is_cuda());
  if (const MoELayerConfig* layer = config_.model.moe()) {
    source.locate("model.ffn_config.backend",
                  [&] { resolve_backend(*layer, compute_type(config_.precision), device_); });
  }
  source.locate("save_folder", [&] { RunFolder::check_name(config_.save_folder); });
  if (const auto& exports = config_.callbacks.hf_export) {
    source.locate("callbacks.hf_checkpointer.save_folder",
                  [&] { RunFolder::check_name(exports->save_folder); });
  }
  if (!config_.load_path.empty()) {
    source.locate("load_path", [&] { load_from_ = resolve_model(config_.load_path); });
  } else {
    load_from_ = config_.pretrained;
  }
  if (!load_from_.empty()) verify_model(load_from_);
  if (config_.model.lora && !load_from_.empty()) {
    const auto why = peft_obstacle(config_.model, read_origin_config(load_from_));
    if (why && config_.callbacks.hf_export) {
      source.fail("callbacks.hf_checkpointer", *why,
                  "take the callback out; `dropless convert --to hf` merges the run's checkpoints");
    }
    if (why) log_warning("convert --to peft will not take these adapters: {}", *why);
  }
  open_data();
  open_tasks();
  length_ = source.locate("max_duration", [&] { return training_length(config_, *train_loader_); });
  source.locate("scheduler.t_max", [&] { schedule_.emplace(config_.scheduler, length_); });
  require_free_exports();
  source.locate("model." + estimate_parameters(config_.model).cause, [&] {
    // Beside the frozen weights the adapters' gradients and moments are next to nothing.
    const double bytes = config_.model.lora
                             ? kWeightBytesPerParameter
                             : training_bytes_per_parameter(config_.optimizer, config_.precision);
    require_memory(config_.model, device_, bytes);
  });
  with_torch_errors("make the model smaller", [&] { build_model(); });
  const RunFolder::Policy policy{.overwrite = config_.save_overwrite,
                                 .resume = config_.autoresume,
                                 .keep = config_.save_num_checkpoints_to_keep};
  source.locate("save_folder", [&] { folder_.emplace(config_.save_folder, policy); });
  with_torch_errors("", [&] { restore(); });
  // Not before: what load_path names may stand in this folder, and a load that fails removes
  // nothing.
  if (step_ >= length_.max_batches) return;  // run() has nothing to do, and nothing is touched
  if (config_.save_overwrite) folder_->remove_old_run(started_from_);
  metrics_ = std::make_unique<StepLog>(metrics_path(folder_->path()), step_);
  if (config_.callbacks.generate) {
    samples_log_ = std::make_unique<StepLog>(samples_path(folder_->path()), step_);
  }
  if (config_.callbacks.tensorboard) {
    tensorboard_ =
        std::make_unique<TensorBoardWriter>(join_path(folder_->path(), "tensorboard"), step_ + 1);
  }
  saver_.emplace(folder_->path(), config_.save_async);
  warn_of_full_disk();
  report_ = std::make_unique<ReportWriter>(folder_->path(), config_.yaml, step_);
  if (config_.profiler) {
    profiler_ = std::make_unique<Profiler>(*config_.profiler, folder_->path(), device_, step_,
                                           length_.batches_per_epoch);
  }
}

// A save may be hours away. Only a warning: space may be freed until then.
void Trainer::warn_of_full_disk() const {
  const std::uint64_t needed =
      checkpoint_bytes(*model_, config_.save_weights_only ? nullptr : optimizer_.get());
  const std::uint64_t free = free_bytes(folder_->path());
  if (free >= needed) return;
  log_warning("{} has {} free and a checkpoint takes {}: the first save will fail", folder_->path(),
              format_bytes(static_cast<double>(free)), format_bytes(static_cast<double>(needed)));
}

void Trainer::open_data() {
  const YamlMap& source = config_.source;
  if (is_tokenizer(config_.tokenizer)) {
    tokenizer_ = source.locate("tokenizer.name", [&] { return make_tokenizer(config_.tokenizer); });
  } else {
    // LLM Foundry's files name tokenizers of the Hugging Face hub; stored token ids do without.
    if (const std::string nearest = nearest_word(config_.tokenizer, {"bytes"}); !nearest.empty()) {
      source.fail("tokenizer.name", fmt::format("tokenizer '{}' is not here", config_.tokenizer),
                  fmt::format("did you mean \"{}\"?", nearest));
    }
    log_warning("{}: tokenizer '{}' is not here: only sets of token ids can be read",
                source.where("tokenizer.name"), config_.tokenizer);
  }
  if (config_.callbacks.generate) {
    config_.callbacks.generate->options.ends_early = [] { return stop_signal() != 0; };
    if (!tokenizer_) {
      source.fail("callbacks.generate_callback", "prompts need the tokenizer",
                  "see the warning above");
    }
    config_.callbacks.generate->options.tokenizer = tokenizer_.get();
    require_positions(*config_.callbacks.generate);
  }
  if (tokenizer_ && tokenizer_->vocab_size() > config_.model.vocab_size) {
    source.fail("model.vocab_size",
                fmt::format("vocab_size {} is below the {} ids of tokenizer {}",
                            config_.model.vocab_size, tokenizer_->vocab_size(), config_.tokenizer),
                fmt::format("set it to {} or more", tokenizer_->vocab_size()));
  }
  const auto make_loader = [&](const TextDatasetConfig& loader, std::int64_t batch_size,
                               const std::string& path, const char* batch_key) {
    TextLoaderOptions options;
    options.batch_size = batch_size;
    options.seq_len = config_.max_seq_len;
    options.vocab_size = config_.model.vocab_size;
    options.tokenizer = tokenizer_;
    auto opened = open_loader(source, loader, options, path, batch_key);
    opened->check_files();
    return opened;
  };
  train_loader_ = make_loader(config_.train_loader, config_.global_train_batch_size,
                              "train_loader.dataset", "global_train_batch_size");
  for (std::size_t i = 0; i < config_.eval_loaders.size(); ++i) {
    eval_loaders_.push_back(make_loader(config_.eval_loaders[i], config_.device_eval_batch_size,
                                        config_.eval_dataset_path(i), "device_eval_batch_size"));
  }
}

void Trainer::open_tasks() {
  if (config_.tasks.tasks.empty()) return;
  if (!tokenizer_) {
    config_.source.fail("icl_tasks", "in-context tasks need the tokenizer",
                        "give its file as tokenizer.name");
  }
  config_.tasks.require_files();
  config_.source.locate("icl_tasks", [&] { task_runs_ = config_.tasks.open(*tokenizer_); });
}

void Trainer::build_model() {
  // Nothing draws from it yet, but it is saved: equal runs must have equal states.
  at::manual_seed(config_.seed);
  model_ = std::make_unique<Transformer>(config_.model, config_.seed, device_,
                                         WeightOptions{.type = weight_type(config_.precision)});
  NamedParameters named;
  std::vector<std::string> names;
  for (const Parameter& parameter : model_->parameters()) {
    if (config_.model.lora && !parameter.adapter) continue;
    named.emplace_back(parameter.name, parameter.value);
    names.push_back(parameter.name);
  }
  const CallbackConfig& callbacks = config_.callbacks;
  config_.optimizer.frozen = callbacks.frozen_parameters;
  config_.source.locate(config_.optimizer.blamed_key(names),
                        [&] { optimizer_ = make_optimizer(config_.optimizer, named); });
  stepper_.emplace(config_, *model_, *optimizer_);
  if (callbacks.early_stopper) {
    watchers_["early_stopper"] = std::make_unique<EarlyStopper>(*callbacks.early_stopper);
  }
  if (callbacks.kill_loss_spike) {
    watchers_["kill_loss_spike"] = std::make_unique<LossSpikeWatcher>(*callbacks.kill_loss_spike);
  }
  flops_per_token_ = training_flops_per_token(config_.model, model_->count(), config_.max_seq_len);
  if (callbacks.speed_monitor) peak_flops_ = callbacks.speed_monitor->peak_flops;
  if (peak_flops_ == 0) peak_flops_ = peak_bf16_flops(device_);
}

void Trainer::restore() {
  std::string checkpoint = load_from_;
  bool weights_only = config_.load_weights_only;
  IgnoredState ignored = config_.load_ignored;
  if (config_.autoresume) {
    if (const auto newest = folder_->newest_good()) {
      checkpoint = *newest;
      folder_->settle(checkpoint);
      weights_only = false;
      ignored = {};  // which load_path's checkpoint was to lack
    }
  }
  std::optional<std::string> other_tokenizer;
  if (!checkpoint.empty() && tokenizer_) {
    other_tokenizer = tokenizer_difference(checkpoint, *tokenizer_);
  }
  if (other_tokenizer) {
    config_.source.warn("tokenizer.name",
                        fmt::format("{} has another tokenizer: {}", checkpoint, *other_tokenizer));
  }
  companions_ = companions_of_run(checkpoint, tokenizer_.get(), other_tokenizer.has_value());
  if (checkpoint.empty()) return;
  started_from_ = checkpoint;
  ModelConfig wanted = config_.model;
  if (wanted.lora && !load_model_config(checkpoint).lora) {
    wanted.set_lora(std::nullopt);
    weights_only = true;  // the model beside which the adapters begin
  }
  if (weights_only || !is_of_a_run(checkpoint)) {
    load_weights(checkpoint);
    const std::vector<std::string> differences = maths_differences(checkpoint, wanted);
    if (!differences.empty()) {
      log_warning("the weights were trained as another model: {}", fmt::join(differences, "; "));
    }
    const std::string ruined = ruined_weights(checkpoint, *model_);
    if (!ruined.empty()) log_warning("{}", ruined);
    log_info("weights of {}", checkpoint);
    return;
  }
  restore_from(checkpoint, ignored);
}

// The error's place is the key that names the folder; autoresume finds it by itself.
void Trainer::load_weights(const std::string& folder) {
  const char* key = folder != load_from_        ? "autoresume"
                    : config_.load_path.empty() ? "model.pretrained_model_name_or_path"
                                                : "load_path";
  config_.source.locate(key, [&] {
    if (!config_.load_strict_model_weights || !config_.load_ignore_keys.empty()) {
      return load_some_weights(folder, *model_, config_.load_ignore_keys);
    }
    load_model_weights(folder, *model_,
                       "; load_strict_model_weights=false takes over the tensors that fit");
  });
}

void Trainer::restore_from(const std::string& checkpoint, const IgnoredState& ignored) {
  require_resumable(checkpoint);
  const std::vector<std::string> differences = maths_differences(checkpoint, config_.model);
  if (!differences.empty()) {
    std::string hint = "the weights are of another model: give the key its former value, or ";
    hint += same_parameters(checkpoint, config_.model)
                ? "start a new run from them alone with load_path and load_weights_only=true"
                : "start a new run without them (another save_folder)";
    // It begins with the key.
    const std::string& first = differences.front();
    config_.source.fail(first.substr(0, first.find(' ')),
                        fmt::format("{}", fmt::join(differences, "; ")), hint);
  }
  load_model_weights(checkpoint, *model_);
  if (ignored.optimizer || ignored.data || ignored.rng) {
    log_info("load_ignore_keys: these begin anew:{}{}{}",
             ignored.optimizer ? " the optimizer's memory;" : "",
             ignored.data ? " the position in the data;" : "",
             ignored.rng ? " the random generator;" : "");
  }
  const bool same_optimizer = load_optimizer_type(checkpoint) == config_.optimizer.type;
  const bool keeps_memory = same_optimizer && !ignored.optimizer;
  if (keeps_memory) {
    load_optimizer(checkpoint, *optimizer_);
  } else if (!ignored.optimizer) {
    log_warning(
        "{} was saved by another optimizer: what it kept of its steps is not used, and {} "
        "begins anew",
        checkpoint, optimizer_->class_name());
  }
  if (!ignored.rng) load_generator(checkpoint);
  const nlohmann::json state = load_training_state(checkpoint);
  try {
    step_ = state.at("step").get<std::int64_t>();
    samples_ = state.at("samples").get<std::int64_t>();
    tokens_ = state.at("tokens").get<std::int64_t>();
    if (keeps_memory) {
      optimizer_->set_steps(state.at("optimizer_steps").get<std::int64_t>());
      if (state.contains("optimizer")) optimizer_->reload(state["optimizer"]);
    }
    LossScale& scale = stepper_->loss_scale();
    scale.restore(scale.enabled() ? state.at("loss_scale").get<double>() : 1.0,
                  state.at("loss_scale_good_steps").get<std::int64_t>());
    evaluated_step_ = state.at("evaluated_step").get<std::int64_t>();
    stepper_->reload_microbatch(state.value("microbatch", std::int64_t{0}));
    // A watcher that the checkpoint knows nothing of begins anew.
    if (const auto saved = state.find("watchers"); saved != state.end()) {
      for (const auto& [name, watcher] : watchers_) {
        if (saved->contains(name)) watcher->reload(saved->at(name));
      }
    }
    if (const auto seconds = state.find("seconds"); seconds != state.end()) {
      seconds_before_ = {seconds->at("train").get<double>(), seconds->at("val").get<double>()};
    }
    if (!ignored.data) train_loader_->reload_position(state.at("data"));
    const int threads = state.value("threads", 0);
    if (device_.is_cpu() && threads > 0 && threads != at::get_num_threads()) {
      log_warning(
          "saved by {} threads and resumed by {}: sums are taken in another order, so the "
          "last bits may differ from those of an uninterrupted run",
          threads, at::get_num_threads());
    }
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorKind::kDamaged,
                join_path(checkpoint, kStateFile) + " lacks what a resume needs: " + error.what());
  }
  first_step_ = step_;
  first_tokens_ = tokens_;
  const bool own = !config_.save_overwrite && folder_->holds(checkpoint);
  saved_step_ = own ? step_ : -1;
  if (own) last_checkpoint_ = checkpoint;
  log_info("resumed from {} at step {}", checkpoint, step_);
}

// Where hf_checkpointer may not overwrite; a run that goes on has its own exports there.
void Trainer::require_free_exports() const {
  const auto& exports = config_.callbacks.hf_export;
  if (!exports || exports->overwrite || config_.autoresume) return;
  std::set<std::string> targets;
  const auto require = [&](std::int64_t step) {
    const std::string target = exports->folder_of(step, (step - 1) / length_.batches_per_epoch);
    if (!targets.insert(target).second) {
      config_.source.fail("callbacks.hf_checkpointer.huggingface_folder_name",
                          "the export at step " + std::to_string(step) +
                              " would be written over another, " + target,
                          "put {batch} into it, or set overwrite: true");
    }
    if (!is_taken(target)) return;
    config_.source.fail("callbacks.hf_checkpointer.save_folder", target + " is not empty",
                        "name another folder, or overwrite: true replaces it");
  };
  const double batches = length_.batches(exports->interval);
  constexpr int kMost = 10'000;  // later ones are told when they come
  for (int i = 1; batches > 0 && i <= kMost; ++i) {
    const auto step = static_cast<std::int64_t>(std::ceil(i * batches));
    if (step >= length_.max_batches) break;
    require(step);
  }
  require(length_.max_batches);
}

// With learned positions a text is no longer than they are.
void Trainer::require_positions(const SampleConfig& samples) const {
  if (!config_.model.learned_pos_emb) return;
  const std::int64_t most = config_.model.max_seq_len;
  for (std::size_t i = 0; i < samples.prompts.size(); ++i) {
    const auto tokens = static_cast<std::int64_t>(tokenizer_->encode(samples.prompts[i]).size());
    // The last new token is not read again.
    if (tokens + samples.options.max_new_tokens - 1 <= most) continue;
    config_.source.fail(
        "callbacks.generate_callback.max_new_tokens",
        fmt::format("{} tokens behind the {} of prompt {} are more than the {} learned positions",
                    samples.options.max_new_tokens, tokens, i, most),
        "lower it, or raise model.max_seq_len");
  }
}

}  // namespace dropless::train
