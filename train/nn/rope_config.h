// The `rope_hf_config` of attention.
#pragma once

#include <cstdint>
#include <string>

#include "train/base/yaml.h"

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

}  // namespace dropless::train
