#include "src/cuda/sm90_grouped_gemm.cuh"

namespace dropless::cuda::sm90_grouped_gemm {
template void run<__half>(const Arguments& x);
}  // namespace dropless::cuda::sm90_grouped_gemm
