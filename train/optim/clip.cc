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

}  // namespace

ClipConfig ClipConfig::from_yaml(const YamlMap& map) {
  ClipConfig config;
  const std::string type = map.get<std::string>("clipping_type");
  if (type != "norm" && type != "value") {
    map.fail("clipping_type", "clipping_type " + type + " is not supported by this version",
             "one of: norm, value");
  }
  config.by_value = type == "value";
  config.threshold = map.positive<double>("clipping_threshold");
  map.finish();
  return config;
}

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
  if (config.by_value) {
    for (const at::Tensor& grad : grads) grad.clamp_(-config.threshold, config.threshold);
    return;
  }
  // On the device: no round trip decides whether to scale. The 1e-6 is torch's own guard.
  at::_foreach_mul_(grads, at::clamp_max(config.threshold / (norm + 1e-6), 1.0));
}

}  // namespace dropless::train
