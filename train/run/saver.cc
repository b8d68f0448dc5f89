#include "train/run/saver.h"

#include <memory>
#include <utility>

#include "train/run/model_files.h"

namespace dropless::train {

void CheckpointSaver::save(std::int64_t step, const Transformer& model, const Optimizer* optimizer,
                           const nlohmann::json& state, std::vector<Companion> texts) {
  // Shared, since a thread's function must be copyable.
  auto content = std::make_shared<CheckpointContent>(model, optimizer, state, std::move(texts),
                                                     /*copy=*/in_background_);
  if (!in_background_) {
    published_ = Published{content->write(run_folder_, step), step};
    return;
  }
  finished_ = false;
  thread_ = std::thread([this, step, content] {
    try {
      published_ = Published{content->write(run_folder_, step), step};
    } catch (...) {
      error_ = std::current_exception();
    }
    finished_ = true;
  });
}

std::optional<CheckpointSaver::Published> CheckpointSaver::take_published() {
  if (!finished_) return std::nullopt;
  wait();
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  return std::exchange(published_, std::nullopt);
}

void CheckpointSaver::wait() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace dropless::train
