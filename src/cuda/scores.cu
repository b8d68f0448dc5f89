// Router weights from (token, k) to routed rows, and their gradients back.
#include <cuda_runtime.h>

#include "src/common/math.h"
#include "src/cuda/check.h"
#include "src/cuda/kernels.h"

namespace dropless::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerThread = 4;

// Counts are integers: the order of the atomics cannot show.
__global__ void __launch_bounds__(kThreads)
    prepare_backward_kernel(const float* weights_TK, const int* indices_TK, const int* rows_TK,
                            std::int64_t rows, int top_k, int experts, float* weights_R,
                            int* tokens_R, int* tokens_per_expert_E) {
  extern __shared__ int counts_E[];
  for (int e = threadIdx.x; e < experts; e += kThreads) counts_E[e] = 0;
  __syncthreads();
  const std::int64_t first =
      static_cast<std::int64_t>(blockIdx.x) * kRowsPerThread * kThreads + threadIdx.x;
  int expert[kRowsPerThread], row[kRowsPerThread];
  float weight[kRowsPerThread];
#pragma unroll
  for (int j = 0; j < kRowsPerThread; ++j) {  // all loads before the first use
    const std::int64_t i = first + j * kThreads;
    expert[j] = i < rows ? indices_TK[i] : -1;
    row[j] = i < rows ? rows_TK[i] : -1;
    weight[j] = i < rows ? weights_TK[i] : 0.0f;
  }
#pragma unroll
  for (int j = 0; j < kRowsPerThread; ++j) {
    if (expert[j] >= 0 && expert[j] < experts) atomicAdd(&counts_E[expert[j]], 1);
    if (row[j] >= 0) {
      weights_R[row[j]] = weight[j];
      tokens_R[row[j]] = static_cast<int>((first + j * kThreads) / top_k);
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += kThreads) {
    if (counts_E[e] > 0) atomicAdd(&tokens_per_expert_E[e], counts_E[e]);
  }
}

__global__ void __launch_bounds__(kThreads)
    sum_score_gradients_kernel(const float* d_scores_NR, int parts, const int* rows_TK,
                               std::int64_t rows, int top_k, const float* added_TP,
                               std::int64_t pitch, const int* indices_TK, float* d_weights_TK) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows) return;
  const int row = rows_TK[i];
  if (row < 0) {
    d_weights_TK[i] = 0.0f;
    return;
  }
  float sum = added_TP == nullptr ? 0.0f : added_TP[i / top_k * pitch + indices_TK[i]];
  for (int part = 0; part < parts; ++part) sum += d_scores_NR[part * rows + row];
  d_weights_TK[i] = sum;
}

unsigned blocks_for(std::int64_t threads) {
  return static_cast<unsigned>(ceil_div(threads, kThreads));
}

}  // namespace

void prepare_backward(const float* weights_TK, const std::int32_t* indices_TK,
                      const std::int32_t* rows_TK, std::int64_t num_rows, std::int64_t top_k,
                      std::int64_t num_experts, float* weights_R, std::int32_t* tokens_R,
                      std::int32_t* tokens_per_expert_E, Stream stream) {
  const std::size_t bytes = sizeof(int) * static_cast<std::size_t>(num_experts);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  DROPLESS_CUDA_CHECK(cudaMemsetAsync(tokens_per_expert_E, 0, bytes, cuda_stream));
  if (num_rows == 0) return;
  prepare_backward_kernel<<<blocks_for(ceil_div(num_rows, kRowsPerThread)), kThreads, bytes,
                            cuda_stream>>>(weights_TK, indices_TK, rows_TK, num_rows,
                                           static_cast<int>(top_k), static_cast<int>(num_experts),
                                           weights_R, tokens_R, tokens_per_expert_E);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

void sum_score_gradients(const float* d_scores_NR, std::int64_t parts, const std::int32_t* rows_TK,
                         std::int64_t num_rows, std::int64_t top_k, const float* added_TP,
                         std::int64_t pitch, const std::int32_t* indices_TK, float* d_weights_TK,
                         Stream stream) {
  if (num_rows == 0) return;
  sum_score_gradients_kernel<<<blocks_for(num_rows), kThreads, 0,
                               static_cast<cudaStream_t>(stream)>>>(
      d_scores_NR, static_cast<int>(parts), rows_TK, num_rows, static_cast<int>(top_k), added_TP,
      pitch, indices_TK, d_weights_TK);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
