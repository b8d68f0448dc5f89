// Activations and their derivatives in fp32; formulas in include/dropless/activation.h.
#pragma once

namespace dropless::cuda {

// Mirrors dropless::Activation; device/ includes nothing outside itself.
enum class DeviceActivation { kSilu, kGeluTanh, kGelu, kRelu, kQuickGelu };

// Subnormal exponentials count as zero: one plus either is one, and no instruction looks after them.
__device__ __forceinline__ float sigmoid(float x) {
  float e, s;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(-1.4426950408889634f * x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1.0f + e));
  return s;
}

struct ValueAndSlope {
  float value;  // act(x)
  float slope;  // act'(x)
};

// The slope costs nothing where it is not used.
template <DeviceActivation kActivation>
__device__ __forceinline__ ValueAndSlope activate(float x) {
  if constexpr (kActivation == DeviceActivation::kSilu) {
    const float s = sigmoid(x);
    return {x * s, s + x * s * (1.0f - s)};
  } else if constexpr (kActivation == DeviceActivation::kQuickGelu) {
    const float s = sigmoid(1.702f * x);
    return {x * s, s * (1.0f + 1.702f * x * (1.0f - s))};
  } else if constexpr (kActivation == DeviceActivation::kGeluTanh) {
    // 0.5 (1 + tanh u) = sigmoid(2 u)
    constexpr float kTwiceSqrt2OverPi = 1.5957691216057308f;
    const float s = sigmoid(kTwiceSqrt2OverPi * x * (1.0f + 0.044715f * x * x));
    const float slope_2u = kTwiceSqrt2OverPi * (1.0f + 0.134145f * x * x);
    return {x * s, s * (1.0f + x * (1.0f - s) * slope_2u)};
  } else if constexpr (kActivation == DeviceActivation::kGelu) {
    // Abramowitz and Stegun 7.1.26, to 1.5e-7: erfc(z) = exp(-z^2) times a polynomial of
    // 1 / (1 + p z). It shares the exponential with the density; erff takes more registers.
    const float e = __expf(-0.5f * x * x);
    const float t = __fdividef(1.0f, 1.0f + 0.3275911f * 0.7071067811865476f * fabsf(x));
    const float sum =
        0.254829592f +
        t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f)));
    const float tail = 0.5f * t * sum * e;
    const float cdf = x < 0.0f ? tail : 1.0f - tail;
    return {x * cdf, cdf + x * 0.3989422804014327f * e};
  } else {
    return {fmaxf(x, 0.0f), x > 0.0f ? 1.0f : 0.0f};
  }
}

}  // namespace dropless::cuda
