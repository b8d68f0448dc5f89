#include "train/optim/adamw.h"

namespace dropless::train {

AdamWConfig AdamWConfig::from_yaml(const YamlMap& map) {
  const std::string name = map.get<std::string>("name", "decoupled_adamw");
  if (name != "decoupled_adamw") {
    map.fail("name", "optimizer " + name + " is not supported by this version",
             "use decoupled_adamw");
  }
  AdamWConfig config;
  config.lr = map.positive<double>("lr", config.lr);
  const auto betas = map.get<std::vector<double>>("betas", {config.beta1, config.beta2});
  if (betas.size() != 2) map.fail("betas", "betas takes two numbers");
  config.beta1 = betas[0];
  config.beta2 = betas[1];
  config.eps = map.non_negative<double>("eps", config.eps);
  config.weight_decay = map.non_negative<double>("weight_decay", config.weight_decay);
  for (const double beta : betas) {
    if (beta < 0 || beta >= 1) map.fail("betas", "betas must be in [0, 1)");
  }
  map.finish();
  return config;
}

DecoupledAdamW::DecoupledAdamW(const AdamWConfig& config,
                               std::vector<std::pair<std::string, at::Tensor>> parameters)
    : config_(config) {
  for (const auto& [name, parameter] : parameters) {
    const at::Tensor value = parameter.detach();
    slots_.push_back({name, parameter, at::zeros_like(value), at::zeros_like(value),
                      at::zeros({}, value.options().dtype(at::kFloat))});
  }
}

void DecoupledAdamW::step(double multiplier) {
  at::NoGradGuard no_grad;
  ++steps_;
  std::vector<at::Tensor> parameters, grads, exp_avgs, exp_avg_sqs, steps;
  for (const Slot& slot : slots_) {
    // The kernel wants the count after this step; it is the same for all, so it is kept once.
    slot.step.fill_(static_cast<double>(steps_));
    if (!slot.parameter.grad().defined()) continue;
    parameters.push_back(slot.parameter.detach());
    grads.push_back(slot.parameter.grad());
    exp_avgs.push_back(slot.exp_avg);
    exp_avg_sqs.push_back(slot.exp_avg_sq);
    steps.push_back(slot.step);
  }
  if (parameters.empty()) return;
  // libtorch decays by lr * weight_decay; dividing by lr_0 gives wd * lr / lr_0.
  at::_fused_adamw_(parameters, grads, exp_avgs, exp_avg_sqs, /*max_exp_avg_sqs=*/{}, steps,
                    config_.lr * multiplier, config_.beta1, config_.beta2,
                    config_.weight_decay / config_.lr, config_.eps, /*amsgrad=*/false,
                    /*maximize=*/false);
}

void DecoupledAdamW::zero_grad() {
  for (Slot& slot : slots_) slot.parameter.mutable_grad().reset();
}

std::vector<std::pair<std::string, at::Tensor>> DecoupledAdamW::state() const {
  std::vector<std::pair<std::string, at::Tensor>> state;
  for (const Slot& slot : slots_) {
    state.emplace_back("exp_avg/" + slot.name, slot.exp_avg);
    state.emplace_back("exp_avg_sq/" + slot.name, slot.exp_avg_sq);
  }
  return state;
}

void DecoupledAdamW::set_steps(std::int64_t steps) { steps_ = steps; }

}  // namespace dropless::train
