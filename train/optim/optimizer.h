// What all optimizers have in common: groups of parameters, the memory of past gradients that each
// keeps for a parameter, and how a checkpoint carries it.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "train/bridge/torch.h"
#include "train/optim/optimizer_config.h"

namespace dropless::train {

using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

class Optimizer {
 public:
  virtual ~Optimizer() = default;

  // One update at learning rates lr * multiplier. Parameters without a gradient are left alone.
  void step(double multiplier);
  void zero_grad();  // frees the gradients

  // "exp_avg/NAME" ...: the optimizer's own memory of each parameter (to be saved, or loaded in
  // place).
  NamedParameters state() const;
  std::int64_t steps() const { return steps_; }
  void set_steps(std::int64_t steps) { steps_ = steps; }
  // What it remembers besides; null where there is nothing.
  virtual nlohmann::json record() const;
  // Throws nlohmann::json::exception where that is not what record() gave.
  virtual void reload(const nlohmann::json& record);

  std::size_t num_groups() const { return groups_.size(); }
  double lr(std::size_t group) const { return groups_[group].config.lr; }
  const char* class_name() const { return optimizer_class_name(config_.type); }

 protected:
  struct Slot {
    std::string name;
    at::Tensor parameter;
    std::vector<at::Tensor> moments;
  };
  struct Group {
    GroupConfig config;
    std::vector<Slot> slots;
  };

  // Leaves whose .grad() step() reads. Those that disable_grad names are set not to require one and
  // have no slot. Throws Error(kInvalidArgument), see OptimizerConfig::assign_groups.
  Optimizer(const OptimizerConfig& config, const NamedParameters& parameters,
            std::vector<std::string> moment_names);
  // The slots of `group` that have a gradient, in order; steps() counts this step already.
  virtual void update(const GroupConfig& group, const std::vector<const Slot*>& slots,
                      double multiplier) = 0;

  const OptimizerConfig& config() const { return config_; }

 private:
  OptimizerConfig config_;
  std::vector<std::string> moment_names_;
  std::vector<Group> groups_;
  std::int64_t steps_ = 0;
};

std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                          const NamedParameters& parameters);

}  // namespace dropless::train
