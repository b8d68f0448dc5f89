#include "train/optim/lion.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

namespace dropless::train {

double OutlierWindow::bound(double threshold) const {
  if (delayed.empty()) return std::numeric_limits<double>::infinity();
  const double sum = std::accumulate(delayed.begin(), delayed.end(), 0.0);
  return threshold * sum / static_cast<double>(delayed.size());
}

void OutlierWindow::add(double observation) {
  recent.push_back(observation);
  if (recent.size() <= kDelay) return;
  delayed.push_back(recent.front());
  recent.pop_front();
  if (delayed.size() > kDelay) delayed.pop_front();
}

Lion::Lion(const OptimizerConfig& config, const NamedParameters& parameters)
    : Optimizer(config, parameters, {"exp_avg"}) {}

std::vector<double> Lion::scales(const GroupConfig& group, const std::vector<const Slot*>& slots) {
  std::vector<double> scales(slots.size(), 1.0);
  if (config().type == OptimizerType::kDecoupledLionW) return scales;
  const bool clips = config().type == OptimizerType::kClipLion;
  std::vector<at::Tensor> norms;
  for (const Slot* slot : slots) {
    const at::Tensor grad = slot->parameter.grad();
    norms.push_back(
        at::linalg_vector_norm(clips ? grad : slot->moments[0].lerp(grad, 1.0 - group.beta2)));
  }
  const at::Tensor host = at::stack(norms).to(at::kDouble).cpu();  // one round trip for all
  for (std::size_t i = 0; i < slots.size(); ++i) {
    OutlierWindow& window = windows_[slots[i]->name];
    const double norm = host[static_cast<std::int64_t>(i)].item<double>();
    window.add(norm);
    const double bound = window.bound(config().outlier_threshold);
    if (clips) {
      if (norm > bound) scales[i] = bound / norm;
      continue;
    }
    if (norm > bound) window.outlier_at.push_back(steps());
    std::erase_if(window.outlier_at,
                  [&](std::int64_t step) { return steps() - step > config().timeout; });
    scales[i] =
        std::max(config().min_scale, std::pow(config().lr_penalty, window.outlier_at.size()));
  }
  return scales;
}

void Lion::update(const GroupConfig& group, const std::vector<const Slot*>& slots,
                  double multiplier) {
  const std::vector<double> scale = scales(group, slots);
  const bool clips = config().type == OptimizerType::kClipLion;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const at::Tensor p = slots[i]->parameter.detach();
    const at::Tensor& exp_avg = slots[i]->moments[0];
    at::Tensor grad = slots[i]->parameter.grad();
    if (clips && scale[i] != 1) grad = grad * scale[i];
    const double rate = clips ? multiplier : multiplier * scale[i];
    if (group.weight_decay != 0) p.mul_(1.0 - group.weight_decay * rate);
    p.add_(exp_avg.lerp(grad, 1.0 - group.beta1).sign_(), -group.lr * rate);
    exp_avg.lerp_(grad, 1.0 - group.beta2);
  }
}

nlohmann::json Lion::record() const {
  nlohmann::json record;
  for (const auto& [name, window] : windows_) {
    record[name] = {
        {"recent", window.recent}, {"delayed", window.delayed}, {"outliers", window.outlier_at}};
  }
  return record;
}

void Lion::reload(const nlohmann::json& record) {
  windows_.clear();
  for (const auto& [name, window] : record.items()) {
    OutlierWindow& target = windows_[name];
    window.at("recent").get_to(target.recent);
    window.at("delayed").get_to(target.delayed);
    window.at("outliers").get_to(target.outlier_at);
  }
}

}  // namespace dropless::train
