// Hopper's entry of the gradient through the down projection and the activation; bf16.
#include "src/cuda/path.h"
#include "src/cuda/sm90_grouped_gemm_activation_grad.cuh"

namespace dropless::cuda::sm90 {

void grouped_gemm_activation_grad(Activation activation, ConstTensorView d_out_TD,
                                  const std::int32_t* tokens_R, ConstTensorView w2_EFD,
                                  const float* scores_R, const void* row_tiles, TensorView gate_RF,
                                  TensorView up_RF, TensorView act_RF, float* d_scores_NR,
                                  Stream stream) {
  if (act_RF.numel() == 0) return;
  const sm90_activation_grad::Arguments arguments{
      d_out_TD, tokens_R, w2_EFD, scores_R,    row_tiles,
      gate_RF,  up_RF,    act_RF, d_scores_NR, static_cast<cudaStream_t>(stream)};
  for_16_bit(d_out_TD.dtype, "grouped_gemm_activation_grad", [&](auto element) {
    sm90_activation_grad::run<decltype(element)>(activation, arguments);
  });
}

}  // namespace dropless::cuda::sm90
