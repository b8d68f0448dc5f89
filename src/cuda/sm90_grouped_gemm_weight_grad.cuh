// Weight gradient on Hopper: out_e [M, N] = a_e^T b_e, k running over the rows of expert e.
//
// Both operands are read MN-major as they lie in memory, no transposed copies. The last slice of an
// expert is cut in shared memory (device/gemm.cuh, zero_k_tail), so the rows need no padding.
#pragma once

#include <iterator>
#include <utility>

#include "src/cuda/check.h"
#include "src/cuda/device/gemm.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/operands.cuh"

namespace dropless::cuda::sm90_weight_grad {

struct Arguments {
  const ConstTensorView& a_RM;
  const ConstTensorView& b_RN;
  const std::int64_t* offsets_E1;
  const TensorView& out_EMN;
  bool accumulate;
  const GemmConfig& config;
  cudaStream_t stream;
  const GatherBeside& beside;
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
                                             .dtype = x.a_RM.dtype,
                                             .dims = {m, rows, 1},
                                             .row_pitch = x.a_RM.stride[0],
                                             .box = {64, kBlockK}});
  const CUtensorMap map_b = make_tensor_map({.data = x.b_RN.data,
                                             .dtype = x.b_RN.dtype,
                                             .dims = {n, rows, 1},
                                             .row_pitch = x.b_RN.stride[0],
                                             .box = {64, kBlockK}});
  typename Epilogue::Params epilogue{};
  epilogue.out = {make_tensor_map({.data = x.out_EMN.data,
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
  Operands operands = one_term(map_a, map_b);
  operands.beside = job_beside(x.beside, x.stream);
  launch_persistent(gemm_kernel<Tile, Schedule, Epilogue>, kGemmThreads, Tile::kSharedBytes,
                    Tile::kCluster, clusters, x.stream, operands, schedule, epilogue);
}

template <class Element, std::size_t kIndex>
bool try_launch(const Arguments& x) {
  constexpr GemmConfig c = kWeightGradVariants[kIndex];
  if (!c.same_kernel(x.config)) return false;
  using Chosen = Tile<c.block_m, c.block_n, c.stages, c.slots, c.cluster_m, c.cluster_n, Major::kMN,
                      Major::kMN, 1, 1, false, Element>;
  if (x.out_EMN.dtype != DType::kFloat32) {
    launch<Chosen, Element, StoreMode::kOverwrite>(x);
  } else if (x.accumulate) {
    launch<Chosen, float, StoreMode::kAdd>(x);
  } else {
    launch<Chosen, float, StoreMode::kOverwrite>(x);
  }
  return true;
}

template <class Element, std::size_t... kIndices>
bool dispatch(const Arguments& x, std::index_sequence<kIndices...>) {
  return (try_launch<Element, kIndices>(x) || ...);
}

template <class Element>
void run(const Arguments& x) {
  if (!dispatch<Element>(x, std::make_index_sequence<std::size(kWeightGradVariants)>())) {
    throw Error(ErrorKind::kInternal, "no weight gradient variant for the chosen tile", "",
                __FILE__, __LINE__);
  }
}

extern template void run<__half>(const Arguments& x);  // in a file of its own: builds in parallel

}  // namespace dropless::cuda::sm90_weight_grad
