// libtorch tensors as dropless views: no copy, no ownership.
#pragma once

#include "dropless/view.h"
#include "train/bridge/torch.h"

namespace dropless::train {

// Throws Error(kInvalidArgument) for element types dropless has no name for. The tensor must be
// row-major with a last stride of 1 and outlive the view. An undefined tensor gives an absent view.
TensorView view_of(const at::Tensor& tensor);

DType dtype_of(at::ScalarType type);
Device device_of(const at::Device& device);
at::ScalarType scalar_type_of(DType dtype);

// In which sums, softmaxes and losses of tensors of `type` are taken: fp32, and fp64 of fp64.
at::ScalarType sum_type(at::ScalarType type);

}  // namespace dropless::train
