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

  // p of each lane's own expert, from its owner: exact, and NaN where the logits hold NaN.
  __device__ __forceinline__ float of(int expert) const {
    float own = 0.0f;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const float s = __shfl_sync(0xffffffff, p[j], expert % 32);
      own = expert / 32 == j ? s : own;
    }
    return own;
  }
};

// An integer that orders as the float does; both zeros are one. Not for NaN.
__device__ __forceinline__ unsigned ordered_key(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A token's experts by their logits, the largest first and the lowest index among equals. NaN counts as less than
// any number, so that every token gets distinct valid experts.
template <int kPerLane>
class ExpertChoice {
 public:
  // Bit i of `outside`: expert lane + 32 i is not to be chosen.
  __device__ __forceinline__ ExpertChoice(const float (&logit)[kPerLane], int experts, int lane,
                                          unsigned outside = 0)
      : lane_(lane) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const bool offered = lane + 32 * i < experts && (outside >> i & 1) == 0;
      key_[i] = !offered          ? 0
                : isnan(logit[i]) ? 1
                                  : ordered_key(logit[i]);  // a number's is above 1
    }
  }

  // The next of them; every lane has it.
  __device__ __forceinline__ int next() {
    unsigned own = key_[0];
#pragma unroll
    for (int i = 1; i < kPerLane; ++i) own = max(own, key_[i]);
    const unsigned largest = __reduce_max_sync(0xffffffff, own);
    unsigned expert = 0x7fffffff;
#pragma unroll
    for (int i = kPerLane - 1; i >= 0; --i) expert = key_[i] == largest ? lane_ + 32 * i : expert;
    expert = __reduce_min_sync(0xffffffff, expert);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) key_[i] = expert == lane_ + 32 * i ? 0 : key_[i];
    return static_cast<int>(expert);
  }

  // The next `count` of them, at most 32: lane k has the k-th.
  __device__ __forceinline__ int next_round(int count) {
    int expert = 0;
    for (int k = 0; k < count; ++k) {
      const int chosen = next();
      expert = lane_ == k ? chosen : expert;
    }
    return expert;
  }

  // Whether expert lane + 32 i was chosen, if it was offered.
  __device__ __forceinline__ bool chosen(int i) const { return key_[i] == 0; }

 private:
  int lane_;
  unsigned key_[kPerLane];
};

}  // namespace dropless::cuda
