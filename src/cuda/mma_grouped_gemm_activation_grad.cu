// The gradient through the down projection and the activation, on every GPU since compute capability
// 8.0.
#include "src/cuda/activations.cuh"
#include "src/cuda/mma_launch.cuh"
#include "src/cuda/path.h"

namespace dropless::cuda::mma {

void grouped_gemm_activation_grad(Activation activation, ConstTensorView d_out_TD,
                                  const std::int32_t* tokens_R, ConstTensorView w2_EFD,
                                  const float* scores_R, const void* row_tiles, TensorView gate_RF,
                                  TensorView up_RF, TensorView act_RF, float* d_scores_NR,
                                  Stream stream) {
  if (act_RF.numel() == 0) return;
  Operands operands{.list = tokens_R, .n = static_cast<int>(act_RF.shape[1])};
  set_term(operands, 0, d_out_TD, w2_EFD);
  const auto launch = [&]<class Element, bool kGlu>() {
    using Product = Tile<Element, Major::kK, Major::kK, 1, 1, true>;
    static_assert(Product::kBlockN == kActivationGradColumns);
    launch_row_tiles<Product, ActivationGradEpilogue<Product, kGlu>>(
        operands, row_tiles, act_RF.shape[0], w2_EFD.shape[0], d_out_TD.shape[1],
        {.gate = matrix<Element>(gate_RF),
         .up = matrix<Element>(up_RF),
         .act = matrix<Element>(act_RF),
         .scores_R = scores_R,
         .d_scores_NR = d_scores_NR,
         .rows = act_RF.shape[0],
         .columns = operands.n,
         .activation = device_activation(activation)},
        kRasterWidth, static_cast<cudaStream_t>(stream));
  };
  for_16_bit(d_out_TD.dtype, "grouped_gemm_activation_grad", [&](auto element) {
    using Element = decltype(element);
    up_RF ? launch.template operator()<Element, true>()
          : launch.template operator()<Element, false>();
  });
}

}  // namespace dropless::cuda::mma
