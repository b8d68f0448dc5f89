// Parameters and their initial values.
//
// Each expert, and each part of a fused projection, is a matrix of its own for the schemes of
// InitConfig. Values are drawn on the CPU in fp32 from one generator in
// the order of construction, so that they depend on the seed alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "train/bridge/torch.h"
#include "train/nn/init_config.h"

namespace dropless::train {

struct Parameter {
  std::string name;      // LLM Foundry's, without the `model.` prefix
  at::Tensor value;      // a leaf; requires a gradient, but for what no gradient trains
  bool expert = false;   // [E * F, D]: only top_k / E of it works on a token
  bool adapter = false;  // of a LoRA adapter (train/nn/lora.h)
};

// How weights are held.
struct WeightOptions {
  at::ScalarType type = at::kFloat;
  // Of the matrices of products and embeddings, where another than `type`: that in which they are
  // multiplied, for a model that is not trained.
  std::optional<at::ScalarType> matrices = {};
  // Without, matrices hold anything until they are read from a file; adapters are drawn always.
  bool drawn = true;
};

// Makes parameters one after the other and keeps them in that order.
class ParameterMaker {
 public:
  ParameterMaker(const InitConfig& config, std::int64_t d_model, std::int64_t n_layers,
                 std::uint64_t seed, at::Device device, WeightOptions weights = {});

  // [out, in]; `residual`: it writes into the residual stream.
  at::Tensor linear(const std::string& name, std::int64_t out, std::int64_t in,
                    bool residual = false);
  // Several of them as one [sum of outs, in].
  at::Tensor fused(const std::string& name, const std::vector<std::int64_t>& outs, std::int64_t in);
  // [vocabulary, d]
  at::Tensor embedding(const std::string& name, std::int64_t rows, std::int64_t d);
  // [E * F, D]: E matrices of fan-in D (w1, v1) or fan-in F (w2, `residual`).
  at::Tensor experts(const std::string& name, std::int64_t num_experts, std::int64_t d_ffn,
                     std::int64_t d_model, bool residual);
  // The two matrices of `count` LoRA adapters: [count * r, in], drawn as PEFT draws them (torch's
  // default for a linear layer: uniform within 1 / sqrt(in)), and [count * out, r] of zeros.
  at::Tensor adapter_in(const std::string& name, std::int64_t count, std::int64_t r,
                        std::int64_t in);
  at::Tensor adapter_out(const std::string& name, std::int64_t count, std::int64_t out,
                         std::int64_t r);
  // [size]; `trained`: it requires a gradient.
  at::Tensor constant(const std::string& name, std::int64_t size, double value,
                      bool trained = true);

  at::ScalarType type() const { return weights_.type; }
  std::vector<Parameter> take() { return std::move(parameters_); }

 private:
  // A normal distribution by its standard deviation, or a uniform one by its limits.
  struct Spread {
    double std = 0;
    std::optional<std::pair<double, double>> uniform;
    friend bool operator==(const Spread&, const Spread&) = default;
  };
  Spread matrix_spread(double fan_in, double fan_out, bool residual) const;
  at::Tensor draw(const std::string& name, std::int64_t rows, std::int64_t columns,
                  const std::vector<std::pair<std::int64_t, Spread>>& parts, bool expert);

  InitConfig config_;
  double d_model_;
  double residual_divisor_;
  at::Generator generator_;
  at::Device device_;
  WeightOptions weights_;
  std::vector<Parameter> parameters_;
};

}  // namespace dropless::train
