#include "train/optim/adamw.h"

namespace dropless::train {

AdamW::AdamW(const OptimizerConfig& config, const NamedParameters& parameters)
    : Optimizer(config, parameters, {"exp_avg", "exp_avg_sq"}) {
  step_ = at::zeros({}, parameters.at(0).second.options().dtype(at::kFloat).requires_grad(false));
}

void AdamW::update(const GroupConfig& group, const std::vector<const Slot*>& slots,
                   double multiplier) {
  step_.fill_(static_cast<double>(steps()));
  std::vector<at::Tensor> parameters, grads, exp_avgs, exp_avg_sqs, step_counts;
  for (const Slot* slot : slots) {
    parameters.push_back(slot->parameter.detach());
    grads.push_back(slot->parameter.grad());
    exp_avgs.push_back(slot->moments[0]);
    exp_avg_sqs.push_back(slot->moments[1]);
    step_counts.push_back(step_);  // all have made the same number of steps
  }
  // libtorch decays by lr * weight_decay; dividing by lr_0 gives wd * lr / lr_0.
  const bool decoupled = config().type == OptimizerType::kDecoupledAdamW;
  at::_fused_adamw_(parameters, grads, exp_avgs, exp_avg_sqs, /*max_exp_avg_sqs=*/{}, step_counts,
                    group.lr * multiplier, group.beta1, group.beta2,
                    decoupled ? group.weight_decay / group.lr : group.weight_decay, group.eps,
                    /*amsgrad=*/false, /*maximize=*/false);
}

}  // namespace dropless::train
