#include "train/run/step.h"

#include <ATen/record_function.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "dropless/error.h"
#include "train/base/log.h"
#include "train/run/batches.h"
#include "train/run/evaluate.h"
#include "train/run/memory.h"

namespace dropless::train {
namespace {

// One round trip to the device for all of them.
bool all_finite(const std::vector<at::Tensor>& tensors) {
  at::NoGradGuard no_grad;
  constexpr double kLargest = std::numeric_limits<double>::infinity();
  return at::isfinite(at::stack(at::_foreach_norm(tensors, kLargest))).all().item<bool>();
}

// Of a microbatch. What a pass draws depends on its step and place alone, so that looking at the
// weights before a save, or a resume, changes nothing.
std::uint64_t noise_seed(std::uint64_t seed, std::int64_t step, std::int64_t first_row) {
  return mix_seed(mix_seed(seed, static_cast<std::uint64_t>(step)),
                  static_cast<std::uint64_t>(first_row));
}

}  // namespace

Stepper::Stepper(const TrainConfig& config, Transformer& model, Optimizer& optimizer)
    : seed_(config.seed),
      precision_(config.precision),
      clip_(config.clip),
      microbatch_(config.microbatch_samples()),
      recompute_blocks_(config.activation_checkpointing),
      microbatch_is_auto_(config.device_train_microbatch_size == 0),
      skip_nonfinite_steps_(config.skip_nonfinite_steps),
      monitor_interval_(config.callbacks.monitor_interval),
      model_(model),
      optimizer_(optimizer),
      loss_scale_(config.precision == Precision::kAmpFp16) {
  for (const Parameter& parameter : model.parameters()) parameters_.push_back(parameter.value);
}

// Backward over all microbatches. Every scored token of the batch weighs the same, however the
// batch is cut; the router's losses weigh by each microbatch's share of the tokens (LLM Foundry's
// rule). Returns [5] on the device: cross-entropy, load-balancing loss, z-loss, as in the
// total, and in every kLogInterval-th step the routers' entropy and the tokens that are right.
at::Tensor Stepper::accumulate_gradients(const Batch& batch, std::int64_t number,
                                         StepResult& result) {
  const std::int64_t scored = batch.scored_tokens();
  const bool want_slow = number % kLogInterval == 0;
  const MoELayerConfig* moe = model_.config().moe();
  at::Tensor sums =
      at::zeros({5}, at::TensorOptions(weight_type(precision_)).device(model_.device()));
  at::Tensor tokens_per_expert;
  for (std::int64_t first = 0; first < batch.batch; first += microbatch_) {
    const std::int64_t rows = std::min(microbatch_, batch.batch - first);
    const BatchTensors tensors = batch_tensors(batch, first, rows, model_.device());
    if (tensors.scored == 0) continue;
    at::Tensor loss;
    {
      RECORD_USER_SCOPE("forward");
      AutocastGuard autocast(precision_, model_.device());
      RouterRecord record;
      record.want_entropy = want_slow;
      const PassOptions options{tensors.sequence_ids_BS, noise_seed(seed_, number, first),
                                recompute_blocks_, tensors.kept_R};
      const at::Tensor logits = model_.forward(tensors.tokens_BS, record, nullptr, options);
      loss = cross_entropy_sum(logits, tensors.labels_BS) / static_cast<double>(scored);
      sums[0].add_(loss.detach());
      if (want_slow) sums[4].add_(correct_tokens(logits.detach(), tensors.labels_BS));
      if (moe) {
        const double share = static_cast<double>(tensors.scored) / static_cast<double>(scored);
        const at::Tensor losses_L2 = at::stack(record.losses_2);
        const at::Tensor balance = losses_L2.select(1, 0).mean() * (moe->loss_weight * share);
        const at::Tensor z = losses_L2.select(1, 1).sum() * (moe->zloss_weight * share);
        loss = loss + balance + z;
        sums[1].add_(balance.detach());
        sums[2].add_(z.detach());
        if (want_slow) sums[3].add_(at::stack(record.entropy).mean() * share);
        const at::Tensor load = at::stack(record.tokens_per_expert_E).to(at::kLong);
        tokens_per_expert = tokens_per_expert.defined() ? tokens_per_expert + load : load;
      }
    }
    if (loss_scale_.enabled()) loss = loss * loss_scale_.scale();
    RECORD_USER_SCOPE("backward");
    loss.backward();
  }
  if (tokens_per_expert.defined()) result.tokens_per_expert_LE = tokens_per_expert.cpu();
  return sums;
}

at::Tensor Stepper::accumulate_within_memory(const Batch& batch, std::int64_t number,
                                             StepResult& result) {
  if (!microbatch_is_auto_) return accumulate_gradients(batch, number, result);
  while (true) {
    try {
      return accumulate_gradients(batch, number, result);
    } catch (const std::exception& error) {
      if (microbatch_ == 1 || !is_out_of_memory(error)) throw;
    }
    microbatch_ = (std::min(microbatch_, batch.batch) + 1) / 2;
    log_warning("out of memory: device_train_microbatch_size auto goes down to {}", microbatch_);
    optimizer_.zero_grad();
    result = {};
    release_cached_memory(model_.device());
  }
}

void Stepper::reload_microbatch(std::int64_t samples) {
  if (microbatch_is_auto_ && samples > 0) microbatch_ = std::min(microbatch_, samples);
}

void Stepper::skip_or_stop(StepResult& result, const std::string& what) {
  const char* hint = optimizer_.steps() == 0
                         ? "no update was made yet: the cause is in the weights it began with, the "
                           "model's options (scales, initialisation, loss weights) or the data"
                         : "the weights were not updated; lower optimizer.lr or clip gradients";
  if (++nonfinite_in_row_ > skip_nonfinite_steps_) {
    const std::string before =
        skip_nonfinite_steps_ == 0
            ? ""
            : fmt::format(", after {} steps in a row that were skipped", skip_nonfinite_steps_);
    throw Error(ErrorKind::kNonFinite, what + before, hint);
  }
  result.skipped = true;
  log_warning("{}: its update is skipped, {} in a row of at most {} (skip_nonfinite_steps)", what,
              nonfinite_in_row_, skip_nonfinite_steps_);
}

StepResult Stepper::step(const Batch& batch, std::int64_t number, double multiplier) {
  StepResult result;
  const at::Tensor sums = accumulate_within_memory(batch, number, result).cpu();
  result.cross_entropy = sums[0].item<double>();
  result.load_balance = sums[1].item<double>();
  result.zloss = sums[2].item<double>();
  result.router_entropy = sums[3].item<double>();
  result.token_accuracy = sums[4].item<double>() / static_cast<double>(batch.scored_tokens());
  if (std::isfinite(result.total())) {
    apply_gradients(result, number, multiplier);
  } else {
    skip_or_stop(result, fmt::format("the loss of step {} is {}", number, result.total()));
  }
  if (!result.skipped) nonfinite_in_row_ = 0;
  optimizer_.zero_grad();
  const MoELayerConfig* moe = model_.config().moe();
  if (moe && moe->moe.selection_bias && !result.skipped) {
    model_.update_selection_bias(result.tokens_per_expert_LE);
  }
  return result;
}

void Stepper::apply_gradients(StepResult& result, std::int64_t number, double multiplier) {
  RECORD_USER_SCOPE("optimizer");
  if (loss_scale_.enabled()) {
    at::NoGradGuard no_grad;
    for (const at::Tensor& parameter : parameters_) {
      if (parameter.grad().defined()) parameter.grad().mul_(1.0 / loss_scale_.scale());
    }
  }
  const at::Tensor norm = global_grad_norm(parameters_);
  result.grad_norm = norm.item<double>();
  if (!loss_scale_.update(std::isfinite(result.grad_norm))) {
    if (loss_scale_.enabled() && !loss_scale_.exhausted()) {
      result.skipped = true;
    } else {
      skip_or_stop(result,
                   fmt::format("the gradient norm of step {} is {}", number, result.grad_norm));
    }
    return;
  }
  if (clip_) clip_gradients(*clip_, parameters_, norm);
  std::vector<at::Tensor> before;
  const bool monitored = monitor_interval_ && number % *monitor_interval_ == 0;
  if (monitored) {
    for (const Parameter& parameter : model_.parameters()) {
      if (parameter.value.grad().defined()) before.push_back(parameter.value.detach().clone());
    }
  }
  optimizer_.step(multiplier);
  if (monitored) measure_norms(before, result);
}

// After the update, of clipped gradients, under the names of Composer's OptimizerMonitor. `before`:
// what the parameters that have a gradient were; the update is what has been added to them, decay
// and rate included.
void Stepper::measure_norms(const std::vector<at::Tensor>& before, StepResult& result) const {
  at::NoGradGuard no_grad;
  std::vector<std::string> names;
  std::vector<at::Tensor> tensors;
  auto old = before.begin();
  for (const Parameter& parameter : model_.parameters()) {
    if (!parameter.value.grad().defined()) continue;
    names.push_back("l2_norm/grad/" + parameter.name);
    tensors.push_back(parameter.value.grad());
    names.push_back("l2_norm/param/" + parameter.name);
    tensors.push_back(parameter.value.detach());
    names.push_back("l2_norm/update/" + parameter.name);
    tensors.push_back(parameter.value.detach() - *old++);
  }
  const std::string first = "exp_avg/";
  for (const auto& [name, moment] : optimizer_.state()) {
    names.push_back("l2_norm/" +
                    (name.starts_with(first) ? "moment/" + name.substr(first.size()) : name));
    tensors.push_back(moment);
  }
  if (tensors.empty()) return;
  const at::Tensor norms = at::stack(at::_foreach_norm(tensors)).to(at::kDouble).cpu();
  for (std::size_t i = 0; i < names.size(); ++i) {
    result.norms.emplace_back(std::move(names[i]), norms.const_data_ptr<double>()[i]);
  }
}

void Stepper::check_trainable(const Batch& batch, std::int64_t number) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::kNonFinite, fmt::format("after step {}, {}", number, what),
                "the update ruined the weights, which were not saved; lower optimizer.lr or raise "
                "optimizer.eps");
  };
  std::vector<at::Tensor> state;
  for (const at::Tensor& parameter : parameters_) state.push_back(parameter.detach());
  for (const auto& [name, moment] : optimizer_.state()) state.push_back(moment);
  if (!all_finite(state)) refuse("a weight or a moment of the optimizer is not finite");
  StepResult result;
  const Batch head = first_rows(batch, microbatch_);
  const at::Tensor sums =
      accumulate_gradients(head.scored_tokens() > 0 ? head : batch, number, result);
  const double loss = sums.sum().item<double>();
  const double norm = global_grad_norm(parameters_).item<double>();
  optimizer_.zero_grad();
  if (!std::isfinite(loss)) refuse(fmt::format("the loss is {}", loss));
  // With a loss scale, gradients overflow now and then, and the scale adapts.
  if (!loss_scale_.enabled() && !std::isfinite(norm)) {
    refuse(fmt::format("the gradient norm is {}", norm));
  }
}

}  // namespace dropless::train
