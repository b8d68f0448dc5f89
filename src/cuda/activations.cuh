// From the public Activation to the kernels', as a value or as a template argument.
#pragma once

#include "dropless/activation.h"
#include "src/cuda/device/activation.cuh"

namespace dropless::cuda {

template <DeviceActivation kActivation>
struct Constant {
  static constexpr DeviceActivation value = kActivation;
};

template <class Launch>
void for_activation(Activation activation, Launch launch) {
  switch (activation) {
    case Activation::kSilu:
      return launch(Constant<DeviceActivation::kSilu>{});
    case Activation::kGeluTanh:
      return launch(Constant<DeviceActivation::kGeluTanh>{});
    case Activation::kGelu:
      return launch(Constant<DeviceActivation::kGelu>{});
    case Activation::kRelu:
      return launch(Constant<DeviceActivation::kRelu>{});
    case Activation::kQuickGelu:
      return launch(Constant<DeviceActivation::kQuickGelu>{});
  }
}

inline DeviceActivation device_activation(Activation activation) {
  DeviceActivation value = DeviceActivation::kSilu;
  for_activation(activation, [&](auto constant) { value = constant.value; });
  return value;
}

}  // namespace dropless::cuda
