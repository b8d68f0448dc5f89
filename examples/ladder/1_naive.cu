// Rung 1: a thread for each element of the output.
//
// A warp's threads share a row of x and read 32 rows of w, each at its own address: every load of w is
// 32 memory transactions of which two bytes are used. Nothing is kept for a neighbour.
#include "examples/ladder/row_tile.cuh"
#include "src/cuda/check.h"

namespace dropless::ladder {
namespace {

constexpr int kColumns = 32;
constexpr int kRows = 8;

__global__ void __launch_bounds__(kColumns* kRows) naive_kernel(const Problem p) {
  const cuda::RowTile tile = row_tile(p.row_tiles, blockIdx.z);
  const int in_tile = blockIdx.y * kRows + threadIdx.y;
  if (in_tile >= tile.rows) return;
  const std::int64_t row = tile.row + in_tile;
  const std::int64_t column = blockIdx.x * kColumns + threadIdx.x;
  const __nv_bfloat16* x = p.x_RK + row * p.k;
  const __nv_bfloat16* w = p.w_ENK + (static_cast<std::int64_t>(tile.expert) * p.n + column) * p.k;
  float sum = 0.0f;
  for (int k = 0; k < p.k; ++k) sum += __bfloat162float(x[k]) * __bfloat162float(w[k]);
  p.out_RN[row * p.n + column] = __float2bfloat16(sum);
}

}  // namespace

void naive(const Problem& p, cudaStream_t stream) {
  const dim3 grid(p.n / kColumns, kTileRows / kRows, p.most_tiles);
  naive_kernel<<<grid, dim3(kColumns, kRows), 0, stream>>>(p);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::ladder
