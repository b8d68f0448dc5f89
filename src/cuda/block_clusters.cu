// The contract is block_clusters.h.
#include "src/cuda/block_clusters.h"

#include <algorithm>
#include <climits>
#include <cstdint>

#include "src/common/math.h"
#include "src/common/workspace.h"
#include "src/cuda/block_parts.h"
#include "src/cuda/check.h"
#include "src/cuda/device/block_schedule.cuh"
#include "src/cuda/device/scan.cuh"
#include "src/cuda/device/search.cuh"
#include "src/cuda/kernels.h"

namespace dropless::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// same[p]: whether lines 2p and 2p + 1 have blocks at the same indices. A CTA a band of pairs, a warp
// a pair; alike[b]: whether that is so for half of band b or more.
__global__ void __launch_bounds__(kThreads)
    same_lines_kernel(const int* offsets, const int* indices, int lines, int* same, int* alike) {
  const int lane = threadIdx.x % 32;
  const int pairs = (lines + 1) / 2;
  const int band = static_cast<int>(blockIdx.x) * kBandPairs;
  const int band_end = min(band + kBandPairs, pairs);
  int found = 0;
  for (int pair = band + static_cast<int>(threadIdx.x) / 32; pair < band_end; pair += kWarps) {
    const int line = 2 * pair;
    bool equal = line + 1 < lines;
    if (equal) {
      const int first = offsets[line], second = offsets[line + 1];
      const int length = second - first;
      equal = offsets[line + 2] - second == length;
      for (int i = lane; equal && i < length; i += 32) {
        equal = indices[first + i] == indices[second + i];
      }
    }
    equal = __all_sync(0xffffffff, equal);
    if (lane == 0) same[pair] = equal;
    found += equal;
  }
  __shared__ int scratch[kWarps];
  int total;
  exclusive_scan<kThreads>(lane == 0 ? found : 0, scratch, total);
  if (threadIdx.x == 0) alike[blockIdx.x] = 2 * total >= band_end - band;
}

// Tiles of one block row: two blocks each, the last one maybe a single one.
struct RowTiles {
  int begin, end;  // blocks
  __device__ int tiles() const { return (end - begin + 1) / 2; }
  __device__ bool odd() const { return tiles() % 2 != 0; }
  __device__ int block(int tile) const { return begin + 2 * tile; }
  __device__ int last() const { return block(tiles() - 1); }
  // Of groups of `step` blocks those that begin left of `column`.
  __device__ int groups_before(const int* column_indices, int step, int column) const {
    return (lower_bound(column_indices, begin, end, column) - begin + step - 1) / step;
  }
};

// How the tiles of a pair of block rows fill clusters: where the rows are the same, with one tile of
// each; else with two of one row, and the rows' last ones, if each has one left, with these.
struct PairTiles {
  RowTiles upper, lower;
  bool same;

  __device__ PairTiles(const int* offsets, const int* same_lines, int lines, int pair) {
    const int line = 2 * pair;
    const int begin = offsets[line], middle = offsets[line + 1];
    upper = {begin, middle};
    lower = {middle, line + 1 < lines ? offsets[line + 2] : middle};
    same = same_lines[pair] != 0;
  }
  // With `same` all clusters count as the upper row's.
  __device__ int of_upper() const { return same ? upper.tiles() : upper.tiles() / 2; }
  __device__ int of_lower() const { return same ? 0 : lower.tiles() / 2; }
  __device__ bool has_mixed() const { return !same && upper.odd() && lower.odd(); }
  __device__ int clusters() const { return of_upper() + of_lower() + has_mixed(); }
  // A tile for which the pair has no partner.
  __device__ bool has_single() const { return !same && upper.odd() != lower.odd(); }
  __device__ int single() const { return (upper.odd() ? upper : lower).last(); }

  // The first blocks of cluster t's two tiles.
  __device__ int2 cluster(int t) const {
    if (same) return {upper.block(t), lower.block(t)};
    if (t == of_upper() + of_lower()) return {upper.last(), lower.last()};
    const RowTiles row = t < of_upper() ? upper : lower;
    const int first = 2 * (t < of_upper() ? t : t - of_upper());
    return {row.block(first), row.block(first + 1)};
  }
  // Of the clusters of this pair those that come before cluster t of `own`, the pair that stands
  // `below` pairs above: the order is by column, then pair, then row; mixed ones come last.
  __device__ int clusters_before(const int* column_indices, int below, const PairTiles& own,
                                 int t) const {
    if (own.has_mixed() && t + 1 == own.clusters()) {
      return of_upper() + of_lower() + (below < 0 && has_mixed());
    }
    const int column = column_indices[own.cluster(t).x];
    const bool in_lower = below == 0 && !own.same && t >= own.of_upper();
    const int step = same ? 2 : 4;  // blocks of a row in a cluster
    const int left = min(
        upper.groups_before(column_indices, step, column + (below < 0 || in_lower)), of_upper());
    if (same) return left;
    return left + min(lower.groups_before(column_indices, step, column + (below < 0)), of_lower());
  }
};

// Sum over the CTA, for every thread.
template <int kCount>
__device__ int sum_threads(int value, int* scratch) {
  int total;
  exclusive_scan<kCount>(value, scratch, total);
  return total;
}

constexpr int kPairsThreads = 1024;
static_assert(kBandPairs % kSddPairs == 0 && kSddPairs % kAlikePairs == 0);

// A CTA a band of pairs of block rows: the tiles of its clusters, in the order of their columns, so
// that the band passes through the columns together. Tiles without a partner in their pair come
// last of all, two by two.
__global__ void __launch_bounds__(kPairsThreads)
    sdd_pairs_kernel(const int* offsets, const int* column_indices, const int* same_lines,
                     const int* alike, int lines, int* count, int2* clusters) {
  __shared__ int scratch[kPairsThreads / 32];
  __shared__ int first_cluster[kSddPairs + 1];  // of each pair, within the band
  const int pairs = (lines + 1) / 2;
  const int band = static_cast<int>(blockIdx.x) * kSddPairs;
  const int band_pairs = min(kSddPairs, pairs - band);
  const auto tiles_of = [&](int pair) { return PairTiles(offsets, same_lines, lines, pair); };
  int before = 0, all = 0, singles_before = 0, singles = 0;
  for (int p = threadIdx.x; p < pairs; p += kPairsThreads) {
    const PairTiles tiles = tiles_of(p);
    const int n = tiles.clusters(), single = tiles.has_single();
    all += n;
    singles += single;
    if (p < band) {
      before += n;
      singles_before += single;
    }
  }
  before = sum_threads<kPairsThreads>(before, scratch);
  all = sum_threads<kPairsThreads>(all, scratch);
  singles_before = sum_threads<kPairsThreads>(singles_before, scratch);
  singles = sum_threads<kPairsThreads>(singles, scratch);
  if (blockIdx.x == 0 && threadIdx.x == 0) *count = all + (singles + 1) / 2;
  if (threadIdx.x <= band_pairs) {
    int sum = 0;
    for (int p = 0; p < static_cast<int>(threadIdx.x); ++p) sum += tiles_of(band + p).clusters();
    first_cluster[threadIdx.x] = sum;
  }
  __syncthreads();

  // kSddPairs lanes a cluster, each of which counts one pair's clusters that come before it.
  const int lane = threadIdx.x % kSddPairs;
  const bool present = lane < band_pairs;
  const PairTiles other = tiles_of(band + (present ? lane : 0));
  const int width = alike[blockIdx.x * kSddPairs / kBandPairs] != 0 ? kAlikePairs : kSddPairs;
  const int total = first_cluster[band_pairs];
  for (int base = 0; base < total; base += kPairsThreads / kSddPairs) {
    const int i = base + static_cast<int>(threadIdx.x) / kSddPairs;
    int own = 0;
    while (own + 1 < band_pairs && first_cluster[own + 1] <= i) ++own;
    const PairTiles tiles = tiles_of(band + own);
    int place = 0;
    if (i < total && present) {
      if (lane / width == own / width) {
        place = other.clusters_before(column_indices, lane - own, tiles, i - first_cluster[own]);
      } else if (lane < own) {
        place = other.clusters();
      }
    }
#pragma unroll
    for (int step = kSddPairs / 2; step > 0; step /= 2) {
      place += __shfl_xor_sync(0xffffffff, place, step);
    }
    if (i < total && lane == 0) clusters[before + place] = tiles.cluster(i - first_cluster[own]);
  }

  if (threadIdx.x < band_pairs && other.has_single()) {  // this thread's pair is `other`
    int rank = singles_before;
    for (int p = band; p < band + lane; ++p) rank += tiles_of(p).has_single();
    int* cluster = reinterpret_cast<int*>(clusters + all + rank / 2);
    cluster[rank % 2] = other.single();
    if (rank % 2 == 0 && rank + 1 == singles) cluster[1] = -1;
  }
}

struct Carved {
  int *same, *alike, *count;
  int2* clusters;
};

std::int64_t pairs_of(std::int64_t lines) { return ceil_div(lines, 2); }
std::int64_t bands_of(std::int64_t lines) { return ceil_div(pairs_of(lines), kBandPairs); }

Carved carve(WorkspaceCarver& carver, std::int64_t lines, std::int64_t blocks) {
  return {.same = carver.take<int>(pairs_of(lines)),
          .alike = carver.take<int>(bands_of(lines)),
          .count = carver.take<int>(1),
          .clusters = carver.take<int2>(blocks / 2 + 1)};
}

}  // namespace

std::size_t block_sparse_workspace_bytes(std::int64_t block_rows, std::int64_t block_columns,
                                         std::int64_t blocks, std::int64_t dense_size) {
  WorkspaceCarver carver;
  carve(carver, std::max(block_rows, block_columns), blocks);
  std::size_t most = carver.used();
  if (dense_size == 0) return most;
  for (const std::int64_t lines : {block_rows, block_columns}) {
    WorkspaceCarver with_parts = carver;
    carve_walk_parts(with_parts, lines, dense_size, blocks, SIZE_MAX);
    most = std::max(most, with_parts.used());
  }
  return most;
}

SameLines find_same_lines(const int* offsets, const int* indices, std::int64_t lines,
                          void* workspace, cudaStream_t stream) {
  WorkspaceCarver carver(workspace, 0);
  const Carved carved = carve(carver, lines, 0);
  same_lines_kernel<<<static_cast<int>(bands_of(lines)), kThreads, 0, stream>>>(
      offsets, indices, static_cast<int>(lines), carved.same, carved.alike);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
  return {carved.same, carved.alike};
}

SddPairs build_sdd_pairs(const int* offsets, const int* indices, std::int64_t lines,
                         std::int64_t blocks, void* workspace, cudaStream_t stream) {
  WorkspaceCarver carver(workspace, 0);
  const Carved carved = carve(carver, lines, blocks);
  find_same_lines(offsets, indices, lines, workspace, stream);
  const auto bands = static_cast<int>(ceil_div(pairs_of(lines), kSddPairs));
  sdd_pairs_kernel<<<bands, kPairsThreads, 0, stream>>>(offsets, indices, carved.same, carved.alike,
                                                        static_cast<int>(lines), carved.count,
                                                        carved.clusters);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
  return {carved.count, carved.clusters, blocks / 2 + 1};
}

}  // namespace dropless::cuda
