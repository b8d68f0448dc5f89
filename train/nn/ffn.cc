#include "train/nn/ffn.h"

#include "dropless/error.h"

namespace dropless::train {

Activation activation_from_yaml(const YamlMap& map, Activation fallback) {
  if (!map.has("ffn_act_fn")) {
    map.skip("ffn_act_fn");
    return fallback;
  }
  std::string name;
  Activation activation = fallback;
  if (map.is_map("ffn_act_fn")) {
    const YamlMap act = map.map("ffn_act_fn");
    name = act.get<std::string>("name");
    const std::string approximate = act.get<std::string>("approximate", "none");
    if (approximate != "none" && approximate != "tanh") {
      act.fail("approximate", "approximate is `none` or `tanh`, not " + approximate);
    }
    if (name == "gelu" && approximate == "tanh") name = "gelu_tanh";
    act.finish();
  } else {
    name = map.get<std::string>("ffn_act_fn");
  }
  if (name == "silu") {
    activation = Activation::kSilu;
  } else if (name == "gelu") {
    activation = Activation::kGelu;
  } else if (name == "gelu_tanh") {
    activation = Activation::kGeluTanh;
  } else if (name == "relu") {
    activation = Activation::kRelu;
  } else if (name == "quick_gelu") {
    activation = Activation::kQuickGelu;
  } else {
    map.fail("ffn_act_fn", "unknown activation " + name,
             "one of: silu, gelu, gelu_tanh, relu, quick_gelu");
  }
  return activation;
}

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
}

at::Tensor Ffn::forward(const at::Tensor& x) const {
  const at::Tensor up = at::linear(x, up_, up_bias_);
  const at::Tensor a =
      config_.glu ? apply_activation(config_.activation, at::linear(x, gate_, gate_bias_), up)
                  : apply_activation(config_.activation, up, at::Tensor());
  return at::linear(a, down_, down_bias_);
}

}  // namespace dropless::train
