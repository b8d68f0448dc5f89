// What every rung does the same way: find its tile of rows.
#pragma once

#include "examples/ladder/ladder.h"
#include "src/cuda/device/scheduler.cuh"

namespace dropless::ladder {

inline constexpr int kTileRows = 128;

// Row tile number `index`; without rows past the last. The host launched as many as there may be.
__device__ __forceinline__ cuda::RowTile row_tile(const void* row_tiles, int index) {
  const int* count = static_cast<const int*>(row_tiles);
  if (index >= *count) return {};
  return reinterpret_cast<const cuda::RowTile*>(count + 4)[index];
}

}  // namespace dropless::ladder
