#include "src/cuda/sm90_grouped_gemm_activation.cuh"

namespace dropless::cuda::sm90_activation {
template void run<__half, true>(Activation, const Arguments&);
}  // namespace dropless::cuda::sm90_activation
