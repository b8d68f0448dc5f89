// The two implementations of the matrix products in kernels.h, and which of them a GPU takes.
//
//   sm90   Hopper's own instructions (TMA, wgmma): compute capability 9.0
//   mma    mma.sync and cp.async: every GPU since compute capability 8.0
#pragma once

#include <string>

#include "dropless/error.h"
#include "src/cuda/kernels.h"

namespace dropless::cuda {

// Whether the current device takes `mma`: where it is no Hopper, and everywhere with the environment
// variable DROPLESS_CUDA_PATH=portable (to test and compare both on one card), read once. Of another
// device: kernels.h.
bool portable_path();

// What the variable's value asks for; null where it is not set.
inline bool asks_for_portable(const char* value) {
  const std::string path = value == nullptr ? "" : value;
  if (path.empty() || path == "portable") return !path.empty();
  throw Error(ErrorKind::kInvalidArgument, "DROPLESS_CUDA_PATH is '" + path + "', not 'portable'",
              "unset it to let the GPU decide", __FILE__, __LINE__);
}

namespace sm90 {
decltype(cuda::grouped_gemm) grouped_gemm;
decltype(cuda::grouped_gemm_two_terms) grouped_gemm_two_terms;
decltype(cuda::grouped_gemm_weight_grad) grouped_gemm_weight_grad;
decltype(cuda::grouped_gemm_activation) grouped_gemm_activation;
decltype(cuda::grouped_gemm_activation_grad) grouped_gemm_activation_grad;
}  // namespace sm90

namespace mma {
decltype(cuda::grouped_gemm) grouped_gemm;
decltype(cuda::grouped_gemm_two_terms) grouped_gemm_two_terms;
decltype(cuda::grouped_gemm_weight_grad) grouped_gemm_weight_grad;
decltype(cuda::grouped_gemm_activation) grouped_gemm_activation;
decltype(cuda::grouped_gemm_activation_grad) grouped_gemm_activation_grad;
}  // namespace mma

}  // namespace dropless::cuda
