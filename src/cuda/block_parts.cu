// The contract is block_parts.h.
#include "src/cuda/block_parts.h"

#include "src/common/math.h"
#include "src/cuda/check.h"
#include "src/cuda/device/block_schedule.cuh"
#include "src/cuda/element.h"
#include "src/cuda/gemm_config.h"
#include "src/cuda/launch.cuh"

namespace dropless::cuda {
namespace {

constexpr int kTile = 32;

// A CTA of 32 x 8 threads a tile of 32 x 32.
template <class Element, bool kTransposed>
__global__ void __launch_bounds__(kTile * 8)
    sum_kernel(const float* sums, int parts, int rows, int columns, Element* out) {
  __shared__ float tile[kTile][kTile + 1];
  const int column = static_cast<int>(blockIdx.x) * kTile + threadIdx.x;
  const int top = static_cast<int>(blockIdx.y) * kTile;
  const std::int64_t size = static_cast<std::int64_t>(rows) * columns;
  for (int i = threadIdx.y; i < kTile; i += 8) {
    const int row = top + i;
    if (row >= rows || column >= columns) continue;
    const float* at = sums + static_cast<std::int64_t>(row) * columns + column;
    float sum = 0.0f;
    for (int part = 0; part < parts; ++part) sum += __ldg(at + part * size);
    if constexpr (kTransposed) {
      tile[i][threadIdx.x] = sum;
    } else {
      out[static_cast<std::int64_t>(row) * columns + column] = static_cast<Element>(sum);
    }
  }
  if constexpr (kTransposed) {
    __syncthreads();
    const int row = top + threadIdx.x;
    for (int i = threadIdx.y; i < kTile; i += 8) {
      const int to = static_cast<int>(blockIdx.x) * kTile + i;
      if (row >= rows || to >= columns) continue;
      out[static_cast<std::int64_t>(to) * rows + row] = static_cast<Element>(tile[threadIdx.x][i]);
    }
  }
}

}  // namespace

WalkParts carve_walk_parts(WorkspaceCarver& carver, std::int64_t lines, std::int64_t dense_size,
                           std::int64_t blocks, std::size_t bytes) {
  int count = choose_walk_parts(lines, dense_size, blocks, multiprocessors() / 2);
  const std::int64_t size = lines * kBlock * dense_size;  // of a part's sums
  while (count > 1 && static_cast<std::size_t>(count * size) * sizeof(float) > bytes) --count;
  return {count, count > 1 ? carver.take<float>(count * size) : nullptr};
}

void sum_walk_parts(const WalkParts& parts, std::int64_t rows, std::int64_t columns,
                    bool transposed, const TensorView& out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, kTile)),
                  static_cast<unsigned>(ceil_div(rows, kTile)));
  for_16_bit(out.dtype, "sum_walk_parts", [&](auto element) {
    using Element = decltype(element);
    const auto kernel = transposed ? sum_kernel<Element, true> : sum_kernel<Element, false>;
    kernel<<<grid, dim3(kTile, 8), 0, stream>>>(parts.sums, parts.count, static_cast<int>(rows),
                                                static_cast<int>(columns),
                                                static_cast<Element*>(out.data));
  });
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
