// From a run-time DType to a 16-bit element type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string>

#include "dropless/dtype.h"
#include "dropless/error.h"

namespace dropless::cuda {

// launch(an element of the 16-bit type)
template <class Launch>
void for_16_bit(DType dtype, const char* op, Launch launch) {
  switch (dtype) {
    case DType::kBFloat16:
      return launch(__nv_bfloat16{});
    case DType::kFloat16:
      return launch(__half{});
    default:
      throw Error(ErrorKind::kInvalidArgument,
                  std::string(op) + ": no CUDA kernel for " + dtype_name(dtype),
                  "use bfloat16 or float16", __FILE__, __LINE__);
  }
}

}  // namespace dropless::cuda
