// Cuts the experts' rows into row tiles on the device, so that the host never waits for the counts.
#include <cuda_runtime.h>

#include <string>

#include "src/cuda/check.h"
#include "src/cuda/device/scan.cuh"
#include "src/cuda/device/scheduler.cuh"
#include "src/cuda/kernels.h"

namespace dropless::cuda {
namespace {

constexpr int kMostExperts = 1024;
constexpr int kFewTiles = 3;      // measured: docs/kernels.md
constexpr int kHeaderBytes = 16;  // the count; keeps the records aligned

// Clusters of two take tiles 2 i and 2 i + 1, and share the expert's matrix where both are of one expert. Of experts A to D with
// 3, 2, 3 and 5 tiles, in order of experts
//
//     A0 A1 | A2 B0 | B1 C0 | C1 C2 | D0 D1 | D2 D3 | D4        two clusters share nothing; here one:
//     A0 A1 | A2 C2 | B0 B1 | C0 C1 | D0 D1 | D2 D3 | D4
//
// A2 and C2, the last of their experts, may be nearly empty: where both have at most 64 rows, they take half a tile's time. So
// only with experts of few tiles: of others fewer pairs are torn, and their matrix would be read again for an odd tile that
// stands apart (docs/kernels.md). Those come behind the ones with few, which an odd number of tiles would shift.
//
// One CTA: thread i counts the tiles of expert i, scans place them, then a warp per expert writes.
__global__ void __launch_bounds__(kMostExperts)
    row_tiles_kernel(const std::int64_t* offsets_E1, int experts, int block_m, int* count,
                     RowTile* tiles) {
  __shared__ int scratch[kMostExperts / 32];
  __shared__ int place[kMostExperts];    // of the expert's tiles
  __shared__ int partner[kMostExperts];  // whose odd tile follows the expert's own; -1: nobody's
  __shared__ int odd[kMostExperts + 1];  // the experts with an odd tile, then -1
  const auto tile_count = [&](int expert) {
    const auto rows = static_cast<int>(offsets_E1[expert + 1] - offsets_E1[expert]);
    return (rows + block_m - 1) / block_m;
  };
  const auto tile_of = [&](int expert, int i) {
    const std::int64_t row = offsets_E1[expert] + static_cast<std::int64_t>(i) * block_m;
    const std::int64_t left = offsets_E1[expert + 1] - row;
    return RowTile{expert, static_cast<int>(row),
                   static_cast<int>(min(left, std::int64_t{block_m})), 0};
  };
  const auto odd_tiles = [](int all) { return all <= kFewTiles ? all & 1 : 0; };
  const int own = threadIdx.x < experts ? tile_count(threadIdx.x) : 0;
  const bool few = own <= kFewTiles;
  // Of experts with few tiles: those in pairs in the lower half of the sum, the odd ones in the upper.
  static_assert(kMostExperts * kFewTiles < 1 << 15);
  int few_tiles, many_tiles;
  const int few_before =
      exclusive_scan<kMostExperts>(few ? (own & ~1) + ((own & 1) << 16) : 0, scratch, few_tiles);
  const int many_before = exclusive_scan<kMostExperts>(few ? 0 : own, scratch, many_tiles);
  const int paired = few_tiles & 0xffff, odds = few_tiles >> 16, at = few_before >> 16;
  if (odd_tiles(own) == 1) odd[at] = threadIdx.x;
  if (threadIdx.x == 0) odd[odds] = -1;
  __syncthreads();
  // Odd tiles before this expert's: of every two the first brings both. The last one of an odd number stands at the end.
  const int whole = odds & ~1;
  place[threadIdx.x] =
      few ? (few_before & 0xffff) + min((at + 1) & ~1, whole) : paired + whole + many_before;
  partner[threadIdx.x] = odd_tiles(own) == 1 && at % 2 == 0 ? odd[at + 1] : -1;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int expert = threadIdx.x / 32; expert < experts; expert += kMostExperts / 32) {
    const int all = tile_count(expert);
    const int inside = all - odd_tiles(all);
    RowTile* out = tiles + place[expert];
    for (int i = lane; i < inside; i += 32) out[i] = tile_of(expert, i);
    if (partner[expert] >= 0 && lane < 2) {
      const int whose = lane == 0 ? expert : partner[expert];
      out[inside + lane] = tile_of(whose, tile_count(whose) - 1);
    }
  }
  if (threadIdx.x == 0) {
    const int all = paired + odds + many_tiles;
    *count = all;
    if (odds % 2 == 1) {
      const int last = odd[odds - 1];
      tiles[all - 1] = tile_of(last, tile_count(last) - 1);
    }
  }
}

}  // namespace

std::size_t row_tiles_bytes(std::int64_t max_rows, std::int64_t num_experts, int block_m) {
  return kHeaderBytes +
         sizeof(RowTile) * static_cast<std::size_t>(max_rows / block_m + num_experts);
}

void build_row_tiles(const std::int64_t* offsets_E1, std::int64_t num_experts, int block_m,
                     void* row_tiles, Stream stream) {
  if (num_experts > kMostExperts) {
    throw Error(ErrorKind::kInvalidArgument,
                "row tiles of " + std::to_string(num_experts) + " experts", "at most 1024",
                __FILE__, __LINE__);
  }
  auto* bytes = static_cast<unsigned char*>(row_tiles);
  row_tiles_kernel<<<1, kMostExperts, 0, static_cast<cudaStream_t>(stream)>>>(
      offsets_E1, static_cast<int>(num_experts), block_m, reinterpret_cast<int*>(bytes),
      reinterpret_cast<RowTile*>(bytes + kHeaderBytes));
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
