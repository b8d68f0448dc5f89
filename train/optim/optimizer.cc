#include "train/optim/optimizer.h"

#include <nlohmann/json.hpp>

#include "train/optim/adamw.h"
#include "train/optim/lion.h"
#include "train/optim/sgd.h"

namespace dropless::train {
namespace {

// Changes nothing: for timing a step without its update.
class NoOp : public Optimizer {
 public:
  NoOp(const OptimizerConfig& config, const NamedParameters& parameters)
      : Optimizer(config, parameters, {}) {}

 protected:
  void update(const GroupConfig&, const std::vector<const Slot*>&, double) override {}
};

}  // namespace

Optimizer::Optimizer(const OptimizerConfig& config, const NamedParameters& parameters,
                     std::vector<std::string> moment_names)
    : config_(config), moment_names_(std::move(moment_names)) {
  std::vector<std::string> names;
  for (const auto& [name, parameter] : parameters) names.push_back(name);
  const std::vector<int> group_of = config_.assign_groups(names);
  groups_.push_back({config_.all, {}});
  for (const OptimizerConfig::NamedGroup& group : config_.groups) {
    groups_.push_back({group.config, {}});
  }
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto& [name, parameter] = parameters[i];
    if (group_of[i] < 0) {
      parameter.set_requires_grad(false);
      continue;
    }
    Slot slot{name, parameter, {}};
    for (std::size_t m = 0; m < moment_names_.size(); ++m) {
      slot.moments.push_back(at::zeros_like(parameter.detach()));
    }
    groups_[group_of[i]].slots.push_back(std::move(slot));
  }
}

void Optimizer::step(double multiplier) {
  at::NoGradGuard no_grad;
  ++steps_;
  for (const Group& group : groups_) {
    std::vector<const Slot*> slots;
    for (const Slot& slot : group.slots) {
      if (slot.parameter.grad().defined()) slots.push_back(&slot);
    }
    if (!slots.empty()) update(group.config, slots, multiplier);
  }
}

void Optimizer::zero_grad() {
  for (Group& group : groups_) {
    for (Slot& slot : group.slots) slot.parameter.mutable_grad().reset();
  }
}

NamedParameters Optimizer::state() const {
  NamedParameters state;
  for (const Group& group : groups_) {
    for (const Slot& slot : group.slots) {
      for (std::size_t m = 0; m < moment_names_.size(); ++m) {
        state.emplace_back(moment_names_[m] + "/" + slot.name, slot.moments[m]);
      }
    }
  }
  return state;
}

nlohmann::json Optimizer::record() const { return nullptr; }
void Optimizer::reload(const nlohmann::json&) {}

std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                          const NamedParameters& parameters) {
  switch (config.type) {
    case OptimizerType::kDecoupledAdamW:
    case OptimizerType::kAdamW:
      return std::make_unique<AdamW>(config, parameters);
    case OptimizerType::kDecoupledLionW:
    case OptimizerType::kClipLion:
    case OptimizerType::kAdaLrLion:
      return std::make_unique<Lion>(config, parameters);
    case OptimizerType::kSgd:
      return std::make_unique<Sgd>(config, parameters);
    case OptimizerType::kNoOp:
      break;
  }
  return std::make_unique<NoOp>(config, parameters);
}

}  // namespace dropless::train
