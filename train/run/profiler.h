// The `profiler` block, with Composer's keys: of a few steps a Chrome trace, for ui.perfetto.dev or
// chrome://tracing. libtorch's profiler (Kineto) records the trainer's own spans (data, forward,
// backward, optimizer, evaluate, save, log), the operators in them and a GPU's kernels.
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "train/bridge/torch.h"
#include "train/run/profiler_config.h"

namespace dropless::train {

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
