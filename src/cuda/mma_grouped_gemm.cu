// Grouped GEMM on every GPU since compute capability 8.0, forward and input gradient.
#include "src/cuda/mma_launch.cuh"
#include "src/cuda/path.h"

namespace dropless::cuda::mma {
namespace {

struct Arguments {
  const Operands& operands;
  const void* row_tiles;
  std::int64_t experts, k;
  const TensorView& out_RN;
  const ConstTensorView& bias_EN;  // or absent
  const GemmConfig& config;
  cudaStream_t stream;
};

template <class Element, Major kMajorB, int kTerms, class Out>
void run(const Arguments& x) {
  using Product = Tile<Element, Major::kK, kMajorB, 1, kTerms>;
  launch_row_tiles<Product, StoreEpilogue<Product, Out, false>>(
      x.operands, x.row_tiles, x.out_RN.shape[0], x.experts, x.k,
      {matrix<Out>(x.out_RN), matrix<const Element>(x.bias_EN), x.operands.n},
      raster_width(x.config), x.stream);
}

}  // namespace

void grouped_gemm(ConstTensorView a_RK, ConstTensorView b, bool b_is_EKN, const void* row_tiles,
                  TensorView out_RN, const GemmConfig& config, Stream stream,
                  ConstTensorView bias_EN) {
  if (out_RN.numel() == 0) return;
  const bool fp32 = out_RN.dtype == DType::kFloat32;
  if (fp32 && b_is_EKN) {
    throw Error(ErrorKind::kInternal, "float32 products take weights [E, N, K] only", "", __FILE__,
                __LINE__);
  }
  Operands operands{.n = static_cast<int>(out_RN.shape[1])};
  set_term(operands, 0, a_RK, b);
  const Arguments arguments{operands, row_tiles, b.shape[0], a_RK.shape[1],
                            out_RN,   bias_EN,   config,     static_cast<cudaStream_t>(stream)};
  for_16_bit(a_RK.dtype, "grouped_gemm", [&](auto element) {
    using Element = decltype(element);
    if (fp32) {
      run<Element, Major::kK, 1, float>(arguments);
    } else if (b_is_EKN) {
      run<Element, Major::kMN, 1, Element>(arguments);
    } else {
      run<Element, Major::kK, 1, Element>(arguments);
    }
  });
}

void grouped_gemm_two_terms(ConstTensorView a_RK, ConstTensorView b_EKN, ConstTensorView a2_RK,
                            ConstTensorView b2_EKN, const void* row_tiles, TensorView out_RN,
                            const GemmConfig& config, Stream stream) {
  if (out_RN.numel() == 0) return;
  Operands operands{.n = static_cast<int>(out_RN.shape[1])};
  set_term(operands, 0, a_RK, b_EKN);
  set_term(operands, 1, a2_RK, b2_EKN);
  const ConstTensorView no_bias;
  const Arguments arguments{operands, row_tiles, b_EKN.shape[0], a_RK.shape[1],
                            out_RN,   no_bias,   config,         static_cast<cudaStream_t>(stream)};
  for_16_bit(a_RK.dtype, "grouped_gemm_two_terms", [&](auto element) {
    run<decltype(element), Major::kMN, 2, decltype(element)>(arguments);
  });
}

}  // namespace dropless::cuda::mma
