#include "train/optim/clip.h"

namespace dropless::train {
namespace {

std::vector<at::Tensor> gradients(const std::vector<at::Tensor>& parameters) {
  std::vector<at::Tensor> grads;
  for (const at::Tensor& parameter : parameters) {
    if (parameter.grad().defined()) grads.push_back(parameter.grad());
  }
  return grads;
}

void clip_rows(const at::Tensor& weight, const at::Tensor& grad, double threshold) {
  constexpr double kLeastWeightNorm = 1e-3;
  const auto norm = [](const at::Tensor& x) {
    return x.dim() < 2 ? at::linalg_vector_norm(x)
                       : at::linalg_vector_norm(x.flatten(1), 2, 1, /*keepdim=*/true);
  };
  // A gradient of 0 gives an infinite factor, hence 1.
  grad.mul_((norm(weight).clamp_min(kLeastWeightNorm) * threshold / norm(grad)).clamp_max(1.0));
}

}  // namespace

at::Tensor global_grad_norm(const std::vector<at::Tensor>& parameters) {
  at::NoGradGuard no_grad;
  const std::vector<at::Tensor> grads = gradients(parameters);
  if (grads.empty()) return at::zeros({}, at::kFloat);
  return at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2)), 2);
}

void clip_gradients(const ClipConfig& config, const std::vector<at::Tensor>& parameters,
                    const at::Tensor& norm) {
  at::NoGradGuard no_grad;
  const std::vector<at::Tensor> grads = gradients(parameters);
  if (grads.empty()) return;
  if (config.type == ClipType::kValue) {
    for (const at::Tensor& grad : grads) grad.clamp_(-config.threshold, config.threshold);
    return;
  }
  if (config.type == ClipType::kAdaptive) {
    for (const at::Tensor& parameter : parameters) {
      if (parameter.grad().defined())
        clip_rows(parameter.detach(), parameter.grad(), config.threshold);
    }
    return;
  }
  // On the device: no round trip decides whether to scale. The 1e-6 is torch's own guard.
  at::_foreach_mul_(grads, at::clamp_max(config.threshold / (norm + 1e-6), 1.0));
}

}  // namespace dropless::train
