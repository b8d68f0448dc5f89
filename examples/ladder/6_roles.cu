// Rung 6: roles. One thread only loads, two warpgroups only multiply; a pair of barriers a stage is all
// they share, so nobody waits for a step of somebody else. The loading warpgroup gives its registers
// away: 128 x 256 outputs fit, which read a quarter less from L2 for each multiply-add than 128 x 128.
// One group of wgmmas stays in flight while the next is issued.
#include "examples/ladder/wgmma_tile.cuh"
#include "src/cuda/check.h"

namespace dropless::ladder {
namespace {

using namespace cuda::ptx;

constexpr int kColumns = 256;
constexpr int kStages = 4;
constexpr int kBytesX = 128 * kSlice * 2;
constexpr int kBytesW = kColumns * kSlice * 2;
constexpr int kStageBytes = kBytesX + kBytesW;
constexpr int kSharedBytes = kStages * (kStageBytes + 16);
constexpr int kThreads = 384;

struct Ring {
  std::uint32_t base;
  __device__ std::uint32_t stage(int slice) const { return base + slice % kStages * kStageBytes; }
  __device__ std::uint32_t full(int slice) const {
    return base + kStages * kStageBytes + slice % kStages * 16;
  }
  __device__ std::uint32_t empty(int slice) const { return full(slice) + 8; }
  __device__ static std::uint32_t parity(int slice) { return slice / kStages % 2; }
};

__device__ __forceinline__ void load(const Ring& ring, const CUtensorMap* x, const CUtensorMap* w,
                                     const cuda::RowTile& tile, int n0, int slices) {
  for (int slice = 0; slice < slices; ++slice) {
    mbarrier_wait(ring.empty(slice), Ring::parity(slice) ^ 1);  // the first lap passes at once
    mbarrier_arrive_expect_bytes(ring.full(slice), kStageBytes);
    tma_load(x, ring.full(slice), ring.stage(slice), slice * kSlice, tile.row, 0);
    tma_load(w, ring.full(slice), ring.stage(slice) + kBytesX, slice * kSlice, n0, tile.expert);
  }
}

__device__ __forceinline__ void multiply(const Ring& ring, int warpgroup, int slices,
                                         float (&sums)[kColumns / 2]) {
  const bool leader = threadIdx.x % 32 == 0;
  for (int slice = 0; slice < slices; ++slice) {
    const std::uint32_t stage = ring.stage(slice);
    mbarrier_wait(ring.full(slice), Ring::parity(slice));
    multiply_slice<kColumns>(sums, stage + warpgroup * 64 * kSlice * 2, stage + kBytesX,
                             slice == 0);
    wgmma_wait<1>();  // the group before is complete, its stage free
    if (leader && slice > 0) mbarrier_arrive(ring.empty(slice - 1));
  }
  wgmma_wait<0>();
  fence<kColumns>(sums);
}

__global__ void __launch_bounds__(kThreads, 1)
    roles_kernel(const Problem p, const __grid_constant__ CUtensorMap x,
                 const __grid_constant__ CUtensorMap w) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  const Ring ring{shared_address(bytes)};
  const cuda::RowTile tile = row_tile(p.row_tiles, blockIdx.y);
  if (tile.rows == 0) return;
  const int n0 = blockIdx.x * kColumns;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(ring.full(stage), 1);
      mbarrier_init(ring.empty(stage), 8);  // one arrival of each multiplying warp
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (warpgroup == 2) {
    register_decrease<40>();
    if (threadIdx.x == 256) load(ring, &x, &w, tile, n0, p.k / kSlice);
    return;
  }
  register_increase<232>();
  float sums[kColumns / 2];
  multiply(ring, warpgroup, p.k / kSlice, sums);
  const int row = warpgroup * 64;
  store_sums<kColumns>(sums, p.out_RN + static_cast<std::int64_t>(tile.row + row) * p.n + n0, p.n,
                       tile.rows - row);
}

}  // namespace

void roles(const Problem& p, cudaStream_t stream) {
  DROPLESS_CUDA_CHECK(cudaFuncSetAttribute(
      roles_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  roles_kernel<<<dim3(p.n / kColumns, p.most_tiles), kThreads, kSharedBytes, stream>>>(
      p, x_map(p, kTileRows), w_map(p, kColumns));
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::ladder
