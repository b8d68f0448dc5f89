// Parameters and their initial values.
//
// The schemes are LLM Foundry's `init_config`: a standard deviation per matrix from its fan-in, and
// the projections that write into the residual stream divided by sqrt(2 n_layers). Values are drawn
// on the CPU from one generator in the order of construction, so that they depend on the seed
// alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/base/yaml.h"
#include "train/bridge/torch.h"

namespace dropless::train {

struct Parameter {
  std::string name;     // LLM Foundry's, without the `model.` prefix
  at::Tensor value;     // a leaf that requires a gradient
  bool expert = false;  // [E * F, D]: only top_k / E of it works on a token
};

struct InitConfig {
  // kaiming_normal_: N(0, 2 / fan_in); xavier_normal_: N(0, 2 / (fan_in + fan_out));
  // small_init_: N(0, 2 / (5 d_model)); baseline_: N(0, init_std^2)
  std::string name = "kaiming_normal_";
  double init_std = 0.02;
  double emb_init_std = 0.0;  // 0: as the scheme says
  bool init_div_is_residual = true;

  static InitConfig from_yaml(const YamlMap& map);
};

// Makes parameters one after the other and keeps them in that order.
class ParameterMaker {
 public:
  ParameterMaker(const InitConfig& config, std::int64_t d_model, std::int64_t n_layers,
                 std::uint64_t seed, at::Device device);

  // [out, in]; `residual`: it writes into the residual stream.
  at::Tensor linear(const std::string& name, std::int64_t out, std::int64_t in,
                    bool residual = false);
  // [vocabulary, d]
  at::Tensor embedding(const std::string& name, std::int64_t rows, std::int64_t d);
  // [E * F, D]: E matrices of fan-in D (w1, v1) or fan-in F (w2, `residual`).
  at::Tensor experts(const std::string& name, std::int64_t num_experts, std::int64_t d_ffn,
                     std::int64_t d_model, bool residual);
  at::Tensor constant(const std::string& name, std::int64_t size, double value);

  std::vector<Parameter> take() { return std::move(parameters_); }

 private:
  at::Tensor normal(const std::string& name, std::int64_t rows, std::int64_t columns, double std,
                    bool expert);
  double matrix_std(double fan_in, double fan_out, bool residual) const;

  InitConfig config_;
  double d_model_;
  double residual_scale_;
  at::Generator generator_;
  at::Device device_;
  std::vector<Parameter> parameters_;
};

}  // namespace dropless::train
