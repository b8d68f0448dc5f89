// Turns a failed CUDA call into dropless::Error. Only for the .cc and .cu files of this folder.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "dropless/error.h"

namespace dropless::cuda {

inline void check(cudaError_t status, const char* expression, const char* file, int line) {
  if (status == cudaSuccess) return;
  std::string hint;
  if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice) {
    hint = "CUDA kernels need an NVIDIA driver of release 580 or later and a visible GPU";
  } else if (status == cudaErrorNoKernelImageForDevice) {
    hint = "these kernels need compute capability 8.0 or later (A100 and newer)";
  }
  throw Error(ErrorKind::kResource, std::string(expression) + ": " + cudaGetErrorString(status),
              hint, file, line);
}

}  // namespace dropless::cuda

#define DROPLESS_CUDA_CHECK(expression) \
  ::dropless::cuda::check((expression), #expression, __FILE__, __LINE__)
