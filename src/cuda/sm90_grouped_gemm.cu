// Hopper's entries of the grouped GEMM; bf16.
#include "src/cuda/path.h"
#include "src/cuda/sm90_grouped_gemm.cuh"

namespace dropless::cuda::sm90 {
namespace {

void run(const sm90_grouped_gemm::Arguments& x) {
  if (x.out_RN.numel() == 0) return gather_before(x.beside, x.stream);
  if (x.out_RN.dtype == DType::kFloat32 && x.b_is_EKN) {
    throw Error(ErrorKind::kInternal, "float32 products take weights [E, N, K] only", "", __FILE__,
                __LINE__);
  }
  if (x.bias_EN && (!x.b_is_EKN || x.a2_RK)) {
    throw Error(ErrorKind::kInternal, "biased products take weights [E, K, N] and one term", "",
                __FILE__, __LINE__);
  }
  for_16_bit(x.a_RK.dtype, "grouped_gemm",
             [&](auto element) { sm90_grouped_gemm::run<decltype(element)>(x); });
}

}  // namespace

void grouped_gemm(ConstTensorView a_RK, ConstTensorView b, bool b_is_EKN, const void* row_tiles,
                  TensorView out_RN, const GemmConfig& config, Stream stream,
                  ConstTensorView bias_EN, const GatherBeside& beside) {
  run({a_RK,
       b,
       b_is_EKN,
       {},
       {},
       row_tiles,
       out_RN,
       config,
       static_cast<cudaStream_t>(stream),
       bias_EN,
       beside});
}

void grouped_gemm_two_terms(ConstTensorView a_RK, ConstTensorView b_EKN, ConstTensorView a2_RK,
                            ConstTensorView b2_EKN, const void* row_tiles, TensorView out_RN,
                            const GemmConfig& config, Stream stream, const GatherBeside& beside) {
  run({a_RK,
       b_EKN,
       true,
       a2_RK,
       b2_EKN,
       row_tiles,
       out_RN,
       config,
       static_cast<cudaStream_t>(stream),
       {},
       beside});
}

}  // namespace dropless::cuda::sm90
