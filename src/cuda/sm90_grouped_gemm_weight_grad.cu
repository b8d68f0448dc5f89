// Hopper's entry of the weight gradient; bf16.
#include "src/cuda/path.h"
#include "src/cuda/sm90_grouped_gemm_weight_grad.cuh"

namespace dropless::cuda::sm90 {

void grouped_gemm_weight_grad(ConstTensorView a_RM, ConstTensorView b_RN,
                              const std::int64_t* offsets_E1, TensorView out_EMN, bool accumulate,
                              const GemmConfig& config, Stream stream, const GatherBeside& beside) {
  if (out_EMN.numel() == 0 || a_RM.shape[0] == 0) gather_before(beside, stream);
  if (out_EMN.numel() == 0) return;
  if (accumulate && out_EMN.dtype != DType::kFloat32) {
    throw Error(ErrorKind::kInvalidArgument, "weight gradients accumulate in float32 only",
                "pass a float32 gradient, or accumulate = false", __FILE__, __LINE__);
  }
  if (a_RM.shape[0] == 0) {  // no rows at all: nothing that a tensor map could describe
    if (accumulate) return;
    const std::size_t element = dtype_bytes(out_EMN.dtype);
    for (std::int64_t e = 0; e < out_EMN.shape[0]; ++e) {
      DROPLESS_CUDA_CHECK(
          cudaMemset2DAsync(static_cast<char*>(out_EMN.data) + e * out_EMN.stride[0] * element,
                            out_EMN.stride[1] * element, 0, out_EMN.shape[2] * element,
                            out_EMN.shape[1], static_cast<cudaStream_t>(stream)));
    }
    return;
  }
  const sm90_weight_grad::Arguments x{
      a_RM,  b_RN, offsets_E1, out_EMN, accumulate, config, static_cast<cudaStream_t>(stream),
      beside};
  for_16_bit(a_RM.dtype, "grouped_gemm_weight_grad",
             [&](auto element) { sm90_weight_grad::run<decltype(element)>(x); });
}

}  // namespace dropless::cuda::sm90
