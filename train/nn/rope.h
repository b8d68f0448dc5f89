// Rotary position embedding (Su et al. 2021, arXiv:2104.09864), rotate-half form (GPT-NeoX, Llama):
// with angles a_i = position * f_i, f_i = theta^(-2i/d), i < d/2,
//   y[i]       = x[i] cos a_i - x[i + d/2] sin a_i
//   y[i + d/2] = x[i + d/2] cos a_i + x[i] sin a_i
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "train/base/yaml.h"
#include "train/bridge/torch.h"

namespace dropless::train {

// How frequencies are stretched for rows longer than the N positions of the first training, by
// transformers' formulas:
//
//   linear   f_i / factor
//   dynamic  in a pass over n > N positions, theta (factor n / N - (factor - 1))^(d / (d - 2)) is the
//            base ("NTK-aware"); N is the model's max_seq_len
//   llama3   by the turns t = N f_i / 2 pi that N positions make:  f_i where t > high_freq_factor,
//            f_i / factor where t < low_freq_factor, and in between
//            f_i (s + (1 - s) / factor) with s = (t - low) / (high - low)
//   yarn     f_i (r / factor + 1 - r), r rising from 0 at the index that makes beta_fast turns to 1 at
//            the one that makes beta_slow; cos and sin times attention_factor (Peng et al. 2023,
//            arXiv:2309.00071)
struct RopeScaling {
  enum class Type { kNone, kLinear, kDynamic, kLlama3, kYarn };
  Type type = Type::kNone;
  double factor = 1;
  std::int64_t original_max_seq_len = 0;             // N
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn, as the two below
  double attention_factor = 1;
  bool truncate = true;  // the two indices to whole numbers, outwards

  // Reads `rope_hf_config`. Throws Error(kInvalidArgument).
  static RopeScaling from_yaml(const YamlMap& map, std::int64_t max_seq_len);

  const char* type_name() const;
  // All that decides the angles, for comparison: "llama3, factor 8, ...".
  std::string describe() const;
  // Whether the angles of a pass depend on its length, so that keys rotated for a shorter one are of
  // no use any more.
  bool depends_on_length(std::int64_t positions) const {
    return type == Type::kDynamic && positions > original_max_seq_len;
  }
};

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
