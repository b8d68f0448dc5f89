// Tensor maps of the matrix products' operands, as the main loop's tiles read and write them.
#pragma once

#include "src/common/math.h"
#include "src/cuda/device/gemm.cuh"
#include "src/cuda/element.h"
#include "src/cuda/path.h"
#include "src/cuda/tensor_map.h"

namespace dropless::cuda {

// One pair of operands; the unused second maps repeat the first.
inline Operands one_term(const CUtensorMap& a, const CUtensorMap& b) { return {{a, a}, {b, b}}; }

// A from the rows of a contiguous matrix that `list` names, as a weight's other operand.
inline Operands gathered(const ConstTensorView& rows, const std::int32_t* list,
                         const CUtensorMap& b) {
  const std::int64_t vectors = rows.shape[1] / 8;
  if (rows.shape[0] * vectors >= std::int64_t{1} << 32) {
    throw Error(ErrorKind::kInvalidArgument,
                "rows to gather lie in [" + std::to_string(rows.shape[0]) + ", " +
                    std::to_string(rows.shape[1]) + "], more than 64 GiB",
                "process fewer tokens at a time", __FILE__, __LINE__);
  }
  return {.a = {},
          .b = {b, b},
          .rows = static_cast<const uint4*>(rows.data),
          .list = list,
          .vectors = static_cast<int>(vectors)};
}

// What a kernel does beside its product; what it cannot is done at once.
inline GatherJob job_beside(const GatherBeside& beside, cudaStream_t stream) {
  if (!beside) return {};
  const std::int64_t element = static_cast<std::int64_t>(dtype_bytes(beside.x_RD.dtype));
  const std::int64_t tokens = beside.x_TD.shape[0], bytes = beside.x_RD.shape[1] * element;
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  if (bytes % 16 != 0 || beside.top_k > kBesideMostTopK ||
      tokens * ceil_div(bytes, std::int64_t{16}) > kMost) {
    gather_before(beside, stream);
    return {};
  }
  return {.from = static_cast<const char*>(beside.x_TD.data),
          .to = static_cast<char*>(beside.x_RD.data),
          .rows_TK = beside.rows_TK,
          .pitch = beside.x_TD.stride[0] * element,
          .bytes = static_cast<int>(bytes),
          .tokens = static_cast<int>(tokens),
          .top_k = static_cast<int>(beside.top_k)};
}

// A [rows, k], K-major.
template <class Tile>
CUtensorMap row_operand(const ConstTensorView& a_RK) {
  return make_tensor_map({.data = a_RK.data,
                          .dtype = a_RK.dtype,
                          .dims = {a_RK.shape[1], a_RK.shape[0], 1},
                          .row_pitch = a_RK.stride[0],
                          .box = {kBlockK, Tile::kBlockM / Tile::kClusterN}});
}

// Weights [E, n, k] (K-major B) or [E, k, n] (MN-major B).
template <class Tile>
CUtensorMap weight_operand(const ConstTensorView& b) {
  constexpr bool kIsMN = Tile::kMajorB == Major::kMN;
  return make_tensor_map({.data = b.data,
                          .dtype = b.dtype,
                          .dims = {b.shape[2], b.shape[1], b.shape[0]},
                          .row_pitch = b.stride[1],
                          .batch_pitch = b.stride[0],
                          .box = {64, kIsMN ? kBlockK : Tile::kBlockN / Tile::kClusterM}});
}

template <class Element>
Output<Element> row_output(const TensorView& out_RN) {
  return {make_tensor_map({.data = out_RN.data,
                           .dtype = out_RN.dtype,
                           .dims = {out_RN.shape[1], out_RN.shape[0], 1},
                           .row_pitch = out_RN.stride[0],
                           .box = {128 / static_cast<int>(sizeof(Element)), 16}}),
          static_cast<Element*>(out_RN.data), out_RN.stride[0], static_cast<int>(out_RN.shape[1])};
}

template <class Element>
Bias<Element, true> expert_bias(const ConstTensorView& bias_EN) {
  return {static_cast<const Element*>(bias_EN.data), bias_EN.stride[0]};
}

template <class Tile>
typename RowTileSchedule<Tile>::Params row_tile_schedule(const void* row_tiles, std::int64_t n,
                                                         std::int64_t k, int raster_width) {
  const auto* count = static_cast<const int*>(row_tiles);
  return {count, reinterpret_cast<const RowTile*>(count + 4),
          static_cast<int>((n + Tile::kStepN - 1) / Tile::kStepN),
          Tile::kTerms == 1 ? static_cast<int>(k)
                            : static_cast<int>(2 * ((k + kBlockK - 1) / kBlockK * kBlockK)),
          raster_width};
}

// No launch needs more clusters than this.
template <class Tile>
long long row_tile_bound(std::int64_t rows, std::int64_t experts, std::int64_t n) {
  return (rows / Tile::kBlockM + experts + 1) * (n / Tile::kStepN + 1);
}

}  // namespace dropless::cuda
