// What the schedules of block-sparse products read of a topology, made on the device before each
// product: a few microseconds, and no host knows what it says.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <cstdint>

namespace dropless::cuda {

struct SameLines {
  const int* same;   // [ceil(lines / 2)]: whether lines 2p and 2p + 1 have the same indices
  const int* alike;  // of bands of these pairs: whether most are so
};
SameLines find_same_lines(const int* offsets, const int* indices, std::int64_t lines,
                          void* workspace, cudaStream_t stream);

// Tiles of sdd, two a cluster: the number of each tile's first block.
struct SddPairs {
  const int* count;
  const int2* pairs;
  std::int64_t most;  // count is no larger
};
SddPairs build_sdd_pairs(const int* offsets, const int* indices, std::int64_t lines,
                         std::int64_t blocks, void* workspace, cudaStream_t stream);

}  // namespace dropless::cuda
