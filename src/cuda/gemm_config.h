// Choice of tile for the Hopper matrix products: a pure function of sizes, testable anywhere.
#pragma once

#include <cstdint>

namespace dropless::cuda {

// One compiled variant of the main loop and how its tiles are ordered.
struct GemmConfig {
  // Compiled in.
  int block_m = 128;
  int block_n = 256;
  int stages = 4;     // slices of 64 along k in flight
  int slots = 2;      // store slots of a consumer warp
  int cluster_m = 2;  // CTAs along M that share B
  int cluster_n = 1;  // CTAs along N that share A
  // Chosen at launch.
  int raster_width = 8;  // clusters along M per band

  constexpr bool same_kernel(const GemmConfig& other) const {
    return block_m == other.block_m && block_n == other.block_n && stages == other.stages &&
           slots == other.slots && cluster_m == other.cluster_m && cluster_n == other.cluster_n;
  }
};

// What is compiled. docs/kernels.md has the figures of the variants that lost.
inline constexpr GemmConfig kGroupedGemmVariants[] = {
    {.block_n = 256, .stages = 4},
    {.block_n = 128, .stages = 6},
};
inline constexpr GemmConfig kWeightGradVariants[] = {
    // One store slot, which is enough for so rare stores, leaves room to gather beside.
    {.block_n = 256, .stages = 4, .slots = 1},
    {.block_n = 128, .stages = 6},
};

// The variant for outputs of `n` columns: the wide tile unless half of it or more would be empty.
constexpr GemmConfig choose_grouped_gemm(std::int64_t n) {
  return kGroupedGemmVariants[n <= 128 ? 1 : 0];
}
constexpr GemmConfig choose_weight_grad(std::int64_t n) {
  return kWeightGradVariants[n <= 128 ? 1 : 0];
}

// Block-sparse products (sums over the blocks of `lines` lines, by tiles of 256 columns, two a cluster): how
// many parts of each line's walk make works that fill the last round of `clusters` clusters. 1 where another
// number keeps them busy for less than a tenth of the time more, or where parts would on average be so
// short that their fp32 sums, to memory and back, cost as much. `blocks`: of all lines.
inline constexpr int kMostWalkParts = 4;
constexpr int choose_walk_parts(std::int64_t lines, std::int64_t dense_size, std::int64_t blocks,
                                std::int64_t clusters) {
  constexpr std::int64_t kLeastBlocks = 64;  // of a part
  const std::int64_t works = (lines + 1) / 2 * ((dense_size + 255) / 256);
  if (works == 0 || clusters == 0) return 1;
  // Share of the clusters' time in which they work.
  const auto busy = [&](std::int64_t parts) {
    const std::int64_t rounds = (works * parts + clusters - 1) / clusters;
    return static_cast<double>(works * parts) / static_cast<double>(rounds * clusters);
  };
  int best = 1;
  for (int parts = 2; parts <= kMostWalkParts && blocks >= lines * parts * kLeastBlocks; ++parts) {
    if (busy(parts) > busy(best) + 0.1) best = parts;
  }
  return best;
}

}  // namespace dropless::cuda
