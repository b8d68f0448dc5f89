// Cuts the experts' rows into row tiles on the device, so that the host never waits for the counts.
#include <cuda_runtime.h>

#include "src/cuda/check.h"
#include "src/cuda/device/scan.cuh"
#include "src/cuda/device/scheduler.cuh"
#include "src/cuda/kernels.h"

namespace dropless::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kHeaderBytes = 16;  // the count; keeps the records aligned

// One CTA: thread i counts the tiles of expert i, a scan places them, then all threads write.
__global__ void __launch_bounds__(kThreads)
    row_tiles_kernel(const std::int64_t* offsets_E1, int experts, int block_m, int* count,
                     RowTile* tiles) {
  __shared__ int scratch[kThreads / 32];
  __shared__ int first_tile[kThreads + 1];
  int base = 0;
  for (int chunk = 0; chunk < experts; chunk += kThreads) {
    const int expert = chunk + threadIdx.x;
    int own = 0;
    if (expert < experts) {
      const auto rows = static_cast<int>(offsets_E1[expert + 1] - offsets_E1[expert]);
      own = (rows + block_m - 1) / block_m;
    }
    int total;
    first_tile[threadIdx.x] = base + exclusive_scan<kThreads>(own, scratch, total);
    __syncthreads();
    // A warp per expert.
    const int end = min(kThreads, experts - chunk);
    for (int i = threadIdx.x / 32; i < end; i += kThreads / 32) {
      const std::int64_t row0 = offsets_E1[chunk + i];
      const std::int64_t row1 = offsets_E1[chunk + i + 1];
      RowTile* out = tiles + first_tile[i];
      const int lane = threadIdx.x % 32;
      for (std::int64_t row = row0 + lane * block_m; row < row1; row += 32 * block_m) {
        out[(row - row0) / block_m] = {chunk + i, static_cast<int>(row),
                                       static_cast<int>(min(row1 - row, std::int64_t{block_m})), 0};
      }
    }
    base += total;
    __syncthreads();
  }
  if (threadIdx.x == 0) *count = base;
}

}  // namespace

std::size_t row_tiles_bytes(std::int64_t max_rows, std::int64_t num_experts, int block_m) {
  return kHeaderBytes +
         sizeof(RowTile) * static_cast<std::size_t>(max_rows / block_m + num_experts);
}

void build_row_tiles(const std::int64_t* offsets_E1, std::int64_t num_experts, int block_m,
                     void* row_tiles, Stream stream) {
  auto* bytes = static_cast<unsigned char*>(row_tiles);
  row_tiles_kernel<<<1, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      offsets_E1, static_cast<int>(num_experts), block_m, reinterpret_cast<int*>(bytes),
      reinterpret_cast<RowTile*>(bytes + kHeaderBytes));
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
