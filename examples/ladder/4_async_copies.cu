// Rung 4: four slices in flight. cp.async copies from memory to shared memory without registers and
// without waiting: while a slice is multiplied, the next three are on their way.
#include "examples/ladder/mma.cuh"
#include "src/cuda/check.h"

namespace dropless::ladder {
namespace {

constexpr int kStages = 4;
constexpr int kStageBytes = 2 * kMmaOperandBytes;
constexpr int kSharedBytes = kStages * kStageBytes;

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void load_slice(const __nv_bfloat16* rows, int pitch, int k0, int valid,
                                           std::uint32_t slice) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = static_cast<int>(threadIdx.x) / 4 + 64 * i;
    const int vector = threadIdx.x % 4;
    const std::int64_t source = row < valid ? static_cast<std::int64_t>(row) * pitch : 0;
    cuda::ptx::copy_async16(slice + row * kMmaPitch + vector * 16, rows + source + k0 + vector * 8,
                            row < valid ? 16 : 0);
  }
}

__global__ void __launch_bounds__(kMmaThreads, 2) async_copies_kernel(const Problem p) {
  extern __shared__ __align__(16) unsigned char bytes[];
  const std::uint32_t ring = cuda::ptx::shared_address(bytes);
  const cuda::RowTile tile = row_tile(p.row_tiles, blockIdx.y);
  if (tile.rows == 0) return;
  const std::int64_t n0 = blockIdx.x * 128;
  const __nv_bfloat16* x_rows = p.x_RK + static_cast<std::int64_t>(tile.row) * p.k;
  const __nv_bfloat16* w_rows = p.w_ENK + (static_cast<std::int64_t>(tile.expert) * p.n + n0) * p.k;
  const auto load = [&](int slice) {
    const std::uint32_t stage = ring + slice % kStages * kStageBytes;
    if (slice * kMmaSlice < p.k) {
      load_slice(x_rows, p.k, slice * kMmaSlice, tile.rows, stage);
      load_slice(w_rows, p.k, slice * kMmaSlice, 128, stage + kMmaOperandBytes);
    }
    commit();  // an empty group too: the count of groups in flight stays the same
  };
  for (int slice = 0; slice < kStages - 1; ++slice) load(slice);
  WarpTile sums;
  for (int slice = 0; slice * kMmaSlice < p.k; ++slice) {
    wait<kStages - 2>();
    __syncthreads();  // the slice is there for all, and all are done with the one before
    load(slice + kStages - 1);
    const std::uint32_t stage = ring + slice % kStages * kStageBytes;
    sums.multiply(stage, stage + kMmaOperandBytes);
  }
  sums.store(p.out_RN + static_cast<std::int64_t>(tile.row) * p.n + n0, p.n, tile.rows);
}

}  // namespace

void async_copies(const Problem& p, cudaStream_t stream) {
  DROPLESS_CUDA_CHECK(cudaFuncSetAttribute(
      async_copies_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  async_copies_kernel<<<dim3(p.n / 128, p.most_tiles), kMmaThreads, kSharedBytes, stream>>>(p);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::ladder
