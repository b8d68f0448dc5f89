// AdamW with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101):
//
//   p <- p (1 - decay)     decoupled_adamw: wd lr / lr_0, Composer's form, where the decay does not
//                          grow with the learning rate's absolute value; adamw: wd lr, torch's
//   m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
//   p <- p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
//
// with lr_0 the configured rate and lr the scheduled one.
#pragma once

#include <vector>

#include "train/optim/optimizer.h"

namespace dropless::train {

class AdamW : public Optimizer {
 public:
  AdamW(const OptimizerConfig& config, const NamedParameters& parameters);

 protected:
  void update(const GroupConfig& group, const std::vector<const Slot*>& slots,
              double multiplier) override;

 private:
  at::Tensor step_;  // fp32, the count of steps on the parameters' device
};

}  // namespace dropless::train
