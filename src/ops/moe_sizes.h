// The sizes of one layer call, under the letters of moe.h's shape legend.
#pragma once

#include <cstdint>

#include "dropless/moe.h"
#include "src/common/dispatch.h"

namespace dropless {

struct MoESizes {
  std::int64_t T, D, F, E, K, R, S;
  DType dtype, sums;  // sums: what logits, routing weights and losses are made in
  MoESizes(const MoEConfig& config, std::int64_t tokens, DType dtype)
      : T(tokens),
        D(config.d_model),
        F(config.d_ffn),
        E(config.num_experts),
        K(config.top_k),
        R(T * K),
        S(config.shared_d_ffn),
        dtype(dtype),
        sums(accumulator_dtype(dtype)) {}
};

}  // namespace dropless
