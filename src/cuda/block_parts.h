// Block-sparse products whose walks are cut into parts (gemm_config.h: choose_walk_parts): the parts' sums.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "dropless/view.h"
#include "src/common/workspace.h"

namespace dropless::cuda {

struct WalkParts {
  int count;
  float* sums;  // [count, lines * 128, dense_size]; null where there is one part
};
// As many parts as are best on the current device and have room in `bytes`. `blocks`: of all lines, or more.
WalkParts carve_walk_parts(WorkspaceCarver& carver, std::int64_t lines, std::int64_t dense_size,
                           std::int64_t blocks, std::size_t bytes);

// out [rows, columns], or with `transposed` its transpose, = the parts' sums, added in order. At most
// 2 M rows: many more than walks that are worth cutting have.
void sum_walk_parts(const WalkParts& parts, std::int64_t rows, std::int64_t columns,
                    bool transposed, const TensorView& out, cudaStream_t stream);

}  // namespace dropless::cuda
