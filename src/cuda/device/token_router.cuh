// One token's router over a warp: softmax and top-k. Formulas and tie rules: include/dropless/route.h.
// Lane l holds experts l, l + 32, .... fp32.
#pragma once

#include "src/cuda/device/warp.cuh"

namespace dropless::cuda {

// A token's logits, and their softmax.
template <int kPerLane>
struct TokenSoftmax {
  float logit[kPerLane];
  float p[kPerLane];
  float max;
  float sum;  // of exp(logit - max)

  // load(expert): its logit.
  template <class Load>
  __device__ __forceinline__ TokenSoftmax(Load load, int experts, int lane) {
    max = -INFINITY;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int expert = lane + 32 * i;
      logit[i] = expert < experts ? load(expert) : -INFINITY;
      max = fmaxf(max, logit[i]);
    }
    max = warp_max(max);
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      p[i] = lane + 32 * i < experts ? expf(logit[i] - max) : 0.0f;
      sum += p[i];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) p[i] /= sum;
  }

  // The expert's p, from its owner: exact, and NaN where the logits hold NaN.
  __device__ __forceinline__ float of(int expert, int lane) const {
    float s = 0.0f;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) s = expert == lane + 32 * j ? p[j] : s;
    return __shfl_sync(0xffffffff, s, expert % 32);
  }
};

// An integer that orders as the float does; both zeros are one. Not for NaN.
__device__ __forceinline__ unsigned ordered_key(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The largest logit not yet taken, lowest index first among equals. NaN counts as least, so that
// every token gets distinct valid experts.
template <int kPerLane>
__device__ __forceinline__ int next_expert(const float (&logit)[kPerLane], unsigned& taken,
                                           int experts, int lane) {
  constexpr unsigned kNone = 0x7fffffff;
  unsigned best = kNone;
  float best_value = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane + 32 * i;
    if (expert >= experts || (taken >> i & 1) != 0) continue;
    if (best == kNone || logit[i] > best_value || (isnan(best_value) && !isnan(logit[i]))) {
      best = expert;
      best_value = logit[i];
    }
  }
  if (isnan(best_value)) best_value = -INFINITY;
  const unsigned key = best == kNone ? 0 : ordered_key(best_value);  // of any float it is positive
  const unsigned largest = __reduce_max_sync(0xffffffff, key);
  best = __reduce_min_sync(0xffffffff, key == largest ? best : kNone);
  if (best % 32 == lane) taken |= 1u << (best / 32);
  return static_cast<int>(best);
}

}  // namespace dropless::cuda
