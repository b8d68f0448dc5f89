// Rung 5: Hopper's own units. One thread asks the copy engine (TMA) for whole boxes, which arrive
// swizzled, and a barrier counts their bytes; four warps together multiply 64 x 128 x 64 from shared
// memory (wgmma), with no operand in a register.
//
// Still everybody waits for everybody once a slice.
#include "examples/ladder/wgmma_tile.cuh"
#include "src/cuda/check.h"

namespace dropless::ladder {
namespace {

using namespace cuda::ptx;  // the instructions, by their names

constexpr int kColumns = 128;
constexpr int kStages = 4;
constexpr int kOperandBytes = 128 * kSlice * 2;
constexpr int kStageBytes = 2 * kOperandBytes;
constexpr int kSharedBytes = kStages * (kStageBytes + 8);
constexpr int kThreads = 256;  // two warpgroups, 64 rows each

__global__ void __launch_bounds__(kThreads)
    copy_engine_kernel(const Problem p, const __grid_constant__ CUtensorMap x,
                       const __grid_constant__ CUtensorMap w) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  const std::uint32_t ring = shared_address(bytes);
  const std::uint32_t barriers = ring + kStages * kStageBytes;
  const cuda::RowTile tile = row_tile(p.row_tiles, blockIdx.y);
  if (tile.rows == 0) return;
  const int n0 = blockIdx.x * kColumns;
  const int slices = p.k / kSlice;
  const auto load = [&](int slice) {
    const std::uint32_t stage = ring + slice % kStages * kStageBytes;
    const std::uint32_t full = barriers + slice % kStages * 8;
    mbarrier_arrive_expect_bytes(full, kStageBytes);
    tma_load(&x, full, stage, slice * kSlice, tile.row, 0);
    tma_load(&w, full, stage + kOperandBytes, slice * kSlice, n0, tile.expert);
  };
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) mbarrier_init(barriers + 8 * stage, 1);
    fence_mbarrier_init();
    for (int slice = 0; slice < kStages && slice < slices; ++slice) load(slice);
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  float sums[kColumns / 2];
  for (int slice = 0; slice < slices; ++slice) {
    const std::uint32_t stage = ring + slice % kStages * kStageBytes;
    mbarrier_wait(barriers + slice % kStages * 8, slice / kStages % 2);
    multiply_slice<kColumns>(sums, stage + warpgroup * 64 * kSlice * 2, stage + kOperandBytes,
                             slice == 0);
    wgmma_wait<0>();
    __syncthreads();  // both warpgroups are done with the stage
    if (threadIdx.x == 0 && slice + kStages < slices) load(slice + kStages);
  }
  fence<kColumns>(sums);
  const int row = warpgroup * 64;
  store_sums<kColumns>(sums, p.out_RN + static_cast<std::int64_t>(tile.row + row) * p.n + n0, p.n,
                       tile.rows - row);
}

}  // namespace

void copy_engine(const Problem& p, cudaStream_t stream) {
  DROPLESS_CUDA_CHECK(cudaFuncSetAttribute(
      copy_engine_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  copy_engine_kernel<<<dim3(p.n / kColumns, p.most_tiles), kThreads, kSharedBytes, stream>>>(
      p, x_map(p, kTileRows), w_map(p, kColumns));
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::ladder
