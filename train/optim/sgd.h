// Stochastic gradient descent with torch.optim.SGD's momentum and (coupled) weight decay:
//
//   g <- g + wd p
//   b <- momentum b + (1 - dampening) g      the first step: b <- g
//   p <- p - lr (nesterov ? g + momentum b : b)
#pragma once

#include <vector>

#include "train/optim/optimizer.h"

namespace dropless::train {

class Sgd : public Optimizer {
 public:
  Sgd(const OptimizerConfig& config, const NamedParameters& parameters);

 protected:
  void update(const GroupConfig& group, const std::vector<const Slot*>& slots,
              double multiplier) override;
};

}  // namespace dropless::train
