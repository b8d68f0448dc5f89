// Non-owning tensor views: what every op takes. A view is a pointer, a type, a device and a shape;
// the memory is the caller's. Views are row-major; the stride of the last dimension is 1.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "dropless/dtype.h"

namespace dropless {

enum class DeviceType : std::uint8_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

// `Pointer` is `void*` (outputs) or `const void*` (inputs). A default-made view is absent: ops that
// take optional tensors test it with `if (view)`.
template <class Pointer>
struct BasicTensorView {
  static constexpr int kMaxRank = 4;

  Pointer data = nullptr;
  DType dtype = DType::kFloat32;
  Device device;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};   // elements; unused entries are 0
  std::array<std::int64_t, kMaxRank> stride{};  // elements; stride[rank - 1] == 1

  BasicTensorView() = default;

  // A contiguous tensor of the given shape.
  BasicTensorView(Pointer data, DType dtype, std::initializer_list<std::int64_t> dims,
                  Device device = {})
      : data(data), dtype(dtype), device(device), rank(static_cast<int>(dims.size())) {
    int i = 0;
    for (std::int64_t d : dims) shape[i++] = d;
    std::int64_t step = 1;
    for (int j = rank - 1; j >= 0; --j) {
      stride[j] = step;
      step *= shape[j];
    }
  }

  // A mutable view is also a read-only one.
  template <class Other>
  requires(std::is_convertible_v<Other, Pointer> && !std::is_same_v<Other, Pointer>)
      BasicTensorView(const BasicTensorView<Other>& other)
      : data(other.data),
        dtype(other.dtype),
        device(other.device),
        rank(other.rank),
        shape(other.shape),
        stride(other.stride) {}

  explicit operator bool() const { return rank > 0; }

  std::int64_t numel() const {
    if (rank == 0) return 0;
    std::int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }

  bool contiguous() const {
    std::int64_t step = 1;
    for (int i = rank - 1; i >= 0; --i) {
      if (shape[i] != 1 && stride[i] != step) return false;
      step *= shape[i];
    }
    return true;
  }
};

using TensorView = BasicTensorView<void*>;
using ConstTensorView = BasicTensorView<const void*>;

}  // namespace dropless
