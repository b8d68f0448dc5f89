// Hopper's entry of the up projection with its activation; bf16 without bias.
#include "src/cuda/path.h"
#include "src/cuda/sm90_grouped_gemm_activation.cuh"

namespace dropless::cuda::sm90 {

void grouped_gemm_activation(Activation activation, ConstTensorView x, const std::int32_t* list_R,
                             ConstTensorView w1_EFD, ConstTensorView v1_EFD, const void* row_tiles,
                             TensorView gate_RF, TensorView up_RF, TensorView act_RF, Stream stream,
                             ConstTensorView b1_EF, ConstTensorView bv1_EF) {
  if (act_RF.numel() == 0) return;
  const sm90_activation::Arguments arguments{x,      list_R,    w1_EFD,
                                             v1_EFD, row_tiles, gate_RF,
                                             up_RF,  act_RF,    static_cast<cudaStream_t>(stream),
                                             b1_EF,  bv1_EF};
  for_16_bit(x.dtype, "grouped_gemm_activation", [&](auto element) {
    using Element = decltype(element);
    b1_EF ? sm90_activation::run<Element, true>(activation, arguments)
          : sm90_activation::run<Element, false>(activation, arguments);
  });
}

}  // namespace dropless::cuda::sm90
