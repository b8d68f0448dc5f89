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

template <class Tile>
void launch(const ConstTensorView& a_RK, const ConstTensorView& b, const void* row_tiles,
            const TensorView& out_RN, const GemmConfig& config, cudaStream_t stream) {
  using Schedule = RowTileSchedule<Tile>;
  using Epilogue = StoreEpilogue<Tile, __nv_bfloat16, StoreMode::kOverwrite>;
  const std::int64_t rows = a_RK.shape[0], k = a_RK.shape[1], n = out_RN.shape[1];
  const CUtensorMap map_b = weight_operand<Tile>(b);
  launch_persistent(gemm_kernel<Tile, Schedule, Epilogue>, kGemmThreads, Tile::kSharedBytes,
                    Tile::kCluster, row_tile_bound<Tile>(rows, b.shape[0], n), stream,
                    row_operand<Tile>(a_RK), map_b, map_b,
                    row_tile_schedule<Tile>(row_tiles, n, k, config.raster_width),
                    row_output<__nv_bfloat16>(out_RN));
}

struct Arguments {
  const ConstTensorView& a_RK;
  const ConstTensorView& b;
  bool b_is_EKN;
  const void* row_tiles;
  const TensorView& out_RN;
  const GemmConfig& config;
  cudaStream_t stream;
};

// Launches variant kIndex if it is the one asked for.
template <std::size_t kIndex>
bool try_launch(const Arguments& x) {
  constexpr GemmConfig c = kGroupedGemmVariants[kIndex];
  if (!c.same_kernel(x.config)) return false;
  if (x.b_is_EKN) {
    launch<Tile<c.block_m, c.block_n, c.stages, c.slots, c.cluster_m, c.cluster_n, Major::kK,
                Major::kMN>>(x.a_RK, x.b, x.row_tiles, x.out_RN, x.config, x.stream);
  } else {
    launch<Tile<c.block_m, c.block_n, c.stages, c.slots, c.cluster_m, c.cluster_n, Major::kK,
                Major::kK>>(x.a_RK, x.b, x.row_tiles, x.out_RN, x.config, x.stream);
  }
  return true;
}

template <std::size_t... kIndices>
bool dispatch(const Arguments& x, std::index_sequence<kIndices...>) {
  return (try_launch<kIndices>(x) || ...);
}

}  // namespace

void grouped_gemm(ConstTensorView a_RK, ConstTensorView b, bool b_is_EKN, const void* row_tiles,
                  TensorView out_RN, const GemmConfig& config, Stream stream) {
  if (out_RN.numel() == 0) return;
  const Arguments x{
      a_RK, b, b_is_EKN, row_tiles, out_RN, config, static_cast<cudaStream_t>(stream)};
  if (!dispatch(x, std::make_index_sequence<std::size(kGroupedGemmVariants)>())) {
    throw Error(ErrorKind::kInternal, "no grouped GEMM variant for the chosen tile", "", __FILE__,
                __LINE__);
  }
}

}  // namespace dropless::cuda
