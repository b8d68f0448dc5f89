// Operands, schedules and the launch of the portable matrix products.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "dropless/error.h"
#include "src/cuda/check.h"
#include "src/cuda/device/mma_epilogue.cuh"
#include "src/cuda/device/mma_gemm.cuh"
#include "src/cuda/element.h"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"

namespace dropless::cuda::mma {

// Row tiles in a band, where no GemmConfig says otherwise.
inline constexpr int kRasterWidth = 16;
constexpr int raster_width(const GemmConfig& config) {
  return config.raster_width * config.cluster_m;
}

// Throws where rows cannot be read and written 16 bytes at a time.
template <class View>
void expect_vectors(const View& tensor) {
  const auto bytes = static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
  bool aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0;
  for (int i = 0; i + 1 < tensor.rank; ++i) {
    aligned = aligned && (tensor.shape[i] <= 1 || tensor.stride[i] * bytes % 16 == 0);
  }
  if (aligned) return;
  throw Error(ErrorKind::kInvalidArgument, "tensor is not aligned to 16 bytes",
              "widths must be multiples of 8 (16-bit types) and pointers 16-byte aligned", __FILE__,
              __LINE__);
}

// Rows are found by 32-bit offsets in vectors of 16 bytes.
inline void expect_offsets(std::int64_t rows, std::int64_t pitch) {
  if (rows * (pitch / 8) < std::int64_t{1} << 32) return;
  throw Error(ErrorKind::kInvalidArgument,
              "a product's operand has " + std::to_string(rows) + " rows of " +
                  std::to_string(pitch) + " elements, more than 64 GiB",
              "process fewer tokens at a time", __FILE__, __LINE__);
}

// Sets one term of the product: A [rows, k] or [k, m], B [n, k] or [k, n], one for each expert (rank
// 3) or one in all (rank 2).
inline void set_term(Operands& operands, int term, const ConstTensorView& a,
                     const ConstTensorView& b) {
  expect_vectors(a);
  expect_vectors(b);
  expect_offsets(a.shape[0], a.stride[0]);
  expect_offsets(b.shape[b.rank - 2], b.stride[b.rank - 2]);
  operands.a[term] = static_cast<const uint4*>(a.data);
  operands.pitch_a[term] = a.stride[0] / 8;
  operands.b[term] = static_cast<const uint4*>(b.data);
  operands.pitch_b[term] = b.stride[b.rank - 2] / 8;
  operands.batch_b[term] = b.rank == 3 ? b.stride[0] / 8 : 0;
}

template <class Element, class View>
Matrix<Element> matrix(const View& view) {
  if (!view) return {};
  expect_vectors(view);
  return {static_cast<Element*>(view.data), view.stride[view.rank - 2],
          view.rank == 3 ? view.stride[0] : 0};
}

// One CTA an SM, no more than there are tiles.
template <class Tile, class Schedule, class Epilogue>
void launch(const Operands& operands, const typename Schedule::Params& schedule,
            const typename Epilogue::Params& epilogue, std::int64_t max_tiles,
            cudaStream_t stream) {
  const auto kernel = gemm_kernel<Tile, Schedule, Epilogue>;
  DROPLESS_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           Tile::kSharedBytes));
  const auto ctas = static_cast<unsigned>(std::min<std::int64_t>(multiprocessors(), max_tiles));
  kernel<<<ctas, kThreads, Tile::kSharedBytes, stream>>>(operands, schedule, epilogue);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

// Products of row tiles: D [rows, n], `experts` sets of weights.
template <class Tile, class Epilogue>
void launch_row_tiles(const Operands& operands, const void* row_tiles, std::int64_t rows,
                      std::int64_t experts, std::int64_t k,
                      const typename Epilogue::Params& epilogue, int width, cudaStream_t stream) {
  using Schedule = RowTileSchedule<Tile>;
  const auto* count = static_cast<const int*>(row_tiles);
  const int tiles_n = (operands.n + Tile::kStepN - 1) / Tile::kStepN;
  launch<Tile, Schedule, Epilogue>(
      operands,
      {count, reinterpret_cast<const RowTile*>(count + 4), tiles_n, static_cast<int>(k), width},
      epilogue, (rows / Tile::kBlockM + experts) * tiles_n, stream);
}

}  // namespace dropless::cuda::mma
