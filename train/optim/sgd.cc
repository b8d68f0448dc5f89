#include "train/optim/sgd.h"

namespace dropless::train {

Sgd::Sgd(const OptimizerConfig& config, const NamedParameters& parameters)
    : Optimizer(config, parameters, std::vector<std::string>(config.moments(), "momentum_buffer")) {
}

void Sgd::update(const GroupConfig& group, const std::vector<const Slot*>& slots,
                 double multiplier) {
  for (const Slot* slot : slots) {
    const at::Tensor p = slot->parameter.detach();
    at::Tensor grad = slot->parameter.grad();
    if (group.weight_decay != 0) grad = grad.add(p, group.weight_decay);
    if (group.momentum > 0) {
      const at::Tensor& buffer = slot->moments[0];
      if (steps() == 1) {
        buffer.copy_(grad);
      } else {
        buffer.mul_(group.momentum).add_(grad, 1.0 - config().dampening);
      }
      grad = config().nesterov ? grad.add(buffer, group.momentum) : buffer;
    }
    p.add_(grad, -group.lr * multiplier);
  }
}

}  // namespace dropless::train
