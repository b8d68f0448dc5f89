// Activations and their derivatives in fp32; formulas in include/dropless/activation.h.
#pragma once

namespace dropless::cuda {

// Mirrors dropless::Activation; device/ includes nothing outside itself.
enum class DeviceActivation { kSilu, kGeluTanh, kGelu, kRelu, kQuickGelu };

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

struct ValueAndSlope {
  float value;  // act(x)
  float slope;  // act'(x)
};

// The slope costs nothing where it is not used.
template <DeviceActivation kActivation>
__device__ __forceinline__ ValueAndSlope activate(float x) {
  if constexpr (kActivation == DeviceActivation::kSilu) {
    const float s = sigmoid(x);
    return {x * s, s * (1.0f + x * (1.0f - s))};
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
    const float cdf = 0.5f * (1.0f + erff(0.7071067811865476f * x));
    const float pdf = 0.3989422804014327f * __expf(-0.5f * x * x);
    return {x * cdf, cdf + x * pdf};
  } else {
    return {fmaxf(x, 0.0f), x > 0.0f ? 1.0f : 0.0f};
  }
}

}  // namespace dropless::cuda
