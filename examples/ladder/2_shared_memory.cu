// Rung 2: a CTA computes 128 x 128 outputs and keeps what it reads in shared memory.
//
// Of each slice of 16 along k every element of x and w is read from memory once and used 128 times. A
// thread holds 8 x 8 sums in registers: 16 reads of shared memory feed 64 multiply-adds.
#include "examples/ladder/row_tile.cuh"
#include "src/cuda/check.h"

namespace dropless::ladder {
namespace {

constexpr int kTileColumns = 128;
constexpr int kSlice = 16;
constexpr int kThreads = 256;
constexpr int kPitch = 132;  // floats: columns of a slice fall into different banks

// Rows `first` .. of a [*, k] matrix, columns k0 .. k0 + 15, as float, k outermost; zeros past `valid`.
__device__ __forceinline__ void load_slice(const __nv_bfloat16* rows, int pitch, int k0, int valid,
                                           float (&slice)[kSlice][kPitch]) {
  const int row = threadIdx.x / 2;
  const int k = threadIdx.x % 2 * 8;
  uint4 bits{};
  if (row < valid) {
    bits = *reinterpret_cast<const uint4*>(rows + static_cast<std::int64_t>(row) * pitch + k0 + k);
  }
  const auto* values = reinterpret_cast<const __nv_bfloat162*>(&bits);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __bfloat1622float2(values[i]);
    slice[k + 2 * i][row] = pair.x;
    slice[k + 2 * i + 1][row] = pair.y;
  }
}

__global__ void __launch_bounds__(kThreads) shared_memory_kernel(const Problem p) {
  __shared__ float x[kSlice][kPitch];
  __shared__ float w[kSlice][kPitch];
  const cuda::RowTile tile = row_tile(p.row_tiles, blockIdx.y);
  if (tile.rows == 0) return;
  const std::int64_t n0 = blockIdx.x * kTileColumns;
  const __nv_bfloat16* x_rows = p.x_RK + static_cast<std::int64_t>(tile.row) * p.k;
  const __nv_bfloat16* w_rows = p.w_ENK + (static_cast<std::int64_t>(tile.expert) * p.n + n0) * p.k;
  // Rows ty + 16 i and columns tx + 16 j: a warp reads 16 neighbours of w at a time.
  const int tx = threadIdx.x % 16;
  const int ty = threadIdx.x / 16;
  float sums[8][8] = {};
  for (int k0 = 0; k0 < p.k; k0 += kSlice) {
    load_slice(x_rows, p.k, k0, tile.rows, x);
    load_slice(w_rows, p.k, k0, kTileColumns, w);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kSlice; ++k) {
      float a[8], b[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        a[i] = x[k][ty + 16 * i];
        b[i] = w[k][tx + 16 * i];
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] += a[i] * b[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (ty + 16 * i >= tile.rows) break;
    __nv_bfloat16* out = p.out_RN + static_cast<std::int64_t>(tile.row + ty + 16 * i) * p.n + n0;
#pragma unroll
    for (int j = 0; j < 8; ++j) out[tx + 16 * j] = __float2bfloat16(sums[i][j]);
  }
}

}  // namespace

void shared_memory(const Problem& p, cudaStream_t stream) {
  shared_memory_kernel<<<dim3(p.n / kTileColumns, p.most_tiles), kThreads, 0, stream>>>(p);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::ladder
