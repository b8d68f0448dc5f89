#include "src/cuda/sm90_grouped_gemm_activation_grad.cuh"

namespace dropless::cuda::sm90_activation_grad {
template void run<__half>(Activation, const Arguments&);
}  // namespace dropless::cuda::sm90_activation_grad
