// The router for few tokens, in one kernel of one cluster: logits, softmax, top-k, losses, the
// dispatch order and the list of work for small_batch.cu. Formulas and tie rules:
// include/dropless/route.h.
//
//   logits    each CTA has an eighth of d_model; experts are M, tokens N of mma.sync m16n8k16
//   tokens    a warp each: adds the eight parts of its logits in order, out of the CTAs' shared
//             memory, and chooses; an expert's tokens are a set of bits in the first CTA
//   order     the first CTA counts bits: a row's place is the number of tokens before it
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "src/cuda/check.h"
#include "src/cuda/device/scan.cuh"
#include "src/cuda/device/token_router.cuh"
#include "src/cuda/launch.cuh"
#include "src/cuda/small_batch_parts.h"

namespace dropless::cuda {
namespace {

constexpr int kCluster = 8;
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTokenTiles = 4;  // tiles of 8 tokens that a warp multiplies at a time
constexpr int kMaxShared = 220 * 1024;

// Shared memory of a CTA, in 4-byte words.
struct Layout {
  int parts;  // of a CTA's range of k, where there are fewer products than warps
  int pitch;  // of a token's logits
  int words;  // of an expert's set of tokens
  int logits, p_warps, p_ctas, sets, starts, end;
  __host__ __device__ Layout(int tokens, int experts) {
    const int jobs = (experts + 15) / 16 * ((tokens + 8 * kTokenTiles - 1) / (8 * kTokenTiles));
    parts = jobs >= kWarps ? 1 : kWarps / jobs;
    pitch = (experts + 15) / 16 * 16;
    words = (tokens + 31) / 32;
    logits = 0;
    p_warps = logits + parts * tokens * pitch;
    p_ctas = p_warps + kWarps * experts;
    sets = p_ctas + kCluster * experts;
    starts = sets + experts * words;
    end = starts + experts;
  }
};

struct Params {
  int tokens, experts, top_k, d, rows_per_item, grid;
  float q;
  const __nv_bfloat16 *x_TD, *router_ED;
  float* weights_TK;
  int *indices_TK, *rows_TK;
  std::int64_t* offsets_E1;
  float* losses_2;
  int* tokens_per_expert_E;
  SmallControl* control;
  int* up_done;
  SmallItem* items;
  int* tokens_R;
};

__device__ __forceinline__ std::uint32_t at_rank(const void* pointer, int rank) {
  std::uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(remote)
      : "r"(ptx::shared_address(pointer)), "r"(rank));
  return remote;
}
__device__ __forceinline__ float load_cluster(std::uint32_t address) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}
__device__ __forceinline__ void store_cluster(std::uint32_t address, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
__device__ __forceinline__ void or_cluster(std::uint32_t address, unsigned bits) {
  asm volatile("red.relaxed.cluster.shared::cluster.or.b32 [%0], %1;" ::"r"(address), "r"(bits)
               : "memory");
}

// Eight consecutive k of a row, for two products: the k of a fragment are in any order, as long as
// both operands have the same.
__device__ __forceinline__ uint4 load_eight(const __nv_bfloat16* matrix, int row, int rows, int k,
                                            int d) {
  if (row >= rows || k >= d) return make_uint4(0, 0, 0, 0);
  return *reinterpret_cast<const uint4*>(matrix + static_cast<std::int64_t>(row) * d + k);
}

// Logits of 16 experts and up to 32 tokens over one range of k.
__device__ __forceinline__ void multiply(const Params& p, const Layout& layout, float* shared,
                                         int job, int part, int begin, int end) {
  const int lane = threadIdx.x % 32;
  const int expert_tiles = layout.pitch / 16;
  const int expert = job % expert_tiles * 16 + lane / 4;
  const int token = job / expert_tiles * 8 * kTokenTiles;
  float acc[kTokenTiles][4] = {};
#pragma unroll 4
  for (int block = begin; block < end; ++block) {
    const int k = block * 32 + lane % 4 * 8;
    const uint4 low = load_eight(p.router_ED, expert, p.experts, k, p.d);
    const uint4 high = load_eight(p.router_ED, expert + 8, p.experts, k, p.d);
    const std::uint32_t a[2][4] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      if (token + 8 * j >= p.tokens) break;
      const uint4 b = load_eight(p.x_TD, token + 8 * j + lane / 4, p.tokens, k, p.d);
      mma_bf16(acc[j], a[0], b.x, b.y);
      mma_bf16(acc[j], a[1], b.z, b.w);
    }
  }
  float* logits = shared + layout.logits + part * p.tokens * layout.pitch;
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = token + 8 * j + lane % 4 * 2 + i % 2;
      if (t < p.tokens) logits[t * layout.pitch + expert + i / 2 * 8] = acc[j][i];
    }
  }
}

__device__ __forceinline__ void all_logits(const Params& p, const Layout& layout, float* shared,
                                           int rank) {
  const int warp = threadIdx.x / 32;
  const int blocks = (p.d + 31) / 32;
  const int jobs = layout.pitch / 16 * ((p.tokens + 8 * kTokenTiles - 1) / (8 * kTokenTiles));
  const int ranges = kCluster * layout.parts;
  for (int i = warp; i < jobs * layout.parts; i += kWarps) {
    const int part = i / jobs;
    const int range = rank * layout.parts + part;
    multiply(p, layout, shared, i - part * jobs, part, blocks * range / ranges,
             blocks * (range + 1) / ranges);
  }
}

// Chooses the token's experts and writes its weights; adds to p_sum and z_sum.
template <int kPerLane>
__device__ __forceinline__ void route_token(const Params& p, const Layout& layout, float* shared,
                                            int token, float (&p_sum)[kPerLane], float& z_sum) {
  const int lane = threadIdx.x % 32;
  const auto logit = [&](int expert) {
    float sum = 0.0f;
    for (int part = 0; part < layout.parts; ++part) {
      const float* place =
          shared + layout.logits + (part * p.tokens + token) * layout.pitch + expert;
      float value[kCluster];
#pragma unroll
      for (int rank = 0; rank < kCluster; ++rank) value[rank] = load_cluster(at_rank(place, rank));
#pragma unroll
      for (int rank = 0; rank < kCluster; ++rank) sum += value[rank];
    }
    return sum;
  };
  const TokenSoftmax<kPerLane> softmax(logit, p.experts, lane);
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) p_sum[j] += softmax.p[j];
  const float z = softmax.max + logf(softmax.sum);
  z_sum += z * z;

  const std::uint32_t sets = at_rank(shared + layout.sets, 0);
  unsigned taken = 0;
  float norm = 0.0f;
  for (int k = 0; k < p.top_k; ++k) {
    const int expert = next_expert(softmax.logit, taken, p.experts, lane);
    const float s = softmax.of(expert, lane);
    norm += p.q == 1.0f ? s : p.q > 0.0f ? powf(s, p.q) : 0.0f;
    if (lane == 0) {
      p.weights_TK[token * p.top_k + k] = s;
      p.indices_TK[token * p.top_k + k] = expert;
      or_cluster(sets + 4 * (expert * layout.words + token / 32), 1u << (token % 32));
    }
  }
  if (p.q > 0.0f) {
    __syncwarp();
    const float scale = p.q == 1.0f ? norm : powf(norm, 1.0f / p.q);
    for (int k = lane; k < p.top_k; k += 32) p.weights_TK[token * p.top_k + k] /= scale;
  }
}

// The sum over the CTA's threads, to thread 0, in a fixed order.
__device__ __forceinline__ float cta_sum(float value, float* scratch) {
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += scratch[w];
  return sum;
}

// The first CTA, all sets being complete: counts, losses, offsets, rows and items.
__device__ __forceinline__ void finish(const Params& p, const Layout& layout, float* shared,
                                       const float* z_ctas) {
  __shared__ int scan_scratch[kWarps];
  __shared__ float sum_scratch[kWarps];
  const auto* sets = reinterpret_cast<const unsigned*>(shared + layout.sets);
  int* starts = reinterpret_cast<int*>(shared + layout.starts);
  const int per_thread = (p.experts + kThreads - 1) / kThreads;
  const int first = static_cast<int>(threadIdx.x) * per_thread;
  const int last = min(first + per_thread, p.experts);
  const auto count_of = [&](int expert) {
    int count = 0;
    for (int w = 0; w < layout.words; ++w) count += __popc(sets[expert * layout.words + w]);
    return count;
  };
  const auto items_of = [&](int count) { return (count + p.rows_per_item - 1) / p.rows_per_item; };
  int rows = 0, items = 0;
  float balance = 0.0f;
  for (int expert = first; expert < last; ++expert) {
    const int count = count_of(expert);
    rows += count;
    items += items_of(count);
    if (p.tokens_per_expert_E != nullptr) p.tokens_per_expert_E[expert] = count;
    if (p.losses_2 != nullptr) {
      float sum = 0.0f;
      for (int rank = 0; rank < kCluster; ++rank) {
        sum += shared[layout.p_ctas + rank * p.experts + expert];
      }
      balance += sum * static_cast<float>(count);
    }
  }
  int all_rows, all_items;
  int row = exclusive_scan<kThreads>(rows, scan_scratch, all_rows);
  int item = exclusive_scan<kThreads>(items, scan_scratch, all_items);
  for (int expert = first; expert < last; ++expert) {
    const int count = count_of(expert);
    starts[expert] = row;
    p.offsets_E1[expert] = row;
    for (int i = 0; i < items_of(count); ++i) {
      p.items[item + i] = {expert, row, count, item};
      p.up_done[item + i] = 0;
    }
    row += count;
    item += items_of(count);
  }
  if (threadIdx.x == 0) {
    p.offsets_E1[p.experts] = all_rows;
    *p.control = {.ticket = p.grid, .items = all_items, .down_done = 0, .unused = 0};
  }
  __syncthreads();
  for (int i = threadIdx.x; i < p.tokens * p.top_k; i += kThreads) {
    const int token = i / p.top_k;
    const int expert = p.indices_TK[i];
    const unsigned* set = sets + expert * layout.words;
    int before = __popc(set[token / 32] & ((1u << (token % 32)) - 1));
    for (int w = 0; w < token / 32; ++w) before += __popc(set[w]);
    const int at = starts[expert] + before;
    p.rows_TK[i] = at;
    p.tokens_R[at] = token;
  }
  if (p.losses_2 == nullptr) return;
  balance = cta_sum(balance, sum_scratch);
  if (threadIdx.x == 0) {
    const auto t = static_cast<float>(p.tokens);
    float z = 0.0f;
    for (int rank = 0; rank < kCluster; ++rank) z += z_ctas[rank];
    p.losses_2[0] = balance * static_cast<float>(p.experts) / (t * static_cast<float>(p.top_k)) / t;
    p.losses_2[1] = z / t;
  }
}

template <int kPerLane>
__global__ void __launch_bounds__(kThreads, 1) small_route_kernel(const Params p) {
  extern __shared__ float shared[];
  __shared__ float z_warps[kWarps];
  __shared__ float z_ctas[kCluster];
  ptx::dependency_wait();
  ptx::launch_dependents();
  const Layout layout(p.tokens, p.experts);
  const int rank = static_cast<int>(ptx::cluster_rank());
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  auto* sets = reinterpret_cast<unsigned*>(shared + layout.sets);
  for (int i = threadIdx.x; i < p.experts * layout.words; i += kThreads) sets[i] = 0;
  all_logits(p, layout, shared, rank);
  ptx::cluster_sync();

  float p_sum[kPerLane] = {};
  float z_sum = 0.0f;
  for (int token = warp * kCluster + rank; token < p.tokens; token += kWarps * kCluster) {
    route_token(p, layout, shared, token, p_sum, z_sum);
  }
  if (p.losses_2 != nullptr) {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int expert = lane + 32 * j;
      if (expert < p.experts) shared[layout.p_warps + warp * p.experts + expert] = p_sum[j];
    }
    if (lane == 0) z_warps[warp] = z_sum;
    __syncthreads();
    for (int expert = threadIdx.x; expert < p.experts; expert += kThreads) {
      float sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) sum += shared[layout.p_warps + w * p.experts + expert];
      store_cluster(at_rank(shared + layout.p_ctas + rank * p.experts + expert, 0), sum);
    }
    if (threadIdx.x == 0) {
      float sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) sum += z_warps[w];
      store_cluster(at_rank(z_ctas + rank, 0), sum);
    }
  }
  // Also: nobody leaves while others still read its logits.
  ptx::cluster_sync();
  if (rank == 0) finish(p, layout, shared, z_ctas);
}

template <class Launch>
void for_experts(std::int64_t experts, Launch launch) {
  if (experts <= 32) return launch(small_route_kernel<1>);
  if (experts <= 64) return launch(small_route_kernel<2>);
  if (experts <= 128) return launch(small_route_kernel<4>);
  if (experts <= 256) return launch(small_route_kernel<8>);
  if (experts <= 512) return launch(small_route_kernel<16>);
  launch(small_route_kernel<32>);
}

std::int64_t shared_bytes(std::int64_t tokens, std::int64_t experts) {
  return 4 *
         static_cast<std::int64_t>(Layout(static_cast<int>(tokens), static_cast<int>(experts)).end);
}

}  // namespace

bool small_batch_fits(std::int64_t tokens, std::int64_t num_experts) {
  return tokens >= 1 && tokens <= kSmallBatchTokens && num_experts <= 1024 &&
         shared_bytes(tokens, num_experts) <= kMaxShared;
}

void small_batch_route(const SmallBatch& layer, int rows_per_item, int grid,
                       const SmallBatchBuffers& buffers, cudaStream_t stream) {
  const Params params{.tokens = static_cast<int>(layer.tokens),
                      .experts = static_cast<int>(layer.num_experts),
                      .top_k = static_cast<int>(layer.top_k),
                      .d = static_cast<int>(layer.d_model),
                      .rows_per_item = rows_per_item,
                      .grid = grid,
                      .q = static_cast<float>(layer.normalize_p),
                      .x_TD = static_cast<const __nv_bfloat16*>(layer.x_TD.data),
                      .router_ED = static_cast<const __nv_bfloat16*>(layer.router_ED.data),
                      .weights_TK = layer.weights_TK,
                      .indices_TK = layer.indices_TK,
                      .rows_TK = layer.rows_TK,
                      .offsets_E1 = layer.offsets_E1,
                      .losses_2 = layer.losses_2,
                      .tokens_per_expert_E = layer.tokens_per_expert_E,
                      .control = buffers.control,
                      .up_done = buffers.up_done,
                      .items = buffers.items,
                      .tokens_R = buffers.tokens_R};
  const auto bytes = static_cast<int>(shared_bytes(layer.tokens, layer.num_experts));
  for_experts(layer.num_experts, [&](auto kernel) {
    launch_dependent(kernel, kCluster, kThreads, bytes, kCluster, stream, params);
  });
}

}  // namespace dropless::cuda
