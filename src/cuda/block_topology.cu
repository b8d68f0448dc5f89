// Topologies on the device: the column walk, and the topology of experts.
#include "src/common/math.h"
#include "src/cuda/check.h"
#include "src/cuda/device/scan.cuh"
#include "src/cuda/device/search.cuh"
#include "src/cuda/kernels.h"

namespace dropless::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// ---- column walk: a warp a block column looks for it in every block row ---------------------------

// With kFill writes the entries, else counts them into offsets_t[column + 1].
template <bool kFill>
__global__ void __launch_bounds__(kThreads)
    column_walk_kernel(const int* offsets, const int* column_indices, int rows, int columns,
                       int* column_indices_t, int* offsets_t, int* block_offsets_t) {
  const int column = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (column >= columns) return;
  int next = kFill ? offsets_t[column] : 0;
  for (int base = 0; base < rows; base += 32) {
    const int row = base + lane;
    int block = 0;
    bool found = false;
    if (row < rows) {
      const int end = offsets[row + 1];
      block = lower_bound(column_indices, offsets[row], end, column);
      found = block < end && column_indices[block] == column;
    }
    const unsigned mask = __ballot_sync(0xffffffff, found);
    if (kFill && found) {
      const int entry = next + __popc(mask & ((1u << lane) - 1));
      column_indices_t[entry] = row;
      block_offsets_t[entry] = block;
    }
    next += __popc(mask);
  }
  if (!kFill && lane == 0) offsets_t[column + 1] = next;
}

// Counts in values[1 ..] to their running sums; values[0] = 0. One CTA.
__global__ void __launch_bounds__(kThreads) running_sums_kernel(int* values, int count) {
  __shared__ int scratch[kThreads / 32];
  int base = 0;
  for (int chunk = 0; chunk < count; chunk += kThreads) {
    const int i = chunk + static_cast<int>(threadIdx.x);
    const int value = i < count ? values[i + 1] : 0;
    int total;
    const int before = exclusive_scan<kThreads>(value, scratch, total);
    if (i < count) values[i + 1] = base + before + value;
    base += total;
  }
  if (threadIdx.x == 0) values[0] = 0;
}

// ---- topology of experts -------------------------------------------------------------------------

// padded[e]: the sum of the experts' rows below e, each rounded up to whole blocks. One CTA.
__global__ void __launch_bounds__(kThreads)
    padded_offsets_kernel(const std::int64_t* offsets, int experts, int block_size,
                          std::int64_t* padded) {
  __shared__ int scratch[kThreads / 32];
  std::int64_t base = 0;
  for (int chunk = 0; chunk < experts; chunk += kThreads) {
    const int e = chunk + static_cast<int>(threadIdx.x);
    const std::int64_t rows = e < experts ? offsets[e + 1] - offsets[e] : 0;
    int total;
    const int before = exclusive_scan<kThreads>(
        static_cast<int>((rows + block_size - 1) / block_size), scratch, total);
    if (e < experts) padded[e] = (base + before) * block_size;
    base += total;
  }
  if (threadIdx.x == 0) padded[experts] = base * block_size;
}

// A warp a block row.
__global__ void __launch_bounds__(kThreads)
    expert_rows_kernel(const std::int64_t* padded, int experts, int block_size, int columns,
                       int block_rows, int* row_indices, int* column_indices, int* offsets) {
  const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (row >= block_rows) return;
  const auto used = static_cast<int>(min(padded[experts] / block_size, std::int64_t{block_rows}));
  if (lane == 0) {
    if (row == 0) offsets[0] = 0;
    offsets[row + 1] = min(row + 1, used) * columns;
  }
  if (row >= used) return;
  // The last expert that begins here or before has the row.
  int expert = 0;
  for (int end = experts; end - expert > 1;) {
    const int middle = expert + (end - expert) / 2;
    if (padded[middle] <= std::int64_t{row} * block_size) {
      expert = middle;
    } else {
      end = middle;
    }
  }
  for (int c = lane; c < columns; c += 32) {
    row_indices[row * columns + c] = row;
    column_indices[row * columns + c] = expert * columns + c;
  }
}

int grid(std::int64_t warps) { return static_cast<int>(ceil_div(warps, kWarps)); }

}  // namespace

void expert_topology(const std::int64_t* offsets_E1, std::int64_t num_experts, std::int64_t d_ffn,
                     std::int64_t* padded_offsets_E1, const BlockTopology& topology,
                     Stream stream) {
  auto* queue = static_cast<cudaStream_t>(stream);
  const auto block_size = static_cast<int>(topology.block_size);
  const auto experts = static_cast<int>(num_experts);
  const auto block_rows = static_cast<int>(topology.rows / block_size);
  padded_offsets_kernel<<<1, kThreads, 0, queue>>>(offsets_E1, experts, block_size,
                                                   padded_offsets_E1);
  if (block_rows > 0) {
    expert_rows_kernel<<<grid(block_rows), kThreads, 0, queue>>>(
        padded_offsets_E1, experts, block_size, static_cast<int>(d_ffn / block_size), block_rows,
        static_cast<int*>(topology.row_indices.data),
        static_cast<int*>(topology.column_indices.data), static_cast<int*>(topology.offsets.data));
  } else {
    DROPLESS_CUDA_CHECK(cudaMemsetAsync(topology.offsets.data, 0, sizeof(int), queue));
  }
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

void transpose_topology(const BlockTopology& topology, Stream stream) {
  const auto rows = static_cast<int>(topology.rows / topology.block_size);
  const auto columns = static_cast<int>(topology.cols / topology.block_size);
  const auto* offsets = static_cast<const int*>(topology.offsets.data);
  const auto* column_indices = static_cast<const int*>(topology.column_indices.data);
  auto* column_indices_t = static_cast<int*>(topology.column_indices_t.data);
  auto* offsets_t = static_cast<int*>(topology.offsets_t.data);
  auto* block_offsets_t = static_cast<int*>(topology.block_offsets_t.data);
  auto* queue = static_cast<cudaStream_t>(stream);
  if (columns > 0) {
    column_walk_kernel<false><<<grid(columns), kThreads, 0, queue>>>(
        offsets, column_indices, rows, columns, column_indices_t, offsets_t, block_offsets_t);
  }
  running_sums_kernel<<<1, kThreads, 0, queue>>>(offsets_t, columns);
  if (columns > 0) {
    column_walk_kernel<true><<<grid(columns), kThreads, 0, queue>>>(
        offsets, column_indices, rows, columns, column_indices_t, offsets_t, block_offsets_t);
  }
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
