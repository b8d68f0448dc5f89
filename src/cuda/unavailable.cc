// Builds without CUDA: every entry of kernels.h says so.
#include <string>

#include "dropless/error.h"
#include "src/cuda/kernels.h"

namespace dropless::cuda {
namespace {

[[noreturn]] void unavailable(const char* op) {
  throw Error(ErrorKind::kInvalidArgument,
              std::string(op) + ": this build of dropless has no CUDA kernels",
              "build with -DDROPLESS_CUDA=ON (needs nvcc 13), or keep the tensors on the CPU",
              __FILE__, __LINE__);
}

}  // namespace

std::size_t row_tiles_bytes(std::int64_t, std::int64_t, int) { unavailable("row_tiles"); }
void build_row_tiles(const std::int64_t*, std::int64_t, int, void*, Stream) {
  unavailable("row_tiles");
}
void grouped_gemm(ConstTensorView, ConstTensorView, bool, const void*, TensorView,
                  const GemmConfig&, Stream) {
  unavailable("grouped_gemm");
}
void grouped_gemm_weight_grad(ConstTensorView, ConstTensorView, const std::int64_t*, TensorView,
                              bool, const GemmConfig&, Stream) {
  unavailable("grouped_gemm_weight_grad");
}

}  // namespace dropless::cuda
