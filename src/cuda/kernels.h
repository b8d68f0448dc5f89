// Entries of the CUDA kernels. Nothing of CUDA shows here: builds without it link unavailable.cc,
// whose definitions throw.
//
// Every pointer is device memory of the current device, every call is asynchronous on `stream`, and
// none allocates or waits. R routed rows sorted by expert; offsets_E1: int64 [E + 1], rows of
// expert e are [offsets[e], offsets[e + 1]). Widths are multiples of 8.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dropless/view.h"
#include "src/cuda/gemm_config.h"

namespace dropless::cuda {

using Stream = void*;  // a cudaStream_t

// Row tiles: the experts' rows cut into tiles of at most block_m rows, in row order. Memory: a
// count, then {expert, row, rows} records of 16 bytes.
std::size_t row_tiles_bytes(std::int64_t max_rows, std::int64_t num_experts, int block_m);
void build_row_tiles(const std::int64_t* offsets_E1, std::int64_t num_experts, int block_m,
                     void* row_tiles, Stream stream);

// out_RN = a_RK b_e^T for weights b [E, N, K], or a_RK b_e for weights b [E, K, N] (b_is_EKN).
// bf16; rows, batches and pitches as the views say. row_tiles: of config.block_m.
// Rows outside the experts' ranges are not written.
void grouped_gemm(ConstTensorView a_RK, ConstTensorView b, bool b_is_EKN, const void* row_tiles,
                  TensorView out_RN, const GemmConfig& config, Stream stream);

// out_e [M, N] = a_e^T b_e over the rows of expert e: the weight gradient. a, b bf16; out bf16, or
// fp32; `accumulate` adds into out (fp32 only). Experts without rows give zeros (or add nothing).
void grouped_gemm_weight_grad(ConstTensorView a_RM, ConstTensorView b_RN,
                              const std::int64_t* offsets_E1, TensorView out_EMN, bool accumulate,
                              const GemmConfig& config, Stream stream);

}  // namespace dropless::cuda
