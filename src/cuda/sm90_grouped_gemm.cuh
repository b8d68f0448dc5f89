// Grouped GEMM on Hopper, forward and input gradient: out_RN = a_RK B_e over rows sorted by expert.
#pragma once

#include <iterator>
#include <utility>

#include "src/cuda/check.h"
#include "src/cuda/device/gemm.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/operands.cuh"

namespace dropless::cuda::sm90_grouped_gemm {

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
  ConstTensorView bias_EN;  // or absent
  const GatherBeside& beside;
};

template <class Tile, class Element, bool kBias = false>
void launch(const Arguments& x) {
  using Schedule = RowTileSchedule<Tile>;
  using Epilogue = StoreEpilogue<Tile, Element, StoreMode::kOverwrite, kBias>;
  const std::int64_t rows = x.a_RK.shape[0], k = x.a_RK.shape[1], n = x.out_RN.shape[1];
  Operands operands = one_term(row_operand<Tile>(x.a_RK), weight_operand<Tile>(x.b));
  if constexpr (Tile::kTerms == 2) {
    operands.a[1] = row_operand<Tile>(x.a2_RK);
    operands.b[1] = weight_operand<Tile>(x.b2);
  }
  operands.beside = job_beside(x.beside, x.stream);
  typename Epilogue::Params epilogue{};
  epilogue.out = row_output<Element>(x.out_RN);
  if constexpr (kBias) epilogue.bias[0] = expert_bias<Element>(x.bias_EN);
  launch_persistent(gemm_kernel<Tile, Schedule, Epilogue>, kGemmThreads, Tile::kSharedBytes,
                    Tile::kCluster, row_tile_bound<Tile>(rows, x.b.shape[0], n), x.stream, operands,
                    row_tile_schedule<Tile>(x.row_tiles, n, k, x.config.raster_width), epilogue);
}

// Launches variant kIndex if it is the one asked for.
template <class Element, std::size_t kIndex>
bool try_launch(const Arguments& x) {
  constexpr GemmConfig c = kGroupedGemmVariants[kIndex];
  if (!c.same_kernel(x.config)) return false;
  using WeightsENK = Tile<c.block_m, c.block_n, c.stages, c.slots, c.cluster_m, c.cluster_n,
                          Major::kK, Major::kK, 1, 1, false, Element>;
  using WeightsEKN = Tile<c.block_m, c.block_n, c.stages, c.slots, c.cluster_m, c.cluster_n,
                          Major::kK, Major::kMN, 1, 1, false, Element>;
  using TwoTerms = Tile<c.block_m, c.block_n, c.stages, c.slots, c.cluster_m, c.cluster_n,
                        Major::kK, Major::kMN, 1, 2, false, Element>;
  if (x.out_RN.dtype == DType::kFloat32) {
    launch<WeightsENK, float>(x);
  } else if (x.a2_RK) {
    launch<TwoTerms, Element>(x);
  } else if (x.bias_EN) {
    launch<WeightsEKN, Element, true>(x);
  } else if (x.b_is_EKN) {
    launch<WeightsEKN, Element>(x);
  } else {
    launch<WeightsENK, Element>(x);
  }
  return true;
}

template <class Element, std::size_t... kIndices>
bool dispatch(const Arguments& x, std::index_sequence<kIndices...>) {
  return (try_launch<Element, kIndices>(x) || ...);
}

template <class Element>
void run(const Arguments& x) {
  if (!dispatch<Element>(x, std::make_index_sequence<std::size(kGroupedGemmVariants)>())) {
    throw Error(ErrorKind::kInternal, "no grouped GEMM variant for the chosen tile", "", __FILE__,
                __LINE__);
  }
}

extern template void run<__half>(const Arguments& x);  // in a file of its own: builds in parallel

}  // namespace dropless::cuda::sm90_grouped_gemm
