// Weight gradient on every GPU since compute capability 8.0: out_e [M, N] = a_e^T b_e, k running over
// the rows of expert e. Both operands are read as they lie; rows past an expert's last count as zeros.
#include "src/cuda/mma_launch.cuh"
#include "src/cuda/path.h"

namespace dropless::cuda::mma {
namespace {

template <class Element, class Out, bool kAdd>
void launch_product(const Operands& operands, const std::int64_t* offsets_E1,
                    const TensorView& out_EMN, int width, cudaStream_t stream) {
  using Product = Tile<Element, Major::kMN, Major::kMN>;
  using Schedule = RaggedKSchedule<Product>;
  using Epilogue = StoreEpilogue<Product, Out, kAdd>;
  const int experts = static_cast<int>(out_EMN.shape[0]);
  const int tiles_m = (operands.m + Product::kBlockM - 1) / Product::kBlockM;
  const int tiles_n = (operands.n + Product::kBlockN - 1) / Product::kBlockN;
  launch<Product, Schedule, Epilogue>(operands, {offsets_E1, experts, tiles_m, tiles_n, width},
                                      {matrix<Out>(out_EMN), {}, operands.n},
                                      std::int64_t{experts} * tiles_m * tiles_n, stream);
}

}  // namespace

void grouped_gemm_weight_grad(ConstTensorView a_RM, ConstTensorView b_RN,
                              const std::int64_t* offsets_E1, TensorView out_EMN, bool accumulate,
                              const GemmConfig& config, Stream stream) {
  if (out_EMN.numel() == 0) return;
  if (accumulate && out_EMN.dtype != DType::kFloat32) {
    throw Error(ErrorKind::kInvalidArgument, "weight gradients accumulate in float32 only",
                "pass a float32 gradient, or accumulate = false", __FILE__, __LINE__);
  }
  Operands operands{.m = static_cast<int>(out_EMN.shape[1]),
                    .n = static_cast<int>(out_EMN.shape[2])};
  set_term(operands, 0, a_RM, b_RN);
  const auto launch = [&]<class Element, class Out, bool kAdd>() {
    launch_product<Element, Out, kAdd>(operands, offsets_E1, out_EMN, raster_width(config),
                                       static_cast<cudaStream_t>(stream));
  };
  for_16_bit(a_RM.dtype, "grouped_gemm_weight_grad", [&](auto element) {
    using Element = decltype(element);
    if (out_EMN.dtype != DType::kFloat32) {
      launch.template operator()<Element, Element, false>();
    } else if (accumulate) {
      launch.template operator()<Element, float, true>();
    } else {
      launch.template operator()<Element, float, false>();
    }
  });
}

}  // namespace dropless::cuda::mma
