// Checked arguments of the ops of include/dropless/decode.h, the same for every device. Null: absent.
#pragma once

#include <cstdint>

#include "dropless/decode.h"

namespace dropless {

struct DecodeProductArgs {
  DType dtype;  // of x, w and out
  std::int64_t rows, n, k;
  const void *x_BK, *w_NK;
  const float* bias_N;
  void* out_BN;
};

struct DecodeAddNormArgs {
  DType dtype;  // of y and out
  std::int64_t rows, width;
  float* x_BD;
  const void* y_BD;
  DecodeNorm norm;
  void* out_BD;
};

struct DecodeAttentionArgs {
  DType dtype;
  std::int64_t rows, places;
  DecodeAttention attention;
  const void* qkv_BN;
  const std::int64_t *position_1, *pads_B;
  void *keys_BGCI, *values_BGCI, *out_BHI;
};

}  // namespace dropless
