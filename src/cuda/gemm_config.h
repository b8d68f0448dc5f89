// Choice of tile for the Hopper matrix products: a pure function of sizes, testable anywhere.
#pragma once

#include <cstdint>

namespace dropless::cuda {

// One compiled variant of the main loop and how its tiles are ordered.
struct GemmConfig {
  int block_m = 128;
  int block_n = 256;
  int stages = 4;
  int slots = 2;
  int cluster_m = 2;     // CTAs along M that share B
  int cluster_n = 1;     // CTAs along N that share A
  int in_flight = 1;     // groups of wgmmas left in flight
  int raster_width = 8;  // clusters along M per band; not a property of the compiled kernel

  friend constexpr bool operator==(const GemmConfig&, const GemmConfig&) = default;
  constexpr bool same_kernel(GemmConfig other) const {
    other.raster_width = raster_width;
    return *this == other;
  }
};

// What is compiled: block_m, block_n, stages, slots, cluster_m, cluster_n, in_flight.
inline constexpr GemmConfig kGroupedGemmVariants[] = {
    {128, 256, 4, 2, 2, 1, 1}, {128, 256, 4, 2, 2, 1, 0}, {128, 256, 3, 4, 2, 1, 1},
    {128, 256, 4, 2, 1, 2, 1}, {128, 256, 4, 2, 1, 1, 1}, {256, 128, 4, 2, 2, 1, 1},
    {256, 128, 4, 2, 1, 2, 1}, {128, 192, 4, 3, 2, 1, 1}, {128, 192, 5, 1, 2, 1, 1},
    {256, 192, 3, 3, 1, 2, 1}, {256, 192, 3, 3, 2, 1, 1}, {128, 128, 6, 2, 2, 1, 1},
};
inline constexpr GemmConfig kWeightGradVariants[] = {
    {128, 256, 4, 2, 2, 1, 1}, {128, 256, 4, 2, 2, 1, 0}, {256, 128, 4, 2, 2, 1, 1},
    {256, 128, 4, 2, 1, 2, 1}, {256, 192, 3, 3, 2, 1, 1}, {256, 192, 3, 3, 1, 2, 1},
};

}  // namespace dropless::cuda
