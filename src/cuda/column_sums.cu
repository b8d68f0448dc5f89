// Sums of an expert's rows, the gradients of its biases: a CTA sums a row tile by 256 columns, then
// a thread adds the tiles of an expert in order. No atomics: the routing alone decides the bits.
#include <cuda_runtime.h>

#include "src/common/math.h"
#include "src/cuda/check.h"
#include "src/cuda/device/scheduler.cuh"
#include "src/cuda/device/vector.cuh"
#include "src/cuda/element.h"
#include "src/cuda/kernels.h"

namespace dropless::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 256;                          // a vector of 8 a lane
constexpr int kRowsPerWarp = kColumnSumRows / kWarps;  // of a whole tile

__device__ __forceinline__ const RowTile* tiles_of(const int* row_tiles) {
  return reinterpret_cast<const RowTile*>(row_tiles + 4);
}

// Where the sums of the tile that begins at `row` go, whatever the order of the table: an expert's tiles, which begin at its first
// row + 128 i, in order. The last one of expert e lies at most at (end - 1) / 128 + e, the first of e + 1 at end / 128 + e + 1: no
// two in one place, and all below tile_bound.
__device__ __forceinline__ std::int64_t slot_of(std::int64_t row, int expert) {
  return row / kColumnSumRows + expert;
}

template <class Element>
__global__ void __launch_bounds__(kThreads)
    tile_sums_kernel(const uint4* rows_RN, const float* weights_R, const int* row_tiles, int width,
                     float* partials_SN) {
  __shared__ float shared[kWarps][kColumns];
  if (static_cast<int>(blockIdx.x) >= *row_tiles) return;
  const RowTile tile = tiles_of(row_tiles)[blockIdx.x];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int vectors = width / 8;
  const int vector = static_cast<int>(blockIdx.y) * 32 + lane;
  float sum[8] = {};
  if (vector < vectors) {
#pragma unroll 8
    for (int i = 0; i < kRowsPerWarp; ++i) {
      const int at = warp + kWarps * i;
      if (at >= tile.rows) continue;
      const std::int64_t row = tile.row + at;
      float value[8];
      to_floats(__ldg(rows_RN + row * vectors + vector), value, Element{});
      const float weight = weights_R == nullptr ? 1.0f : __ldg(weights_R + row);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] = fmaf(weight, value[j], sum[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) shared[warp][8 * lane + j] = sum[j];
  __syncthreads();
  const int column = static_cast<int>(blockIdx.y) * kColumns + threadIdx.x;
  if (column >= width) return;
  float total = 0.0f;
  for (int w = 0; w < kWarps; ++w) total += shared[w][threadIdx.x];
  partials_SN[slot_of(tile.row, tile.expert) * width + column] = total;
}

template <class Element>
__global__ void __launch_bounds__(kThreads)
    add_tiles_kernel(const float* partials_SN, const std::int64_t* offsets_E1, int width,
                     std::int64_t pitch, Element* out_EN) {
  const int expert = blockIdx.y;
  const int column = static_cast<int>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= width) return;
  const std::int64_t rows = offsets_E1[expert + 1] - offsets_E1[expert];
  const auto count = static_cast<int>((rows + kColumnSumRows - 1) / kColumnSumRows);
  const std::int64_t first = slot_of(offsets_E1[expert], expert);
  float sum = 0.0f;
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    sum += partials_SN[(first + i) * width + column];
  }
  out_EN[expert * pitch + column] = static_cast<Element>(sum);
}

std::int64_t tile_bound(std::int64_t rows, std::int64_t experts) {
  return rows / kColumnSumRows + experts;
}

}  // namespace

std::size_t column_sums_workspace_bytes(std::int64_t max_rows, std::int64_t num_experts,
                                        std::int64_t width) {
  return sizeof(float) * static_cast<std::size_t>(tile_bound(max_rows, num_experts) * width);
}

void column_sums(ConstTensorView rows_RN, const float* weights_R, const std::int64_t* offsets_E1,
                 const void* row_tiles, TensorView out_EN, void* workspace, Stream stream) {
  const std::int64_t rows = rows_RN.shape[0], width = rows_RN.shape[1], experts = out_EN.shape[0];
  if (out_EN.numel() == 0) return;
  const auto* tiles = static_cast<const int*>(row_tiles);
  auto* partials_SN = static_cast<float*>(workspace);
  const auto n = static_cast<int>(width);
  for_16_bit(rows_RN.dtype, "column_sums", [&](auto element) {
    using Element = decltype(element);
    tile_sums_kernel<Element><<<dim3(static_cast<unsigned>(tile_bound(rows, experts)),
                                     static_cast<unsigned>(ceil_div(width, kColumns))),
                                kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<const uint4*>(rows_RN.data), weights_R, tiles, n, partials_SN);
    add_tiles_kernel<<<dim3(static_cast<unsigned>(ceil_div(width, kThreads)),
                            static_cast<unsigned>(experts)),
                       kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        partials_SN, offsets_E1, n, out_EN.stride[0], static_cast<Element*>(out_EN.data));
  });
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
