// Up projection with the activation in its epilogue, on every GPU since compute capability 8.0.
#include "src/cuda/activations.cuh"
#include "src/cuda/mma_launch.cuh"
#include "src/cuda/path.h"

namespace dropless::cuda::mma {

void grouped_gemm_activation(Activation activation, ConstTensorView x, const std::int32_t* list_R,
                             ConstTensorView w1_EFD, ConstTensorView v1_EFD, const void* row_tiles,
                             TensorView gate_RF, TensorView up_RF, TensorView act_RF, Stream stream,
                             ConstTensorView b1_EF, ConstTensorView bv1_EF) {
  if (act_RF.numel() == 0) return;
  Operands operands{.list = list_R, .n = static_cast<int>(act_RF.shape[1])};
  set_term(operands, 0, x, w1_EFD);
  if (v1_EFD) set_term(operands, 1, x, v1_EFD);
  const auto launch = [&]<class Element, bool kGlu>() {
    using Product = Tile<Element, Major::kK, Major::kK, kGlu ? 2 : 1, 1, true>;
    launch_row_tiles<Product, ActivationEpilogue<Product>>(
        operands, row_tiles, act_RF.shape[0], w1_EFD.shape[0], x.shape[1],
        {.gate = matrix<Element>(gate_RF),
         .up = matrix<Element>(up_RF),
         .act = matrix<Element>(act_RF),
         .gate_bias = matrix<const Element>(b1_EF),
         .up_bias = matrix<const Element>(bv1_EF),
         .columns = operands.n,
         .save = static_cast<bool>(gate_RF),
         .activation = device_activation(activation)},
        kRasterWidth, static_cast<cudaStream_t>(stream));
  };
  for_16_bit(x.dtype, "grouped_gemm_activation", [&](auto element) {
    using Element = decltype(element);
    v1_EFD ? launch.template operator()<Element, true>()
           : launch.template operator()<Element, false>();
  });
}

}  // namespace dropless::cuda::mma
