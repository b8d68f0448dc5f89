// Weight gradient on Hopper: out_e [M, N] = a_e^T b_e, k running over the rows of expert e.
//
// Both operands are read MN-major as they lie in memory, no transposed copies. The last slice of an
// expert is cut in shared memory (device/gemm.cuh, zero_k_tail), so the rows need no padding.
#include <iterator>
#include <utility>

#include "src/cuda/check.h"
#include "src/cuda/device/gemm.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/operands.cuh"

namespace dropless::cuda {
namespace {

struct Arguments {
  const ConstTensorView& a_RM;
  const ConstTensorView& b_RN;
  const std::int64_t* offsets_E1;
  const TensorView& out_EMN;
  bool accumulate;
  const GemmConfig& config;
  cudaStream_t stream;
};

template <class Tile, class Element, StoreMode kMode>
void launch(const Arguments& x) {
  using Schedule = RaggedKSchedule<Tile>;
  using Epilogue = StoreEpilogue<Tile, Element, kMode>;
  const std::int64_t rows = x.a_RM.shape[0];
  const std::int64_t experts = x.out_EMN.shape[0];
  const std::int64_t m = x.out_EMN.shape[1];
  const std::int64_t n = x.out_EMN.shape[2];

  const CUtensorMap map_a = make_tensor_map({.data = x.a_RM.data,
                                             .dims = {m, rows, 1},
                                             .row_pitch = x.a_RM.stride[0],
                                             .box = {64, kBlockK}});
  const CUtensorMap map_b = make_tensor_map({.data = x.b_RN.data,
                                             .dims = {n, rows, 1},
                                             .row_pitch = x.b_RN.stride[0],
                                             .box = {64, kBlockK}});
  const typename Epilogue::Params epilogue{
      make_tensor_map({.data = x.out_EMN.data,
                       .dtype = x.out_EMN.dtype,
                       .dims = {n, m, experts},
                       .row_pitch = x.out_EMN.stride[1],
                       .batch_pitch = x.out_EMN.stride[0],
                       .box = {128 / static_cast<int>(sizeof(Element)), 16}}),
      static_cast<Element*>(x.out_EMN.data), x.out_EMN.stride[1], static_cast<int>(n)};
  const int tiles_m = static_cast<int>((m + Tile::kBlockM - 1) / Tile::kBlockM);
  const int tiles_n = static_cast<int>((n + Tile::kBlockN - 1) / Tile::kBlockN);
  const typename Schedule::Params schedule{x.offsets_E1, static_cast<int>(experts), tiles_m,
                                           tiles_n, x.config.raster_width};
  const long long clusters = experts * ((tiles_m + Tile::kClusterM - 1) / Tile::kClusterM) *
                             ((tiles_n + Tile::kClusterN - 1) / Tile::kClusterN);
  launch_persistent(gemm_kernel<Tile, Schedule, Epilogue>, kGemmThreads, Tile::kSharedBytes,
                    Tile::kCluster, clusters, x.stream, one_term(map_a, map_b), schedule, epilogue);
}

template <std::size_t kIndex>
bool try_launch(const Arguments& x) {
  constexpr GemmConfig c = kWeightGradVariants[kIndex];
  if (!c.same_kernel(x.config)) return false;
  using Chosen = Tile<c.block_m, c.block_n, c.stages, c.slots, c.cluster_m, c.cluster_n, Major::kMN,
                      Major::kMN>;
  if (x.out_EMN.dtype == DType::kBFloat16) {
    launch<Chosen, __nv_bfloat16, StoreMode::kOverwrite>(x);
  } else if (x.accumulate) {
    launch<Chosen, float, StoreMode::kAdd>(x);
  } else {
    launch<Chosen, float, StoreMode::kOverwrite>(x);
  }
  return true;
}

template <std::size_t... kIndices>
bool dispatch(const Arguments& x, std::index_sequence<kIndices...>) {
  return (try_launch<kIndices>(x) || ...);
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
  const Arguments x{
      a_RM, b_RN, offsets_E1, out_EMN, accumulate, config, static_cast<cudaStream_t>(stream)};
  if (!dispatch(x, std::make_index_sequence<std::size(kWeightGradVariants)>())) {
    throw Error(ErrorKind::kInternal, "no weight gradient variant for the chosen tile", "",
                __FILE__, __LINE__);
  }
}

}  // namespace dropless::cuda
