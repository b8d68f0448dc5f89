#include "train/bridge/views.h"

#include <string>

#include "dropless/error.h"

namespace dropless::train {

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    case at::kInt:
      return DType::kInt32;
    case at::kLong:
      return DType::kInt64;
    case at::kByte:
      return DType::kUInt8;
    default:
      throw Error(
          ErrorKind::kInvalidArgument,
          std::string("a tensor of type ") + c10::toString(type) + " has no dropless element type");
  }
}

at::ScalarType scalar_type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return at::kFloat;
    case DType::kFloat64:
      return at::kDouble;
    case DType::kBFloat16:
      return at::kBFloat16;
    case DType::kFloat16:
      return at::kHalf;
    case DType::kInt32:
      return at::kInt;
    case DType::kInt64:
      return at::kLong;
    case DType::kUInt8:
      return at::kByte;
  }
  throw Error(ErrorKind::kInternal, "unknown dropless element type");
}

at::ScalarType sum_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

Device device_of(const at::Device& device) {
  if (!device.is_cuda()) return {};
  return {DeviceType::kCuda, device.has_index() ? device.index() : 0};
}

TensorView view_of(const at::Tensor& tensor) {
  TensorView view;
  if (!tensor.defined()) return view;
  if (tensor.dim() > TensorView::kMaxRank || tensor.dim() == 0 ||
      (tensor.size(-1) > 1 && tensor.stride(-1) != 1)) {
    throw Error(ErrorKind::kInternal, "a tensor of rank " + std::to_string(tensor.dim()) +
                                          " cannot be seen as a row-major view of rank 1 to 4");
  }
  view.data = tensor.data_ptr();
  view.dtype = dtype_of(tensor.scalar_type());
  view.device = device_of(tensor.device());
  view.rank = static_cast<int>(tensor.dim());
  for (int i = 0; i < view.rank; ++i) {
    view.shape[i] = tensor.size(i);
    view.stride[i] = tensor.stride(i);
  }
  return view;
}

}  // namespace dropless::train
