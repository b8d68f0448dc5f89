#include "train/nn/precision.h"

#include <ATen/autocast_mode.h>

namespace dropless::train {

at::ScalarType compute_type(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return at::kFloat;
    case Precision::kAmpBf16:
      return at::kBFloat16;
    case Precision::kAmpFp16:
      return at::kHalf;
    case Precision::kFp64:
      return at::kDouble;
  }
  return at::kFloat;
}

at::ScalarType weight_type(Precision precision) {
  return precision == Precision::kFp64 ? at::kDouble : at::kFloat;
}

AutocastState AutocastState::of(at::Device device) {
  return {at::autocast::is_autocast_enabled(device.type()),
          at::autocast::get_autocast_dtype(device.type())};
}

AutocastState AutocastState::of(Precision precision) {
  return {compute_type(precision) != weight_type(precision), compute_type(precision)};
}

AutocastGuard::AutocastGuard(const AutocastState& state, at::Device device)
    : device_(device.type()), before_(AutocastState::of(device)) {
  at::autocast::increment_nesting();
  at::autocast::set_autocast_enabled(device_, state.enabled);
  if (state.enabled) at::autocast::set_autocast_dtype(device_, state.dtype);
}

AutocastGuard::~AutocastGuard() {
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_, before_.enabled);
  at::autocast::set_autocast_dtype(device_, before_.dtype);
}

NoAutocastGuard::NoAutocastGuard(at::Device device)
    : device_(device.type()), was_enabled_(at::autocast::is_autocast_enabled(device_)) {
  at::autocast::set_autocast_enabled(device_, false);
}

NoAutocastGuard::~NoAutocastGuard() { at::autocast::set_autocast_enabled(device_, was_enabled_); }

at::Tensor to_compute_dtype(const at::Tensor& tensor) {
  const at::DeviceType device = tensor.device().type();
  if (!at::autocast::is_autocast_enabled(device)) return tensor;
  return tensor.to(at::autocast::get_autocast_dtype(device));
}

}  // namespace dropless::train
