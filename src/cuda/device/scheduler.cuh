// Which output tile a CTA computes next. The grid is persistent: clusters step through the tiles of
// the whole problem with a fixed stride. One thread of each CTA walks the sequence and announces
// the tiles to the others (pipeline.cuh, WorkRing).
//
// Sizes that depend on the routing live on the device: the host never waits for them.
#pragma once

#include <cstdint>

namespace dropless::cuda {

// Up to kBlockM consecutive rows of one expert.
struct alignas(16) RowTile {
  int expert;
  int row;   // first row
  int rows;  // how many are valid
  int unused;
};

// One unit of work for a CTA: D[m : m + rows, n : n + kBlockN] over k .. k + k_length.
struct alignas(16) Work {
  int k_length;  // may be 0: the tile is zero; < 0: there is no more work
  int rows;      // valid rows of D; <= 0: nothing to store
  int m;         // coordinate along M of A and D
  int n;         // coordinate along N of B and D
  int k;         // first coordinate along k
  int batch_b;   // third coordinate of B
  int batch_d;   // third coordinate of D
  int share;     // the cluster's CTAs read the same tile of the shared operand
};

// Tile number -> (m, n), in bands of `width` tiles along M that run through all of N: the tiles in
// flight at one time form a near-square, so each operand is read from L2 by many CTAs at once.
__device__ __forceinline__ void raster(int index, int tiles_m, int tiles_n, int width, int& m,
                                       int& n) {
  const int band = index / (width * tiles_n);
  const int within = index - band * width * tiles_n;
  const int rows = min(width, tiles_m - band * width);
  n = within / rows;
  m = band * width + within - n * rows;
}

// Tiles of a product whose rows are grouped by expert: D = A B_e^T, k uniform.
template <class Tile>
class RowTileSchedule {
 public:
  struct Params {
    const int* count;      // row tiles
    const RowTile* tiles;  // [count]
    int tiles_n;
    int k_length;
    int width;  // of the raster's bands, in clusters
  };
  static constexpr bool kRaggedK = false;
  static constexpr bool kEmptyK = false;  // k_length may be 0; kRaggedK includes it

  __device__ __forceinline__ RowTileSchedule(const Params& params, int rank)
      : params_(params),
        count_(__ldg(params.count)),
        rank_(rank),
        clusters_m_((count_ + Tile::kClusterM - 1) / Tile::kClusterM),
        clusters_n_((params.tiles_n + Tile::kClusterN - 1) / Tile::kClusterN),
        index_(blockIdx.x / Tile::kCluster) {}

  __device__ __forceinline__ bool next(Work& work) {
    if (index_ >= clusters_m_ * clusters_n_) return false;
    int m, n;
    raster(index_, clusters_m_, clusters_n_, params_.width, m, n);
    index_ += gridDim.x / Tile::kCluster;
    work.k = 0;
    work.k_length = params_.k_length;
    work.batch_d = 0;
    work.share = true;
    work.n = (n * Tile::kClusterN + (Tile::kClusterN > 1 ? rank_ : 0)) * Tile::kStepN;
    RowTile tile = entry(m * Tile::kClusterM);
    if constexpr (Tile::kClusterM > 1) {
      const int first = tile.expert;
      const int second = m * Tile::kClusterM + 1;
      // An odd count leaves the last cluster's second CTA a tile outside the tensor: it loads zeros
      // and stores nothing, but keeps the multicast protocol going.
      const RowTile peer = second < count_ ? entry(second) : RowTile{first, 1 << 30, 0, 0};
      work.share = peer.expert == first;
      if (rank_ == 1) tile = peer;
    }
    work.m = tile.row;
    work.rows = tile.rows;
    work.batch_b = tile.expert;
    return true;
  }

 private:
  __device__ __forceinline__ RowTile entry(int m) const {
    const int4 raw = __ldg(reinterpret_cast<const int4*>(params_.tiles + m));
    return {raw.x, raw.y, raw.z, raw.w};
  }

  const Params& params_;
  int count_;
  int rank_;
  int clusters_m_;
  int clusters_n_;
  int index_;
};

// Tiles of a product per expert whose k runs over the expert's rows: D_e = A_e^T B_e.
template <class Tile>
class RaggedKSchedule {
 public:
  struct Params {
    const std::int64_t* offsets;  // [experts + 1]
    int experts;
    int tiles_m;
    int tiles_n;
    int width;
  };
  static constexpr bool kRaggedK = true;
  static constexpr bool kEmptyK = false;

  __device__ __forceinline__ RaggedKSchedule(const Params& params, int rank)
      : params_(params),
        rank_(rank),
        clusters_m_((params.tiles_m + Tile::kClusterM - 1) / Tile::kClusterM),
        clusters_n_((params.tiles_n + Tile::kClusterN - 1) / Tile::kClusterN),
        index_(blockIdx.x / Tile::kCluster) {}

  __device__ __forceinline__ bool next(Work& work) {
    if (index_ >= params_.experts * clusters_m_ * clusters_n_) return false;
    const int expert = index_ / (clusters_m_ * clusters_n_);
    int m, n;
    raster(index_ - expert * clusters_m_ * clusters_n_, clusters_m_, clusters_n_, params_.width, m,
           n);
    index_ += gridDim.x / Tile::kCluster;
    work.m = (m * Tile::kClusterM + (Tile::kClusterM > 1 ? rank_ : 0)) * Tile::kBlockM;
    work.n = (n * Tile::kClusterN + (Tile::kClusterN > 1 ? rank_ : 0)) * Tile::kStepN;
    work.rows = Tile::kBlockM;  // the copy engine clips at the tensor's edge
    work.batch_b = 0;
    work.batch_d = expert;
    work.share = true;
    const std::int64_t begin = __ldg(params_.offsets + expert);
    work.k = static_cast<int>(begin);
    work.k_length = static_cast<int>(__ldg(params_.offsets + expert + 1) - begin);
    return true;
  }

 private:
  const Params& params_;
  int rank_;
  int clusters_m_;
  int clusters_n_;
  int index_;
};

}  // namespace dropless::cuda
