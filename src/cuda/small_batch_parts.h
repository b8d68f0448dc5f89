// What the two kernels of small_batch.h share: the list of work that the first writes and the second
// takes. Only for the .cu files of this folder.
#pragma once

#include <cuda_runtime.h>

#include "src/cuda/device/small_batch.cuh"
#include "src/cuda/small_batch.h"

namespace dropless::cuda {

struct SmallBatchBuffers {
  SmallControl* control;
  int* up_done;      // one an item
  SmallItem* items;  // at most max_items
  int* tokens_R;
  __nv_bfloat16* h_RF;
  float* y_RD;
};

// `grid`: CTAs of the second kernel.
void small_batch_route(const SmallBatch& layer, int rows_per_item, int grid,
                       const SmallBatchBuffers& buffers, cudaStream_t stream);

}  // namespace dropless::cuda
