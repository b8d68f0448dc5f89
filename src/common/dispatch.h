// From a run-time DType to a C++ type: visit_floating(dtype, [&](auto zero) { using S =
// decltype(zero); ... }).
#pragma once

#include "dropless/dtype.h"
#include "src/common/check.h"
#include "src/common/float16.h"

namespace dropless {

template <class Visitor>
decltype(auto) visit_floating(DType dtype, Visitor&& visitor) {
  switch (dtype) {
    case DType::kFloat32:
      return visitor(float{});
    case DType::kFloat64:
      return visitor(double{});
    case DType::kBFloat16:
      return visitor(BFloat16{});
    case DType::kFloat16:
      return visitor(Float16{});
    default:
      check_failed(ErrorKind::kInternal, "floating dtype", __FILE__, __LINE__, dtype_name(dtype));
  }
}

// The type sums, router logits and routing weights have in a layer of type `dtype`.
constexpr DType accumulator_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

}  // namespace dropless
