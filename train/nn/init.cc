#include "train/nn/init.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

namespace dropless::train {

ParameterMaker::ParameterMaker(const InitConfig& config, std::int64_t d_model,
                               std::int64_t n_layers, std::uint64_t seed, at::Device device,
                               WeightOptions weights)
    : config_(config),
      d_model_(static_cast<double>(d_model)),
      residual_divisor_(config.residual_divisor),
      generator_(at::detail::createCPUGenerator(seed)),
      device_(device),
      weights_(weights) {
  if (residual_divisor_ != 0) return;
  const auto layers = static_cast<double>(n_layers);
  residual_divisor_ =
      config.scheme == InitScheme::kNeox ? layers / std::sqrt(10.0) : std::sqrt(2.0 * layers);
}

ParameterMaker::Spread ParameterMaker::matrix_spread(double fan_in, double fan_out,
                                                     bool residual) const {
  Spread spread{config_.init_std, {}};
  if (is_kaiming(config_.scheme)) {
    spread.std = std::sqrt(config_.squared_gain / (config_.fan_out ? fan_out : fan_in));
  } else if (is_xavier(config_.scheme)) {
    spread.std = std::sqrt(2.0 * config_.squared_gain / (fan_in + fan_out));
  } else if (config_.scheme != InitScheme::kBaseline) {
    spread.std = std::sqrt(2.0 / (5.0 * d_model_));
  }
  if (residual) spread.std *= 1.0 / residual_divisor_;
  if (config_.scheme == InitScheme::kKaimingUniform ||
      config_.scheme == InitScheme::kXavierUniform) {
    const double limit = std::sqrt(3.0) * spread.std;
    spread.uniform = {-limit, limit};
  }
  return spread;
}

// `parts`: a number of rows and their spread, one after the other.
at::Tensor ParameterMaker::draw(const std::string& name, std::int64_t rows, std::int64_t columns,
                                const std::vector<std::pair<std::int64_t, Spread>>& parts,
                                bool expert) {
  const at::ScalarType type = weights_.matrices.value_or(weights_.type);
  at::Tensor value;
  if (device_.is_meta() || !weights_.drawn) {
    value = at::empty({rows, columns}, at::TensorOptions(type).device(device_));
  } else {
    value = at::empty({rows, columns}, at::kFloat);
    std::int64_t first = 0;
    for (const auto& [count, spread] : parts) {
      at::Tensor part = value.narrow(0, first, count);
      first += count;
      if (spread.uniform) {
        part.uniform_(spread.uniform->first, spread.uniform->second, generator_);
      } else {
        part.normal_(0.0, spread.std, generator_);
      }
    }
    value = value.to(device_, type);
  }
  value.set_requires_grad(true);
  parameters_.push_back({name, value, expert});
  return value;
}

at::Tensor ParameterMaker::linear(const std::string& name, std::int64_t out, std::int64_t in,
                                  bool residual) {
  return draw(name, out, in, {{out, matrix_spread(double(in), double(out), residual)}}, false);
}

at::Tensor ParameterMaker::fused(const std::string& name, const std::vector<std::int64_t>& outs,
                                 std::int64_t in) {
  std::vector<std::pair<std::int64_t, Spread>> parts;
  std::int64_t rows = 0;
  for (const std::int64_t out : outs) {
    const Spread spread = matrix_spread(double(in), double(out), false);
    rows += out;
    // Parts of one spread are one draw, which is what the parameter was before it had parts.
    if (!parts.empty() && parts.back().second == spread) {
      parts.back().first += out;
    } else {
      parts.emplace_back(out, spread);
    }
  }
  return draw(name, rows, in, parts, false);
}

at::Tensor ParameterMaker::embedding(const std::string& name, std::int64_t rows, std::int64_t d) {
  Spread spread = matrix_spread(double(d), double(rows), false);
  if (config_.emb_init_std) spread = {*config_.emb_init_std, {}};
  if (config_.emb_uniform) spread = {0, config_.emb_uniform};
  return draw(name, rows, d, {{rows, spread}}, false);
}

at::Tensor ParameterMaker::experts(const std::string& name, std::int64_t num_experts,
                                   std::int64_t d_ffn, std::int64_t d_model, bool residual) {
  const double fan_in = residual ? double(d_ffn) : double(d_model);
  const double fan_out = residual ? double(d_model) : double(d_ffn);
  const std::int64_t rows = num_experts * d_ffn;
  return draw(name, rows, d_model, {{rows, matrix_spread(fan_in, fan_out, residual)}}, true);
}

at::Tensor ParameterMaker::adapter_in(const std::string& name, std::int64_t count, std::int64_t r,
                                      std::int64_t in) {
  const double limit = 1 / std::sqrt(static_cast<double>(in));
  const Spread spread{0, std::pair(-limit, limit)};
  const WeightOptions others = std::exchange(weights_, {.type = weights_.type});
  const at::Tensor value = draw(name, count * r, in, {{count * r, spread}}, count > 1);
  weights_ = others;
  parameters_.back().adapter = true;
  return value;
}

at::Tensor ParameterMaker::adapter_out(const std::string& name, std::int64_t count,
                                       std::int64_t out, std::int64_t r) {
  at::Tensor value = at::zeros({count * out, r}, at::TensorOptions(at::kFloat).device(device_));
  value.set_requires_grad(true);
  parameters_.push_back({name, value, count > 1, /*adapter=*/true});
  return value;
}

at::Tensor ParameterMaker::constant(const std::string& name, std::int64_t size, double value,
                                    bool trained) {
  at::Tensor tensor = at::full({size}, value, at::TensorOptions(weights_.type).device(device_));
  tensor.set_requires_grad(trained);
  parameters_.push_back({name, tensor, false});
  return tensor;
}

}  // namespace dropless::train
