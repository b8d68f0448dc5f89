#include "train/nn/ffn.h"

#include "train/nn/linear.h"

namespace dropless::train {

at::Tensor apply_activation(Activation activation, const at::Tensor& gate, const at::Tensor& up) {
  at::Tensor a;
  switch (activation) {
    case Activation::kSilu:
      a = at::silu(gate);
      break;
    case Activation::kGeluTanh:
      a = at::gelu(gate, "tanh");
      break;
    case Activation::kGelu:
      a = at::gelu(gate);
      break;
    case Activation::kRelu:
      a = at::relu(gate);
      break;
    case Activation::kQuickGelu:
      a = gate * at::sigmoid(gate * 1.702);
      break;
  }
  return up.defined() ? a * up : a;
}

Ffn::Ffn(const FfnConfig& config, const std::string& name, ParameterMaker& maker)
    : config_(config) {
  auto bias = [&](const char* part, std::int64_t size) {
    return config.bias ? maker.constant(name + part + ".bias", size, 0.0) : at::Tensor();
  };
  up_ = maker.linear(name + ".up_proj.weight", config.d_ffn, config.d_model);
  up_bias_ = bias(".up_proj", config.d_ffn);
  if (config.glu) {
    gate_ = maker.linear(name + ".gate_proj.weight", config.d_ffn, config.d_model);
    gate_bias_ = bias(".gate_proj", config.d_ffn);
  }
  down_ = maker.linear(name + ".down_proj.weight", config.d_model, config.d_ffn, /*residual=*/true);
  down_bias_ = bias(".down_proj", config.d_model);
  if (!config.lora) return;
  const auto adapter = [&](LoraTarget target, std::int64_t out, std::int64_t in) {
    if (!config.lora->has(target)) return LoraAdapter();
    return LoraAdapter(*config.lora, name + "." + lora_target_name(target), out, in, maker);
  };
  if (config.glu) gate_adapter_ = adapter(LoraTarget::kGate, config.d_ffn, config.d_model);
  up_adapter_ = adapter(LoraTarget::kUp, config.d_ffn, config.d_model);
  down_adapter_ = adapter(LoraTarget::kDown, config.d_model, config.d_ffn);
}

at::Tensor Ffn::forward(const at::Tensor& x, bool training) const {
  const at::Tensor up = up_adapter_.add_to(linear_layer(x, up_, up_bias_), x, training);
  at::Tensor a;
  if (config_.glu) {
    const at::Tensor gate = gate_adapter_.add_to(linear_layer(x, gate_, gate_bias_), x, training);
    a = apply_activation(config_.activation, gate, up);
  } else {
    a = apply_activation(config_.activation, up, at::Tensor());
  }
  return down_adapter_.add_to(linear_layer(a, down_, down_bias_), a, training);
}

}  // namespace dropless::train
