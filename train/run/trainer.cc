// The loop, its figures and its checkpoints; how a run begins is trainer_start.cc.
#include "train/run/trainer.h"

#include <ATen/Parallel.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/bridge/views.h"
#include "train/checkpoint/checkpoint.h"
#include "train/convert/convert.h"
#include "train/run/evaluate.h"
#include "train/run/expert_load.h"
#include "train/run/generate.h"
#include "train/run/memory.h"
#include "train/run/model_files.h"
#include "train/run/summary.h"
#include "train/run/task_evaluate.h"

namespace dropless::train {
namespace {

double clock_seconds(std::chrono::steady_clock::time_point time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return clock_seconds(std::chrono::steady_clock::now()) - clock_seconds(start);
}

}  // namespace

bool Trainer::due(const Interval& interval) const {
  const double batches = length_.batches(interval);
  if (batches <= 0) return false;
  // A fraction of max_duration is a whole number of batches but for its last bits.
  constexpr double kSlack = 1e-9;
  const auto passed = [&](std::int64_t step) {
    return std::floor(static_cast<double>(step) / batches + kSlack);
  };
  return passed(step_) > passed(step_ - 1);
}

void Trainer::run() {
  if (step_ >= length_.max_batches) {
    log_info("step {} is already at max_duration {}: nothing to train", step_,
             config_.max_duration.str());
    return;
  }
  log_info("{}", training_summary(config_, *model_, *train_loader_, length_));
  if (!schedule_->short_run().empty()) {
    config_.source.warn("scheduler.t_warmup", schedule_->short_run());
  }
  try {
    with_torch_errors("if memory ran out, lower device_train_microbatch_size", [&] { loop(); });
  } catch (const Error& error) {
    progress_.reset();
    // What is being saved in the background may still become the last good checkpoint.
    saver_->wait();
    // Not of or into a folder that has taken this run's place.
    if (folder_->in_place()) {
      // A save may have failed after its checkpoint was complete.
      const auto newest = newest_complete(folder_->path());
      if (newest && *newest != started_from_) last_checkpoint_ = *newest;
      report_->event("failed", step_, error.what());
      report_->finish();
    }
    const std::string hint = error.hint().empty() ? "" : error.hint() + "; ";
    throw Error(error.kind(), error.what(), hint + what_still_stands(), error.file(), error.line());
  }
}

// For whoever reads that the run failed.
std::string Trainer::what_still_stands() const {
  if (!last_checkpoint_.empty() && !path_exists(last_checkpoint_)) {
    return "the run's checkpoints are gone with it";
  }
  if (!last_checkpoint_.empty()) {
    return "last good checkpoint: " + last_checkpoint_ + " (autoresume=true goes on from it)";
  }
  const std::string nothing = "no checkpoint was saved";
  if (started_from_.empty()) return nothing;
  return nothing + "; what this run started from still stands: " + started_from_;
}

void Trainer::loop() {
  ProgressLine::Options options;
  options.label = "train";
  options.total = static_cast<std::uint64_t>(length_.max_batches);
  options.start = static_cast<std::uint64_t>(step_);
  options.redraw = config_.progress_bar;
  options.enabled = config_.progress_bar || config_.log_to_console;
  // After a resume: the evaluation that a signal cut off.
  if (step_ == 0 ? config_.eval_first : due(config_.eval_interval)) evaluate_all();
  // The same of samples.
  if (samples_log_ && step_ > 0 && folder_->holds(started_from_) &&
      due(config_.callbacks.generate->interval)) {
    std::multiset<std::string> drawn;
    for (const auto& line : lines_of_step(samples_path(folder_->path()), step_)) {
      drawn.insert(line.value("prompt", ""));
    }
    write_samples(std::move(drawn));
  }
  progress_ = std::make_unique<ProgressLine>(options);
  if (config_.callbacks.runtime_estimator) {
    runtime_.emplace(*config_.callbacks.runtime_estimator, length_.max_batches);
  }
  Batch batch;
  std::string stop_reason;
  while (step_ < length_.max_batches && stop_signal() == 0 && stop_reason.empty()) {
    const auto start = std::chrono::steady_clock::now();
    if (runtime_) runtime_->batch_begins(step_, clock_seconds(start));
    if (profiler_) profiler_->begin_step(step_);
    if (!take_batch(batch)) break;
    data_seconds_ = seconds_since(start);
    const double multiplier = schedule_->multiplier(step_);
    const StepResult result = stepper_->step(batch, step_ + 1, multiplier);
    ++step_;
    samples_ += batch.samples;
    tokens_ += batch.tokens;
    log_step(result, multiplier, batch, seconds_since(start));
    const bool at_end = step_ == length_.max_batches;
    if ((at_end && config_.eval_interval.value > 0) || due(config_.eval_interval)) {
      save_if_it_fails(batch, [&] { evaluate_all(); });
    }
    for (const auto& [name, watcher] : watchers_) {
      if (stop_reason.empty()) stop_reason = watcher->stop_reason();
    }
    const bool last = at_end || !stop_reason.empty();
    const bool export_is_due =
        config_.callbacks.hf_export && (last || due(config_.callbacks.hf_export->interval));
    if (last || export_is_due || due(config_.save_interval) || take_save_request()) save(batch);
    note_published();
    if (export_is_due) export_to_hf();
    if (samples_log_ && (last || due(config_.callbacks.generate->interval))) write_samples();
    report_->update();
    if (profiler_) profiler_->end_step(step_);
  }
  if (profiler_) profiler_->finish(step_);
  progress_.reset();
  if (stop_signal() != 0 && step_ > first_step_) save(batch);
  finish_save();
  if (stop_signal() != 0) {
    report_->event("stop", step_);
    report_->finish();
    const std::string next = last_checkpoint_.empty() ? "nothing to save yet"
                             : step_ == length_.max_batches
                                 ? "no step is left: " + last_checkpoint_
                                 : "autoresume=true goes on from " + last_checkpoint_;
    log_info("stopped by a signal after step {} of {}; {}", step_, length_.max_batches, next);
    return;
  }
  if (saved_step_ != step_) {
    throw Error(
        ErrorKind::kNonFinite,
        fmt::format("the run ends in {} steps that are not finite", stepper_->nonfinite_in_row()),
        "lower optimizer.lr or clip gradients");
  }
  report_->event(stop_reason.empty() ? "done" : "early stop", step_, stop_reason);
  report_->finish();
  if (!stop_reason.empty()) log_info("stopped early: {}", stop_reason);
  log_info(
      "done: {} steps in {} ({} tokens/s); checkpoint {}", step_ - first_step_,
      format_seconds(train_seconds_),
      format_count(static_cast<double>(tokens_ - first_tokens_) / std::max(train_seconds_, 1e-9)),
      last_checkpoint_);
}

void Trainer::save_if_it_fails(const Batch& batch, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error&) {
    if (step_ > first_step_ && saved_step_ != step_) {
      try {
        save(batch);
      } catch (const Error& error) {
        log_warning("step {} could not be saved: {}", step_, error.what());
      }
    }
    throw;
  }
}

// next_batch() into `batch`. Damaged data end the run, but what was learnt before them is saved.
bool Trainer::take_batch(Batch& batch) {
  RECORD_USER_SCOPE("data");
  Batch next;
  bool more = false;
  save_if_it_fails(batch, [&] { more = next_batch(next); });
  if (more) batch = std::move(next);
  return more;
}

// Goes through epochs; false only for a set whose epochs are empty.
bool Trainer::next_batch(Batch& batch) {
  if (!train_loader_->next(batch)) {
    train_loader_->begin_epoch(train_loader_->epoch() + 1);
    if (!train_loader_->next(batch)) return false;
  }
  if (batch.scored_tokens() == 0) {
    throw Error(
        ErrorKind::kDamaged,
        fmt::format("batch {} (epoch {}, the {} samples before sample {} of its order) has "
                    "no token to predict: each sample has one token, or none that is learned",
                    step_ + 1, train_loader_->epoch(), batch.batch,
                    train_loader_->sample_in_epoch()),
        "write the data set without samples of one token; where answers lie beyond max_seq_len, "
        "raise it");
  }
  return true;
}

void Trainer::log(const nlohmann::ordered_json& line) {
  metrics_->append(line);
  if (tensorboard_) tensorboard_->take(line);
  for (const auto& [name, watcher] : watchers_) watcher->take(line);
}

void Trainer::write_samples(std::multiset<std::string> drawn) {
  const SampleConfig& config = *config_.callbacks.generate;
  for (const std::string& prompt : config.prompts) {
    if (const auto found = drawn.find(prompt); found != drawn.end()) {
      drawn.erase(found);
      continue;
    }
    try {
      const GenerateResult result = generate(*model_, {tokenizer_->encode(prompt)}, config.options);
      if (stop_signal() != 0) return;  // a part of a sample is none
      samples_log_->append({{"step", step_},
                            {"prompt", prompt},
                            {"text", text_of(*tokenizer_, result.sequences.at(0))}});
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kInvalidArgument) throw;
      log_warning("no sample of '{}': {}", prompt, error.what());
    }
  }
}

// Of the checkpoint that was saved at this step.
void Trainer::export_to_hf() {
  if (saved_step_ != step_) return;
  finish_save();
  const HfExportConfig& config = *config_.callbacks.hf_export;
  const std::string target = config.folder_of(step_, train_loader_->epoch());
  if (!config.overwrite && is_taken(target)) {
    if (!folder_->holds(started_from_)) {
      throw Error(ErrorKind::kResource, "callbacks.hf_checkpointer: " + target + " is not empty",
                  "its key overwrite: true replaces it");
    }
    // Of this run before it was cut off, for all that can be told.
    log_warning("callbacks.hf_checkpointer: {} is there already and stays", target);
    return;
  }
  const Layout layout = config_.model.lora   ? Layout::kPeft
                        : config.llm_foundry ? Layout::kFoundry
                                             : Layout::kHf;
  make_folders(config.save_folder);
  convert_model(
      last_checkpoint_, target,
      {.to = layout, .dtype = scalar_type_of(config.dtype), .overwrite = config.overwrite});
}

void Trainer::log_step(const StepResult& result, double multiplier, const Batch& batch,
                       double seconds) {
  RECORD_USER_SCOPE("log");
  train_seconds_ += seconds;
  const double tokens_per_second = static_cast<double>(batch.tokens) / seconds;
  // An exponential mean over about twenty steps is calm enough to read.
  recent_tokens_per_second_ = recent_tokens_per_second_ > 0
                                  ? 0.95 * recent_tokens_per_second_ + 0.05 * tokens_per_second
                                  : tokens_per_second;
  nlohmann::ordered_json line;
  line["step"] = step_;
  line["loss/train/total"] = result.total();
  line["loss/train/loss"] = result.cross_entropy;
  const MoELayerConfig* moe = config_.model.moe();
  if (moe) line["loss/train/lbl"] = result.load_balance;
  if (moe && moe->zloss_weight > 0) line["loss/train/zloss"] = result.zloss;
  line["metrics/train/LanguageCrossEntropy"] = result.cross_entropy;
  line["metrics/train/LanguagePerplexity"] = std::exp(result.cross_entropy);
  if (step_ % kLogInterval == 0) line["metrics/train/TokenAccuracy"] = result.token_accuracy;
  for (std::size_t group = 0; group < optimizer_->num_groups(); ++group) {
    line[fmt::format("lr-{}/group{}", optimizer_->class_name(), group)] =
        optimizer_->lr(group) * multiplier;
  }
  line["l2_norm/grad/global"] = result.grad_norm;
  if (const LossScale& scale = stepper_->loss_scale(); scale.enabled()) {
    line["loss_scale"] = scale.scale();
    line["skipped"] = result.skipped;
  } else if (config_.skip_nonfinite_steps > 0) {
    line["skipped"] = result.skipped;
  }
  for (const auto& [name, norm] : result.norms) line[name] = norm;
  double balance = 1.0;
  if (moe) {
    balance = max_over_mean(result.tokens_per_expert_LE);
    add_expert_figures(result.tokens_per_expert_LE, moe->moe.top_k, config_.callbacks.experts,
                       step_, line);
    if (step_ % kLogInterval == 0) {
      line["mb_moe/router_entropy"] = result.router_entropy;
      auto& layers = line["mb_moe/tokens_per_expert"] = nlohmann::json::array();
      for (const at::Tensor& tokens_E : result.tokens_per_expert_LE.unbind()) {
        const auto* tokens = tokens_E.const_data_ptr<std::int64_t>();
        layers.push_back(std::vector<std::int64_t>(tokens, tokens + tokens_E.numel()));
      }
    }
  }
  add_speed(batch, seconds, line);
  if (step_ % kLogInterval == 0 || step_ == first_step_ + 1) {
    for (const auto& [name, gigabytes] : memory_in_use(device_)) line[name] = gigabytes;
  }
  line["time/epoch"] = train_loader_->epoch();
  line["time/sample"] = samples_;
  line["time/token"] = tokens_;
  if (runtime_) {
    const auto remaining =
        runtime_->batch_ended(step_, clock_seconds(std::chrono::steady_clock::now()));
    if (remaining) line["time/remaining_estimate"] = *remaining;
  }
  log(line);
  if (progress_->due(static_cast<std::uint64_t>(step_))) {
    std::vector<std::string> figures{
        fmt::format("loss {:.4f}", result.total()),
        fmt::format("{} tok/s", format_count(recent_tokens_per_second_))};
    if (moe) figures.push_back(fmt::format("load {:.2f}x", balance));
    figures.push_back(fmt::format("lr {:.1e}", optimizer_->lr(0) * multiplier));
    progress_->update(static_cast<std::uint64_t>(step_), std::move(figures));
  }
}

void Trainer::add_speed(const Batch& batch, double seconds, nlohmann::ordered_json& line) const {
  const std::pair<const char*, double> rates[] = {
      {"tokens", static_cast<double>(batch.tokens) / seconds},
      {"samples", static_cast<double>(batch.batch) / seconds},
      {"batches", 1 / seconds},
      {"flops", flops_per_token_ * static_cast<double>(batch.tokens) / seconds}};
  const auto& monitor = config_.callbacks.speed_monitor;
  for (const auto& [what, rate] : rates) {
    line[fmt::format("throughput/{}_per_sec", what)] = rate;
    if (monitor) line[fmt::format("throughput/device/{}_per_sec", what)] = rate;
  }
  line["throughput/data_wait"] = data_seconds_ / seconds;
  if (peak_flops_ > 0) line["throughput/device/mfu"] = rates[3].second / peak_flops_;
  if (!monitor) return;
  const double train = seconds_before_.train + train_seconds_;
  const double val = seconds_before_.val + eval_seconds_;
  line["time/train"] = train / monitor->unit_seconds;
  line["time/val"] = val / monitor->unit_seconds;
  line["time/total"] = (train + val) / monitor->unit_seconds;
}

void Trainer::evaluate_all() {
  if ((eval_loaders_.empty() && task_runs_.empty()) || evaluated_step_ == step_) return;
  const auto start = std::chrono::steady_clock::now();
  RECORD_USER_SCOPE("evaluate");
  nlohmann::ordered_json line;
  line["step"] = step_;
  for (std::size_t i = 0; i < eval_loaders_.size(); ++i) {
    eval_loaders_[i]->begin_epoch(0);
    const EvalResult result =
        evaluate(*model_, *eval_loaders_[i], config_.precision, config_.eval_subset_num_batches);
    if (stop_signal() != 0) return;  // a part of the set is not the set's figure
    const std::string& label = config_.eval_loaders[i].label;
    if (result.tokens == 0) {
      throw Error(ErrorKind::kDamaged,
                  fmt::format("the evaluation set{} has no token to predict",
                              label.empty() ? "" : " " + label),
                  "all of its samples have one token");
    }
    const std::string prefix = "metrics/eval/" + (label.empty() ? "" : label + "/");
    line[prefix + "LanguageCrossEntropy"] = result.cross_entropy();
    line[prefix + "LanguagePerplexity"] = result.perplexity();
    line[prefix + "TokenAccuracy"] = result.accuracy();
    log_info("step {}: evaluation{} {:.4f} nats per token, perplexity {:.3f}, {} tokens", step_,
             label.empty() ? "" : " " + label, result.cross_entropy(), result.perplexity(),
             result.tokens);
  }
  std::vector<TaskScore> scores;
  for (const TaskRun& run : task_runs_) {
    scores.push_back(evaluate_task(*model_, *tokenizer_, run, config_.precision,
                                   config_.tasks.subset_num_batches));
    if (stop_signal() != 0) return;
    const TaskScore& score = scores.back();
    line[fmt::format("metrics/{}/{}", score.name, score.metric)] = score.accuracy;
    log_info("step {}: {} {:.4f} of {} questions", step_, score.name, score.accuracy,
             score.questions);
  }
  for (const auto& [name, score] : gauntlet_scores(config_.tasks.gauntlet, scores)) {
    line["icl/metrics/eval_gauntlet/" + name] = score;
  }
  line["time/token"] = tokens_;
  log(line);
  evaluated_step_ = step_;
  const double seconds = seconds_since(start);
  eval_seconds_ += seconds;
  if (runtime_) runtime_->evaluated(step_, seconds);
}

void Trainer::save(const Batch& batch) {
  if (saved_step_ == step_) return;
  RECORD_USER_SCOPE("save");
  if (stepper_->nonfinite_in_row() > 0) {
    log_warning("step {} is not saved: the last {} steps were not finite", step_,
                stepper_->nonfinite_in_row());
    return;
  }
  stepper_->check_trainable(batch, step_);
  folder_->check_in_place();
  metrics_->sync();
  nlohmann::json state;
  state["version"] = 1;
  state["step"] = step_;
  state["samples"] = samples_;
  state["tokens"] = tokens_;
  state["evaluated_step"] = evaluated_step_;
  state["optimizer_steps"] = optimizer_->steps();
  if (auto record = optimizer_->record(); !record.is_null()) state["optimizer"] = record;
  state["loss_scale"] = stepper_->loss_scale().scale();
  state["loss_scale_good_steps"] = stepper_->loss_scale().good_steps();
  state["microbatch"] = stepper_->microbatch();
  for (const auto& [name, watcher] : watchers_) state["watchers"][name] = watcher->record();
  if (config_.callbacks.speed_monitor) {
    state["seconds"] = {{"train", seconds_before_.train + train_seconds_},
                        {"val", seconds_before_.val + eval_seconds_}};
  }
  state["threads"] = at::get_num_threads();
  state["data"] = train_loader_->record_position();
  std::vector<Companion> texts = companions_;
  texts.push_back({kConfigFile, config_.yaml});
  finish_save();
  saver_->save(step_, *model_, config_.save_weights_only ? nullptr : optimizer_.get(), state,
               std::move(texts));
  saved_step_ = step_;
  note_published();
}

void Trainer::note_published() {
  const auto published = saver_->take_published();
  if (!published) return;
  last_checkpoint_ = published->checkpoint;
  report_->event("save", published->step);
  folder_->remove_kept(published->checkpoint);
  folder_->prune();
}

void Trainer::finish_save() {
  saver_->wait();
  note_published();
}

}  // namespace dropless::train
