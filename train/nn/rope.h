// Rotary position embedding (Su et al. 2021, arXiv:2104.09864), rotate-half form (GPT-NeoX, Llama):
// with angles a_i = position * f_i, f_i = theta^(-2i/d), i < d/2,
//   y[i]       = x[i] cos a_i - x[i + d/2] sin a_i
//   y[i + d/2] = x[i + d/2] cos a_i + x[i] sin a_i
#pragma once

#include <cstdint>
#include <utility>

#include "train/bridge/torch.h"
#include "train/nn/rope_config.h"

namespace dropless::train {

// The frequencies f_i of a pass over `positions` positions, fp64 [head_dim / 2].
at::Tensor rope_frequencies(std::int64_t head_dim, double theta, const RopeScaling& scaling,
                            std::int64_t positions);

class Rope {
 public:
  // `type`: of its tables.
  Rope(std::int64_t head_dim, double theta, const RopeScaling& scaling, at::Device device,
       at::ScalarType type = at::kFloat);
  // x [B, S, heads, head_dim] of tokens at positions first, first + 1, ...
  at::Tensor forward(const at::Tensor& x, std::int64_t first);
  // Of at least `positions` rows, [P, head_dim / 2] each.
  std::pair<at::Tensor, at::Tensor> tables(std::int64_t positions);
  // x [B, 1, heads, head_dim] at a position that only the device knows, int64 [1], below `positions`.
  at::Tensor forward_at(const at::Tensor& x, const at::Tensor& position_1, std::int64_t positions);

 private:
  void fill(std::int64_t positions);
  void cast_tables(const at::Tensor& x);

  std::int64_t head_dim_;
  double theta_;
  RopeScaling scaling_;
  at::Device device_;
  at::ScalarType type_;
  std::int64_t filled_for_ = 0;     // positions whose frequencies the tables have
  at::Tensor cos_, sin_;            // [positions, 1, head_dim / 2]
  at::Tensor cast_cos_, cast_sin_;  // the same in the type that was last asked for
};

}  // namespace dropless::train
