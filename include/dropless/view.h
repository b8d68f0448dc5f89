// Non-owning tensor views: what every op takes. A view is a pointer, a type, a device and a shape;
// the memory is the caller's. Views are row-major; the stride of the last dimension is 1.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>

#include "dropless/dtype.h"
#include "dropless/error.h"

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

  // A contiguous tensor of the given shape. More than kMaxRank sides throw Error(kInvalidArgument); sizes that overflow are
  // kept at the greatest number, and refused by the ops.
  BasicTensorView(Pointer data, DType dtype, std::initializer_list<std::int64_t> dims,
                  Device device = {})
      : data(data), dtype(dtype), device(device), rank(static_cast<int>(dims.size())) {
    if (rank > kMaxRank) {
      throw Error(ErrorKind::kInvalidArgument,
                  "a view of " + std::to_string(rank) + " dimensions: there are at most " +
                      std::to_string(kMaxRank),
                  "join dimensions that lie together");
    }
    int i = 0;
    for (std::int64_t d : dims) shape[i++] = d;
    std::int64_t step = 1;
    for (int j = rank - 1; j >= 0; --j) {
      stride[j] = step;
      step = times(step, shape[j]);
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
    for (int i = 0; i < rank && i < kMaxRank; ++i) n = times(n, shape[i]);
    return n;
  }

  bool contiguous() const {
    if (rank > kMaxRank) return false;
    std::int64_t step = 1;
    for (int i = rank - 1; i >= 0; --i) {
      if (shape[i] != 1 && stride[i] != step) return false;
      step = times(step, shape[i]);
    }
    return true;
  }

 private:
  static std::int64_t times(std::int64_t a, std::int64_t b) {
    std::int64_t product = 0;
    return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<std::int64_t>::max()
                                                  : product;
  }
};

using TensorView = BasicTensorView<void*>;
using ConstTensorView = BasicTensorView<const void*>;

}  // namespace dropless
