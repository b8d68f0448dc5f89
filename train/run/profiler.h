// The `profiler` block, with Composer's keys: of a few steps a Chrome trace, for ui.perfetto.dev or
// chrome://tracing. libtorch's profiler (Kineto) records the trainer's own spans (data, forward,
// backward, optimizer, evaluate, save, log), the operators in them and a GPU's kernels.
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "train/base/yaml.h"
#include "train/bridge/torch.h"

namespace dropless::train {

struct ProfilerConfig {
  // Of every epoch, counted from where this process entered it: skip_first steps are left out, then
  // `repeat` times (0: to its end) come wait + warmup steps that are not recorded and `active` ones
  // that are.
  std::int64_t skip_first = 0, wait = 0, warmup = 1, active = 4, repeat = 1;
  std::string folder;  // empty: traces/ in the run folder
  std::string filename = "ep{epoch}-ba{batch}-rank{rank}.json";
  std::int64_t num_traces_to_keep = -1;  // -1: all
  bool shapes = false, memory = true, flops = true;

  enum class Action { kSkip, kWarmUp, kRecord, kRecordAndSave };
  // For step `step` (from 0) of an epoch of `steps` that this process entered at step `entered`.
  Action action(std::int64_t step, std::int64_t steps, std::int64_t entered) const;

  static ProfilerConfig from_yaml(const YamlMap& map, const std::string& run_name);
};

// Records on the thread that calls it, whose backward passes are recorded too. One at a time.
class Profiler {
 public:
  // A run that is at step `first_step` of epochs of `steps_per_epoch`.
  Profiler(ProfilerConfig config, const std::string& run_folder, at::Device device,
           std::int64_t first_step, std::int64_t steps_per_epoch);
  ~Profiler();  // drops what was not written
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;

  // Around the step after `done` steps.
  void begin_step(std::int64_t done);
  // Writes the trace where its last step has ended; a file of that name is replaced. What keeps it
  // from being written is a warning.
  void end_step(std::int64_t done);
  // Writes what a run that stops early has recorded so far, after `done` steps.
  void finish(std::int64_t done);

 private:
  void write(std::int64_t done);

  ProfilerConfig config_;
  at::Device device_;
  std::int64_t first_step_, steps_per_epoch_;
  bool prepared_ = false, recording_ = false;
  bool save_after_step_ = false;
  std::deque<std::string> written_;
};

}  // namespace dropless::train
