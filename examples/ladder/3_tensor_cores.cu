// Rung 3: the same tile on the tensor cores, 16 x 8 x 16 multiply-adds by one instruction of a warp.
//
// Operands stay bf16 in shared memory and reach the registers by ldmatrix. Loading and multiplying take
// turns: while one goes on, the other's units wait.
#include "examples/ladder/mma.cuh"
#include "src/cuda/check.h"

namespace dropless::ladder {
namespace {

// 128 rows of 32 along k, two 16-byte vectors a thread; zeros past `valid`.
__device__ __forceinline__ void load_slice(const __nv_bfloat16* rows, int pitch, int k0, int valid,
                                           std::uint32_t slice) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = static_cast<int>(threadIdx.x) / 4 + 64 * i;
    const int vector = threadIdx.x % 4;
    int4 bits{};
    if (row < valid) {
      bits = *reinterpret_cast<const int4*>(rows + static_cast<std::int64_t>(row) * pitch + k0 +
                                            vector * 8);
    }
    cuda::ptx::store_shared(slice + row * kMmaPitch + vector * 16, bits);
  }
}

__global__ void __launch_bounds__(kMmaThreads) tensor_cores_kernel(const Problem p) {
  __shared__ __align__(16) unsigned char bytes[2 * kMmaOperandBytes];
  const std::uint32_t x = cuda::ptx::shared_address(bytes);
  const std::uint32_t w = x + kMmaOperandBytes;
  const cuda::RowTile tile = row_tile(p.row_tiles, blockIdx.y);
  if (tile.rows == 0) return;
  const std::int64_t n0 = blockIdx.x * 128;
  const __nv_bfloat16* x_rows = p.x_RK + static_cast<std::int64_t>(tile.row) * p.k;
  const __nv_bfloat16* w_rows = p.w_ENK + (static_cast<std::int64_t>(tile.expert) * p.n + n0) * p.k;
  WarpTile sums;
  for (int k0 = 0; k0 < p.k; k0 += kMmaSlice) {
    load_slice(x_rows, p.k, k0, tile.rows, x);
    load_slice(w_rows, p.k, k0, 128, w);
    __syncthreads();
    sums.multiply(x, w);
    __syncthreads();
  }
  sums.store(p.out_RN + static_cast<std::int64_t>(tile.row) * p.n + n0, p.n, tile.rows);
}

}  // namespace

void tensor_cores(const Problem& p, cudaStream_t stream) {
  tensor_cores_kernel<<<dim3(p.n / 128, p.most_tiles), kMmaThreads, 0, stream>>>(p);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::ladder
