// Grouped GEMM on Hopper, forward and input gradient: out_RN = a_RK B_e over rows sorted by expert.
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
  ConstTensorView a_RK;
  ConstTensorView b;
  bool b_is_EKN;
  ConstTensorView a2_RK;  // a second term, or absent
  ConstTensorView b2;
  const void* row_tiles;
  const TensorView& out_RN;
  const GemmConfig& config;
  cudaStream_t stream;
};

template <class Tile, class Element>
void launch(const Arguments& x) {
  using Schedule = RowTileSchedule<Tile>;
  using Epilogue = StoreEpilogue<Tile, Element, StoreMode::kOverwrite>;
  const std::int64_t rows = x.a_RK.shape[0], k = x.a_RK.shape[1], n = x.out_RN.shape[1];
  Operands operands = one_term(row_operand<Tile>(x.a_RK), weight_operand<Tile>(x.b));
  if constexpr (Tile::kTerms == 2) {
    operands.a[1] = row_operand<Tile>(x.a2_RK);
    operands.b[1] = weight_operand<Tile>(x.b2);
  }
  launch_persistent(gemm_kernel<Tile, Schedule, Epilogue>, kGemmThreads, Tile::kSharedBytes,
                    Tile::kCluster, row_tile_bound<Tile>(rows, x.b.shape[0], n), x.stream, operands,
                    row_tile_schedule<Tile>(x.row_tiles, n, k, x.config.raster_width),
                    row_output<Element>(x.out_RN));
}

// Launches variant kIndex if it is the one asked for.
template <std::size_t kIndex>
bool try_launch(const Arguments& x) {
  constexpr GemmConfig c = kGroupedGemmVariants[kIndex];
  if (!c.same_kernel(x.config)) return false;
  using WeightsENK =
      Tile<c.block_m, c.block_n, c.stages, c.slots, c.cluster_m, c.cluster_n, Major::kK, Major::kK>;
  using WeightsEKN = Tile<c.block_m, c.block_n, c.stages, c.slots, c.cluster_m, c.cluster_n,
                          Major::kK, Major::kMN>;
  using TwoTerms = Tile<c.block_m, c.block_n, c.stages, c.slots, c.cluster_m, c.cluster_n,
                        Major::kK, Major::kMN, 1, 2>;
  if (x.out_RN.dtype == DType::kFloat32) {
    launch<WeightsENK, float>(x);
  } else if (x.a2_RK) {
    launch<TwoTerms, __nv_bfloat16>(x);
  } else if (x.b_is_EKN) {
    launch<WeightsEKN, __nv_bfloat16>(x);
  } else {
    launch<WeightsENK, __nv_bfloat16>(x);
  }
  return true;
}

template <std::size_t... kIndices>
bool dispatch(const Arguments& x, std::index_sequence<kIndices...>) {
  return (try_launch<kIndices>(x) || ...);
}

void run(const Arguments& x) {
  if (x.out_RN.numel() == 0) return;
  if (x.out_RN.dtype == DType::kFloat32 && x.b_is_EKN) {
    throw Error(ErrorKind::kInternal, "float32 products take weights [E, N, K] only", "", __FILE__,
                __LINE__);
  }
  if (!dispatch(x, std::make_index_sequence<std::size(kGroupedGemmVariants)>())) {
    throw Error(ErrorKind::kInternal, "no grouped GEMM variant for the chosen tile", "", __FILE__,
                __LINE__);
  }
}

}  // namespace

void grouped_gemm(ConstTensorView a_RK, ConstTensorView b, bool b_is_EKN, const void* row_tiles,
                  TensorView out_RN, const GemmConfig& config, Stream stream) {
  run({a_RK, b, b_is_EKN, {}, {}, row_tiles, out_RN, config, static_cast<cudaStream_t>(stream)});
}

void grouped_gemm_two_terms(ConstTensorView a_RK, ConstTensorView b_EKN, ConstTensorView a2_RK,
                            ConstTensorView b2_EKN, const void* row_tiles, TensorView out_RN,
                            const GemmConfig& config, Stream stream) {
  run({a_RK, b_EKN, true, a2_RK, b2_EKN, row_tiles, out_RN, config,
       static_cast<cudaStream_t>(stream)});
}

}  // namespace dropless::cuda
