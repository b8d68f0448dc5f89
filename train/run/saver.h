// Saving of a run's checkpoints: at once, or by a thread beside the training (`save_async`).
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "train/convert/companions.h"
#include "train/nn/transformer.h"
#include "train/optim/optimizer.h"

namespace dropless::train {

class CheckpointSaver {
 public:
  CheckpointSaver(std::string run_folder, bool in_background)
      : run_folder_(std::move(run_folder)), in_background_(in_background) {}
  ~CheckpointSaver() { wait(); }
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  // RUN_FOLDER/step-N of what model and optimizer hold now, with `texts` as they are (config.yaml and
  // companions). Without an optimizer nothing is saved that a resume would need. In the background:
  // copies everything, and returns before it is written; the save before must have been waited for
  // and taken. Throws Error.
  void save(std::int64_t step, const Transformer& model, const Optimizer* optimizer,
            const nlohmann::json& state, std::vector<Companion> texts);

  struct Published {
    std::string checkpoint;
    std::int64_t step = 0;
  };
  // The save that has ended since the last call. Throws the Error that it ended with.
  std::optional<Published> take_published();
  void wait();

 private:
  std::string run_folder_;
  bool in_background_;
  // Written by the thread before it says so in finished_, and read after it was joined.
  std::thread thread_;
  std::optional<Published> published_;
  std::exception_ptr error_;
  std::atomic<bool> finished_{true};
};

}  // namespace dropless::train
