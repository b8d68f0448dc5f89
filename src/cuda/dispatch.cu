// Dispatch order on the device: a stable counting sort of the T x K expert indices.
//
//   count   each CTA counts the experts of its 2048 entries
//   place   one CTA turns the counts, none above the capacity, into the experts' offsets, and each
//           CTA's first row per expert
//   assign  each CTA ranks its entries in order
//
// Entries are ranked 32 at a time by comparing lanes, never by atomics: the order is the input's.
#include <cuda_runtime.h>

#include "src/cuda/check.h"
#include "src/cuda/device/scan.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/route_launch.h"

namespace dropless::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kEntriesPerWarp = 256;
constexpr int kAhead = kEntriesPerWarp / 32;  // loads of a lane, all at once
constexpr int kEntriesPerCta = kWarps * kEntriesPerWarp;

// A warp's entries from `first` on, -1 from `end`: lane l has first + 32 i + l.
struct WarpEntries {
  int expert[kAhead];

  __device__ __forceinline__ WarpEntries(const int* indices, int first, int end) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = first + 32 * i + static_cast<int>(threadIdx.x % 32);
      expert[i] = at < end ? indices[at] : -1;
    }
  }
};

// This warp's count of each expert into counts_E.
__device__ __forceinline__ void count_entries(const WarpEntries& entries, int experts,
                                              int* counts_E) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (const int expert : entries.expert) {
    const unsigned same = __match_any_sync(0xffffffff, expert);
    const bool leader = (same & ((1u << lane) - 1)) == 0;
    if (leader && expert >= 0 && expert < experts) counts_E[expert] += __popc(same);
    __syncwarp();
  }
}

__global__ void __launch_bounds__(32 * kWarps)
    count_kernel(const int* indices, int entries, int experts, int* counts_BE) {
  extern __shared__ int counts_WE[];
  for (int i = threadIdx.x; i < kWarps * experts; i += blockDim.x) counts_WE[i] = 0;
  __syncthreads();
  const int warp = threadIdx.x / 32;
  const int first = blockIdx.x * kEntriesPerCta + warp * kEntriesPerWarp;
  count_entries(WarpEntries(indices, first, min(first + kEntriesPerWarp, entries)), experts,
                counts_WE + warp * experts);
  __syncthreads();
  for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
    int sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += counts_WE[w * experts + expert];
    counts_BE[static_cast<std::int64_t>(blockIdx.x) * experts + expert] = sum;
  }
}

// Thread (part, expert): as many parts of the CTAs as there are threads for, and no more than CTAs.
__global__ void __launch_bounds__(kMaxExperts)
    place_kernel(int blocks, int experts, std::int64_t capacity, int* counts_BE,
                 std::int64_t* offsets_E1) {
  __shared__ int scratch[kMaxExperts / 32];
  __shared__ int shared[kMaxExperts];
  const int parts = max(1, min(kMaxExperts / experts, blocks));
  const int part = threadIdx.x / experts;
  const int expert = threadIdx.x % experts;
  const int range = (blocks + parts - 1) / parts;
  const int begin = min(blocks, part * range);
  const int end = part < parts ? min(blocks, begin + range) : begin;
  int own = 0;
#pragma unroll 8
  for (int b = begin; b < end; ++b) {
    own += counts_BE[static_cast<std::int64_t>(b) * experts + expert];
  }
  shared[threadIdx.x] = own;
  __syncthreads();
  int before = 0, sum = 0;  // of this expert's entries: in earlier parts, in all
  for (int p = 0; p < parts; ++p) {
    const int count = shared[p * experts + expert];
    before += p < part ? count : 0;
    sum += count;
  }
  if (capacity >= 0) sum = static_cast<int>(min(static_cast<std::int64_t>(sum), capacity));
  int total;
  const int first = exclusive_scan<kMaxExperts>(part == 0 ? sum : 0, scratch, total);
  if (part == 0) {
    offsets_E1[expert] = first;
    shared[expert] = first;
  }
  if (threadIdx.x == 0) offsets_E1[experts] = total;
  __syncthreads();
  int row = shared[expert] + before;
  int* counts = counts_BE + static_cast<std::int64_t>(begin) * experts + expert;
  // Before the first store, which might be to their place for all the compiler knows.
  constexpr int kLoads = 8;
  for (int b = begin; b < end; b += kLoads, counts += static_cast<std::int64_t>(kLoads) * experts) {
    int ahead[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) ahead[i] = b + i < end ? counts[i * experts] : 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (b + i < end) counts[i * experts] = row;
      row += ahead[i];
    }
  }
}

__global__ void __launch_bounds__(32 * kWarps)
    assign_kernel(const int* indices, int entries, int top_k, int experts, const int* first_BE,
                  const float* weights_TK, bool limited, const std::int64_t* offsets_E1,
                  int* rows_TK, int* tokens_R, float* weights_R) {
  extern __shared__ int next_WE[];
  for (int i = threadIdx.x; i < kWarps * experts; i += blockDim.x) next_WE[i] = 0;
  __syncthreads();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int first = blockIdx.x * kEntriesPerCta + warp * kEntriesPerWarp;
  const int end = min(first + kEntriesPerWarp, entries);
  int* next_E = next_WE + warp * experts;
  const WarpEntries own(indices, first, end);
  count_entries(own, experts, next_E);
  __syncthreads();
  for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
    int row = first_BE[static_cast<std::int64_t>(blockIdx.x) * experts + expert];
    for (int w = 0; w < kWarps; ++w) {
      const int count = next_WE[w * experts + expert];
      next_WE[w * experts + expert] = row;
      row += count;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int at = first + 32 * i;
    const int expert = own.expert[i];
    const bool valid = expert >= 0 && expert < experts;
    const unsigned same = __match_any_sync(0xffffffff, expert);
    const int before = __popc(same & ((1u << lane) - 1));
    const int row = valid ? next_E[expert] + before : -1;
    __syncwarp();
    if (valid && before == 0) next_E[expert] += __popc(same);
    __syncwarp();
    // The last rows of an expert that has more than its capacity would be the next one's.
    if (!valid || (limited && row >= offsets_E1[expert + 1])) {
      if (at + lane < end) rows_TK[at + lane] = -1;
    } else {
      rows_TK[at + lane] = row;
      if (tokens_R != nullptr) tokens_R[row] = (at + lane) / top_k;
      if (weights_R != nullptr) weights_R[row] = weights_TK[at + lane];
    }
  }
}

int block_count(std::int64_t entries) {
  return static_cast<int>((entries + kEntriesPerCta - 1) / kEntriesPerCta);
}

}  // namespace

std::size_t dispatch_order_workspace_bytes(std::int64_t num_tokens, std::int64_t top_k,
                                           std::int64_t num_experts) {
  return sizeof(int) * static_cast<std::size_t>(block_count(num_tokens * top_k) * num_experts);
}

void dispatch_order(const std::int32_t* indices_TK, const float* weights_TK,
                    std::int64_t num_tokens, std::int64_t top_k, std::int64_t num_experts,
                    std::int32_t* rows_TK, std::int64_t* offsets_E1, std::int32_t* tokens_R,
                    float* weights_R, void* workspace, Stream stream, std::int64_t capacity) {
  const std::int64_t entries = num_tokens * top_k;
  if (num_experts > kMaxExperts || entries >= (std::int64_t{1} << 31) - kEntriesPerCta) {
    throw Error(ErrorKind::kInvalidArgument,
                "dispatch_order: " + std::to_string(num_experts) + " experts and " +
                    std::to_string(entries) + " routed rows",
                "at most 1024 experts and 2^31 rows", __FILE__, __LINE__);
  }
  const auto experts = static_cast<int>(num_experts);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const int blocks = block_count(entries);
  const std::size_t shared = sizeof(int) * kWarps * num_experts;
  auto* counts_BE = static_cast<int*>(workspace);
  if (blocks > 0) {
    count_kernel<<<blocks, 32 * kWarps, shared, cuda_stream>>>(
        indices_TK, static_cast<int>(entries), experts, counts_BE);
  }
  place_kernel<<<1, kMaxExperts, 0, cuda_stream>>>(blocks, experts, capacity, counts_BE,
                                                   offsets_E1);
  if (blocks > 0) {
    assign_kernel<<<blocks, 32 * kWarps, shared, cuda_stream>>>(
        indices_TK, static_cast<int>(entries), static_cast<int>(top_k), experts, counts_BE,
        weights_TK, capacity >= 0, offsets_E1, rows_TK, tokens_R, weights_R);
  }
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
