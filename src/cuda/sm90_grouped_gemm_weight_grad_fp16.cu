#include "src/cuda/sm90_grouped_gemm_weight_grad.cuh"

namespace dropless::cuda::sm90_weight_grad {
template void run<__half>(const Arguments& x);
}  // namespace dropless::cuda::sm90_weight_grad
