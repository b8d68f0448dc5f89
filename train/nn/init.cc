#include "train/nn/init.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

namespace dropless::train {

InitConfig InitConfig::from_yaml(const YamlMap& map) {
  InitConfig config;
  config.name = map.get<std::string>("name", config.name);
  if (config.name != "kaiming_normal_" && config.name != "xavier_normal_" &&
      config.name != "small_init_" && config.name != "baseline_") {
    map.fail("name", "unknown initialisation " + config.name,
             "one of: kaiming_normal_, xavier_normal_, small_init_, baseline_");
  }
  config.init_std = map.positive<double>("init_std", config.init_std);
  if (config.name != "baseline_") map.no_effect("init_std", config.name + " derives it from sizes");
  config.emb_init_std = map.non_negative<double>("emb_init_std", config.emb_init_std);
  config.init_div_is_residual = map.get<bool>("init_div_is_residual", config.init_div_is_residual);
  map.finish();
  return config;
}

ParameterMaker::ParameterMaker(const InitConfig& config, std::int64_t d_model,
                               std::int64_t n_layers, std::uint64_t seed, at::Device device)
    : config_(config),
      d_model_(static_cast<double>(d_model)),
      residual_scale_(config.init_div_is_residual ? 1.0 / std::sqrt(2.0 * n_layers) : 1.0),
      generator_(at::detail::createCPUGenerator(seed)),
      device_(device) {}

double ParameterMaker::matrix_std(double fan_in, double fan_out, bool residual) const {
  double std = config_.init_std;
  if (config_.name == "kaiming_normal_") std = std::sqrt(2.0 / fan_in);
  if (config_.name == "xavier_normal_") std = std::sqrt(2.0 / (fan_in + fan_out));
  if (config_.name == "small_init_") std = std::sqrt(2.0 / (5.0 * d_model_));
  return residual ? std * residual_scale_ : std;
}

at::Tensor ParameterMaker::normal(const std::string& name, std::int64_t rows, std::int64_t columns,
                                  double std, bool expert) {
  at::Tensor value;
  if (device_.is_meta()) {
    value = at::empty({rows, columns}, at::TensorOptions(at::kFloat).device(device_));
  } else {
    value = at::empty({rows, columns}, at::kFloat).normal_(0.0, std, generator_).to(device_);
  }
  value.set_requires_grad(true);
  parameters_.push_back({name, value, expert});
  return value;
}

at::Tensor ParameterMaker::linear(const std::string& name, std::int64_t out, std::int64_t in,
                                  bool residual) {
  return normal(name, out, in, matrix_std(double(in), double(out), residual), false);
}

at::Tensor ParameterMaker::embedding(const std::string& name, std::int64_t rows, std::int64_t d) {
  const double std =
      config_.emb_init_std > 0 ? config_.emb_init_std : matrix_std(double(d), double(rows), false);
  return normal(name, rows, d, std, false);
}

at::Tensor ParameterMaker::experts(const std::string& name, std::int64_t num_experts,
                                   std::int64_t d_ffn, std::int64_t d_model, bool residual) {
  const double fan_in = residual ? double(d_ffn) : double(d_model);
  const double fan_out = residual ? double(d_model) : double(d_ffn);
  return normal(name, num_experts * d_ffn, d_model, matrix_std(fan_in, fan_out, residual), true);
}

at::Tensor ParameterMaker::constant(const std::string& name, std::int64_t size, double value) {
  at::Tensor tensor = at::full({size}, value, at::TensorOptions(at::kFloat).device(device_));
  tensor.set_requires_grad(true);
  parameters_.push_back({name, tensor, false});
  return tensor;
}

}  // namespace dropless::train
