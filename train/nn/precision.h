// Mixed precision: fp32 master weights, matrix products in bf16 or fp16 under libtorch's autocast.
// fp64 is no mixture: weights, gradients, moments and every product are, for comparisons in which
// rounding must not hide an error.
#pragma once

#include "train/bridge/torch.h"
#include "train/nn/precision_config.h"

namespace dropless::train {

// The element type of matrix products.
at::ScalarType compute_type(Precision precision);
// That of weights, gradients and moments.
at::ScalarType weight_type(Precision precision);

// Whether autocast is on for a device, and to which type.
struct AutocastState {
  bool enabled = false;
  at::ScalarType dtype = at::kFloat;
  static AutocastState of(at::Device device);
  static AutocastState of(Precision precision);
};

// Autocast on `device` for the life of the guard; fp32 and fp64 leave it off. Its cache of cast weights is
// cleared at the end, so that the next step sees the updated weights.
class AutocastGuard {
 public:
  AutocastGuard(const AutocastState& state, at::Device device);
  AutocastGuard(Precision precision, at::Device device)
      : AutocastGuard(AutocastState::of(precision), device) {}
  ~AutocastGuard();
  AutocastGuard(const AutocastGuard&) = delete;
  AutocastGuard& operator=(const AutocastGuard&) = delete;

 private:
  at::DeviceType device_;
  AutocastState before_;
};

// Autocast off on `device` for the life of the guard: what stands there computes in the types it is
// given.
class NoAutocastGuard {
 public:
  explicit NoAutocastGuard(at::Device device);
  ~NoAutocastGuard();
  NoAutocastGuard(const NoAutocastGuard&) = delete;
  NoAutocastGuard& operator=(const NoAutocastGuard&) = delete;

 private:
  at::DeviceType device_;
  bool was_enabled_;
};

// `tensor` in the element type that products run in here: autocast's where it is on, else
// unchanged.
at::Tensor to_compute_dtype(const at::Tensor& tensor);

}  // namespace dropless::train
