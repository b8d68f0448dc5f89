// What the schedules of block-sparse products read of a topology, made on the device before each
// product: a few microseconds, and no host knows what it says. And the sums of products whose walks are cut
// into parts.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <cstdint>

#include "dropless/view.h"

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

// How many parts the walks of `lines` lines are best cut into, so that works by tiles of 256 columns fill
// the GPU's last round: 1 where that gains little, or where parts would be so short that their sums, in
// fp32 to memory and back, cost as much. `blocks`: of all lines.
int walk_parts(std::int64_t lines, std::int64_t dense_size, std::int64_t blocks);

// out [lines * 128, dense_size], or with `transposed` its transpose, = the parts' sums
// [parts, lines * 128, dense_size], added in order.
void sum_parts(const float* sums, int parts, std::int64_t rows, std::int64_t columns,
               bool transposed, const TensorView& out, cudaStream_t stream);

}  // namespace dropless::cuda
