// The training loop: data -> forward and backward by microbatches -> clip -> update -> metrics,
// evaluation and checkpoints when due. Resumes at the sample, stops cleanly at a signal.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "train/base/progress.h"
#include "train/convert/companions.h"
#include "train/data/loader.h"
#include "train/nn/transformer.h"
#include "train/optim/optimizer.h"
#include "train/optim/schedule.h"
#include "train/report/report.h"
#include "train/run/config.h"
#include "train/run/profiler.h"
#include "train/run/run_folder.h"
#include "train/run/saver.h"
#include "train/run/step.h"
#include "train/run/step_log.h"
#include "train/run/tensorboard.h"

namespace dropless::train {

class Trainer {
 public:
  // Opens the data, builds the model and loads what load_path or autoresume ask for. What is wrong
  // with config, paths, data files or memory is thrown as Error before the run folder is made.
  explicit Trainer(TrainConfig config);

  // Trains to max_duration, or to SIGTERM or Ctrl-C (saves, then returns). Throws Error:
  // kNonFinite, kResource (disk full), kDamaged (data); the hint names the last good checkpoint.
  void run();

 private:
  void warn_of_full_disk() const;
  void open_data();
  void open_tasks();
  void build_model();
  void restore();
  void load_weights(const std::string& folder);
  void restore_from(const std::string& checkpoint, const IgnoredState& ignored);
  void require_free_exports() const;
  void require_positions(const SampleConfig& samples) const;
  bool due(const Interval& interval) const;  // at the step just finished
  void loop();
  // Saves the steps so far before an error of `action`, data that cannot be read, ends the run.
  void save_if_it_fails(const Batch& batch, const std::function<void()>& action);
  bool take_batch(Batch& batch);
  bool next_batch(Batch& batch);
  void log_step(const StepResult& result, double multiplier, const Batch& batch, double seconds);
  // Throughput, and what speed_monitor asks for.
  void add_speed(const Batch& batch, double seconds, nlohmann::ordered_json& line) const;
  void evaluate_all();
  // Of a step or an evaluation: to every log and watcher.
  void log(const nlohmann::ordered_json& line);
  // `drawn`: prompts whose samples of this step are there, after a resume.
  void write_samples(std::multiset<std::string> drawn = {});
  void export_to_hf();
  void save(const Batch& batch);
  void note_published();  // of a save that has ended
  void finish_save();     // waits for the one under way, if any
  std::string what_still_stands() const;

  TrainConfig config_;
  at::Device device_;
  std::shared_ptr<const Tokenizer> tokenizer_;  // null where its files are not here
  std::unique_ptr<TextLoader> train_loader_;
  std::vector<std::unique_ptr<TextLoader>> eval_loaders_;
  std::vector<TaskRun> task_runs_;  // they point into config_
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::optional<Stepper> stepper_;
  TrainingLength length_;
  std::optional<Schedule> schedule_;
  std::string load_from_;  // what load_path or hf_causal_lm name, verified; may be empty
  std::optional<RunFolder> folder_;
  std::optional<CheckpointSaver> saver_;
  std::unique_ptr<StepLog> metrics_, samples_log_;
  std::unique_ptr<TensorBoardWriter> tensorboard_;
  std::map<std::string, std::unique_ptr<Watcher>> watchers_;  // by their names in `callbacks`
  double flops_per_token_ = 0, peak_flops_ = 0;               // peak_flops_: 0 where it is unknown
  std::unique_ptr<ReportWriter> report_;
  std::unique_ptr<ProgressLine> progress_;
  std::unique_ptr<Profiler> profiler_;  // null: nothing is profiled

  std::int64_t step_ = 0;  // optimiser steps done
  std::int64_t samples_ = 0, tokens_ = 0;
  std::int64_t first_step_ = 0, first_tokens_ = 0;  // where this process began
  std::int64_t saved_step_ = -1, evaluated_step_ = -1;
  double train_seconds_ = 0;  // in this process, without evaluation and saving
  double eval_seconds_ = 0;   // in this process
  struct {
    double train = 0, val = 0;
  } seconds_before_;  // of those it goes on from; kept for speed_monitor alone
  std::optional<RuntimeEstimator> runtime_;
  double data_seconds_ = 0;  // that the current step waited for its batch
  double recent_tokens_per_second_ = 0;
  std::string last_checkpoint_;        // of this run folder
  std::string started_from_;           // the checkpoint that was loaded at the start
  std::vector<Companion> companions_;  // of the model that was loaded, for every checkpoint
};

}  // namespace dropless::train
