// Rotary position embedding (Su et al. 2021, arXiv:2104.09864), rotate-half form (GPT-NeoX, Llama):
// with angles a_i = position * theta^(-2i/d), i < d/2,
//   y[i]       = x[i] cos a_i - x[i + d/2] sin a_i
//   y[i + d/2] = x[i + d/2] cos a_i + x[i] sin a_i
#pragma once

#include <cstdint>

#include "train/bridge/torch.h"

namespace dropless::train {

class Rope {
 public:
  Rope(std::int64_t head_dim, double theta, at::Device device);
  // x [B, S, heads, head_dim] of tokens at positions first, first + 1, ...
  at::Tensor forward(const at::Tensor& x, std::int64_t first);

 private:
  void grow(std::int64_t positions);

  std::int64_t half_;
  double theta_;
  at::Device device_;
  at::Tensor cos_, sin_;  // [positions, 1, head_dim / 2], fp32
};

}  // namespace dropless::train
