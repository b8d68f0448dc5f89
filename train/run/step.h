// One optimiser step: forward and backward by microbatches, gradient clipping, update.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "train/data/batch.h"
#include "train/nn/transformer.h"
#include "train/optim/clip.h"
#include "train/optim/loss_scale.h"
#include "train/optim/optimizer.h"
#include "train/run/config.h"

namespace dropless::train {

// The steps between those of which the slower figures are logged (LLM Foundry's log_interval).
constexpr std::int64_t kLogInterval = 10;

// What a step leaves for the logs; losses in nats per scored token.
struct StepResult {
  double cross_entropy = 0, load_balance = 0, zloss = 0, grad_norm = 0;
  bool skipped = false;  // no update: fp16 gradients overflowed, or loss or gradients not finite
  // "l2_norm/grad/NAME" ...: what optimizer_monitor asks for.
  std::vector<std::pair<std::string, double>> norms;
  double router_entropy = 0;        // of every kLogInterval-th step of a mixture of experts
  double token_accuracy = 0;        // of every kLogInterval-th step
  at::Tensor tokens_per_expert_LE;  // int64 on the CPU; undefined for dense models
  double total() const { return cross_entropy + load_balance + zloss; }
};

class Stepper {
 public:
  // Model and optimizer must outlive it.
  Stepper(const TrainConfig& config, Transformer& model, Optimizer& optimizer);

  // Step `number` (from 1) at learning rate lr_0 * multiplier, on a batch with at least one scored
  // token. Where loss or gradient norm is not finite the update is left out with a warning, and
  // after skip_nonfinite_steps in a row Error(kNonFinite) is thrown. Where memory runs out and
  // device_train_microbatch_size is auto, the microbatch is halved and the step begins anew.
  StepResult step(const Batch& batch, std::int64_t number, double multiplier);

  // After step `number`: whether the next one could be made from here. The step's own loss and
  // gradients were those of the weights before the update; what the update did shows in the weights
  // and moments, and in a pass over the batch's first microbatch. Throws Error(kNonFinite).
  void check_trainable(const Batch& batch, std::int64_t number);

  LossScale& loss_scale() { return loss_scale_; }
  // Updates that were left out, not being finite, since the last one that was made.
  std::int64_t nonfinite_in_row() const { return nonfinite_in_row_; }
  // Samples a forward pass; of `auto` what has fitted so far.
  std::int64_t microbatch() const { return microbatch_; }
  void reload_microbatch(std::int64_t samples);

 private:
  at::Tensor accumulate_gradients(const Batch& batch, std::int64_t number, StepResult& result);
  at::Tensor accumulate_within_memory(const Batch& batch, std::int64_t number, StepResult& result);
  void skip_or_stop(StepResult& result, const std::string& what);
  void measure_norms(const std::vector<at::Tensor>& before, StepResult& result) const;
  void apply_gradients(StepResult& result, std::int64_t number, double multiplier);

  std::uint64_t seed_;
  Precision precision_;
  std::optional<ClipConfig> clip_;
  std::int64_t microbatch_;
  bool recompute_blocks_;
  bool microbatch_is_auto_;
  std::int64_t skip_nonfinite_steps_;
  std::int64_t nonfinite_in_row_ = 0;
  std::optional<std::int64_t> monitor_interval_;
  Transformer& model_;
  Optimizer& optimizer_;
  std::vector<at::Tensor> parameters_;
  LossScale loss_scale_;
};

}  // namespace dropless::train
