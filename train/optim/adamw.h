// AdamW with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101), in Composer's
// form, where the decay does not grow with the learning rate's absolute value:
//
//   p <- p (1 - wd lr / lr_0)              lr_0: the configured rate, lr: the scheduled one
//   m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
//   p <- p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "train/base/yaml.h"
#include "train/bridge/torch.h"

namespace dropless::train {

struct AdamWConfig {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 1e-5;

  // Reads the `optimizer` block (name: decoupled_adamw). Throws Error(kInvalidArgument).
  static AdamWConfig from_yaml(const YamlMap& map);
};

class DecoupledAdamW {
 public:
  // (name, parameter) pairs; parameters are leaves whose .grad() step() reads.
  DecoupledAdamW(const AdamWConfig& config,
                 std::vector<std::pair<std::string, at::Tensor>> parameters);

  // One update at learning rate lr_0 * multiplier. Parameters without a gradient are left alone.
  void step(double multiplier);
  void zero_grad();  // frees the gradients

  // "exp_avg/NAME", "exp_avg_sq/NAME": the moments, the optimizer's own memory (to be saved, or
  // loaded in place).
  std::vector<std::pair<std::string, at::Tensor>> state() const;
  std::int64_t steps() const { return steps_; }
  void set_steps(std::int64_t steps);

  const AdamWConfig& config() const { return config_; }
  static constexpr const char* kClassName = "DecoupledAdamW";  // as in metric names

 private:
  struct Slot {
    std::string name;
    at::Tensor parameter, exp_avg, exp_avg_sq, step;
  };

  AdamWConfig config_;
  std::vector<Slot> slots_;
  std::int64_t steps_ = 0;
};

}  // namespace dropless::train
