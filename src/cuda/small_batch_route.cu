// The router for few tokens, in one kernel of one cluster: logits, softmax, top-k, losses, the
// dispatch order and the list of work for small_batch.cu. Formulas and tie rules:
// include/dropless/route.h.
//
//   logits    each CTA has an eighth of d_model; experts are M, tokens N of mma.sync m16n8k16. The
//             parts of a token's logits go to the shared memory of the CTA that has the token
//   tokens    a warp each: adds the parts in order and chooses; the choice goes to the first CTA,
//             where an expert's tokens are a set of bits
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
  int slots;  // tokens of a CTA: every eighth
  int words;  // of an expert's set of tokens
  int logits, p_warps, p_ctas, sets, starts, choices, end;
  __host__ __device__ Layout(int tokens, int experts, int top_k) {
    const int jobs = (experts + 15) / 16 * ((tokens + 8 * kTokenTiles - 1) / (8 * kTokenTiles));
    parts = jobs >= kWarps ? 1 : kWarps / jobs;
    pitch = (experts + 15) / 16 * 16;
    slots = (tokens + kCluster - 1) / kCluster;
    words = (tokens + 31) / 32;
    logits = 0;
    p_warps = logits + kCluster * parts * slots * pitch;
    p_ctas = p_warps + kWarps * experts;
    sets = p_ctas + kCluster * experts;
    starts = sets + experts * words;
    choices = starts + experts;  // 16 bits each
    end = choices + (tokens * top_k + 1) / 2;
  }
};

struct Params {
  int tokens, experts, top_k, d, rows_per_item, grid;
  bool normalize;
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
__device__ __forceinline__ void store_cluster(std::uint32_t address, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
__device__ __forceinline__ void store_cluster(std::uint32_t address, std::uint16_t value) {
  asm volatile("st.shared::cluster.u16 [%0], %1;" ::"r"(address), "h"(value) : "memory");
}
__device__ __forceinline__ void or_cluster(std::uint32_t address, unsigned bits) {
  asm volatile("red.relaxed.cluster.shared::cluster.or.b32 [%0], %1;" ::"r"(address), "r"(bits)
               : "memory");
}

// Into the L2 cache, while the kernel before this one ends.
__device__ __forceinline__ void prefetch_router(const Params& p) {
  constexpr int kLine = 128;
  const int lines = p.experts * p.d * 2 / kLine;
  const auto* first = reinterpret_cast<const char*>(p.router_ED);
  for (int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); i < lines;
       i += kCluster * kThreads) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(first + static_cast<std::int64_t>(i) * kLine));
  }
}

// Eight consecutive k of a row, for two products: the k of a fragment are in any order, as long as
// both operands have the same.
__device__ __forceinline__ uint4 load_eight(const __nv_bfloat16* matrix, int row, int rows, int k,
                                            int d) {
  if (row >= rows || k >= d) return make_uint4(0, 0, 0, 0);
  return *reinterpret_cast<const uint4*>(matrix + static_cast<std::int64_t>(row) * d + k);
}

// Logits of 16 experts and up to 8 kTiles tokens over one range of k, kBlocks times 32 at a time: all
// loads of those before the first product.
template <int kTiles, int kBlocks>
__device__ __forceinline__ void multiply(const Params& p, int expert, int token, int begin, int end,
                                         float (&acc)[kTokenTiles][4]) {
  const int lane = threadIdx.x % 32;
  for (int first = begin; first < end; first += kBlocks) {
    uint4 low[kBlocks], high[kBlocks], b[kBlocks][kTiles];
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const int k = first + i < end ? (first + i) * 32 + lane % 4 * 8 : p.d;
      low[i] = load_eight(p.router_ED, expert, p.experts, k, p.d);
      high[i] = load_eight(p.router_ED, expert + 8, p.experts, k, p.d);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        b[i][j] = load_eight(p.x_TD, token + 8 * j + lane / 4, p.tokens, k, p.d);
      }
    }
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const std::uint32_t a[2][4] = {{low[i].x, high[i].x, low[i].y, high[i].y},
                                     {low[i].z, high[i].z, low[i].w, high[i].w}};
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        mma_bf16(acc[j], a[0], b[i][j].x, b[i][j].y);
        mma_bf16(acc[j], a[1], b[i][j].z, b[i][j].w);
      }
    }
  }
}

// This CTA's part of all logits, to those that have the tokens.
__device__ __forceinline__ void all_logits(const Params& p, const Layout& layout, float* shared,
                                           int rank) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int blocks = (p.d + 31) / 32;
  const int expert_tiles = layout.pitch / 16;
  const int jobs = expert_tiles * ((p.tokens + 8 * kTokenTiles - 1) / (8 * kTokenTiles));
  const int ranges = kCluster * layout.parts;
  bool all_started = false;
  for (int i = warp; i < jobs * layout.parts || !all_started; i += kWarps) {
    const int job = i % jobs;
    const int range = rank * layout.parts + i / jobs;
    const int expert = job % expert_tiles * 16 + lane / 4;
    const int token = job / expert_tiles * 8 * kTokenTiles;
    float acc[kTokenTiles][4] = {};
    const bool any = i < jobs * layout.parts;
    const int begin = blocks * range / ranges;
    const int end = any ? blocks * (range + 1) / ranges : 0;
    if (p.tokens <= 8) {
      multiply<1, 8>(p, expert, token, begin, end, acc);
    } else {
      multiply<kTokenTiles, 4>(p, expert, token, begin, end, acc);
    }
    if (!all_started) ptx::cluster_wait();  // nobody's shared memory is there before it has started
    all_started = true;
    if (!any) break;
    const float* parts = shared + layout.logits + range * layout.slots * layout.pitch + expert;
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int t = token + 8 * j + lane % 4 * 2 + m % 2;
        if (t >= p.tokens) continue;
        store_cluster(at_rank(parts + t / kCluster * layout.pitch + m / 2 * 8, t % kCluster),
                      acc[j][m]);
      }
    }
  }
}

// The token's softmax over its logits, whose parts are here.
template <int kPerLane>
__device__ __forceinline__ TokenSoftmax<kPerLane> softmax_of(const Params& p, const Layout& layout,
                                                             const float* shared, int token) {
  const float* parts = shared + layout.logits + token / kCluster * layout.pitch;
  const auto logit = [&](int expert) {
    float sum = 0.0f;
#pragma unroll 8
    for (int range = 0; range < kCluster * layout.parts; ++range) {
      sum += parts[range * layout.slots * layout.pitch + expert];
    }
    return sum;
  };
  return TokenSoftmax<kPerLane>(logit, p.experts, static_cast<int>(threadIdx.x % 32));
}

// Chooses the token's experts and writes its weights; adds to p_sum and z_sum.
template <int kPerLane>
__device__ __forceinline__ void route_token(const Params& p, const Layout& layout, float* shared,
                                            int token, float (&p_sum)[kPerLane], float& z_sum) {
  const int lane = threadIdx.x % 32;
  const TokenSoftmax<kPerLane> softmax = softmax_of<kPerLane>(p, layout, shared, token);
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) p_sum[j] += softmax.p[j];
  const float z = softmax.max + logf(softmax.sum);
  z_sum += z * z;

  // Lane k has the k-th choice of a round of 32.
  const std::uint32_t sets = at_rank(shared + layout.sets + token / 32, 0);
  const std::uint32_t choices = at_rank(shared + layout.choices, 0) + 2 * token * p.top_k;
  float* weights = p.weights_TK + token * p.top_k;
  ExpertChoice<kPerLane> choice(softmax.logit, p.experts, lane);
  float norm = 0.0f;
  float first_weight = 0.0f;
  for (int first = 0; first < p.top_k; first += 32) {
    const int expert = choice.next_round(min(32, p.top_k - first));
    const float weight = softmax.of(expert);
    const bool chosen = first + lane < p.top_k;
    if (chosen) {
      weights[first + lane] = weight;
      p.indices_TK[token * p.top_k + first + lane] = expert;
      store_cluster(choices + 2 * (first + lane), static_cast<std::uint16_t>(expert));
      or_cluster(sets + 4 * expert * layout.words, 1u << (token % 32));
    }
    if (p.normalize) norm += warp_sum(chosen ? weight : 0.0f);
    if (first == 0) first_weight = weight;
  }
  if (p.normalize) {
    for (int k = lane; k < p.top_k; k += 32) {
      weights[k] = (k == lane ? first_weight : weights[k]) / norm;
    }
  }
}

// The first CTA, all choices being there: counts, losses, offsets, rows and items.
__device__ __forceinline__ void finish(const Params& p, const Layout& layout, float* shared,
                                       const float* z_ctas) {
  __shared__ int scan_scratch[kWarps];
  __shared__ float balance_warps[kWarps];
  const auto* sets = reinterpret_cast<const unsigned*>(shared + layout.sets);
  int* starts = reinterpret_cast<int*>(shared + layout.starts);
  const int per_thread = (p.experts + kThreads - 1) / kThreads;
  const int begin = static_cast<int>(threadIdx.x) * per_thread;
  const int end = min(begin + per_thread, p.experts);
  const auto count_of = [&](int expert) {
    int count = 0;
    for (int w = 0; w < layout.words; ++w) count += __popc(sets[expert * layout.words + w]);
    return count;
  };
  const auto items_of = [&](int count) { return (count + p.rows_per_item - 1) / p.rows_per_item; };
  int own = 0;  // rows, and items in the high half: neither passes 16 bits
  float balance = 0.0f;
  for (int expert = begin; expert < end; ++expert) {
    const int count = count_of(expert);
    own += count + (items_of(count) << 16);
    if (p.tokens_per_expert_E != nullptr) p.tokens_per_expert_E[expert] = count;
    if (p.losses_2 != nullptr) {
      float sum = 0.0f;
#pragma unroll
      for (int rank = 0; rank < kCluster; ++rank) {
        sum += shared[layout.p_ctas + rank * p.experts + expert];
      }
      balance += sum * static_cast<float>(count);
    }
  }
  balance = warp_sum(balance);
  if (threadIdx.x % 32 == 0) balance_warps[threadIdx.x / 32] = balance;
  int all;
  const auto before = static_cast<unsigned>(exclusive_scan<kThreads>(own, scan_scratch, all));
  int row = static_cast<int>(before & 0xffff);
  int item = static_cast<int>(before >> 16);
  for (int expert = begin; expert < end; ++expert) {
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
    p.offsets_E1[p.experts] = all & 0xffff;
    *p.control = {.ticket = p.grid,
                  .items = static_cast<int>(static_cast<unsigned>(all) >> 16),
                  .down_done = 0,
                  .unused = 0};
  }
  if (threadIdx.x == 32 && p.losses_2 != nullptr) {
    const auto t = static_cast<float>(p.tokens);
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += balance_warps[w];
    float z = 0.0f;
    for (int rank = 0; rank < kCluster; ++rank) z += z_ctas[rank];
    p.losses_2[0] = sum * static_cast<float>(p.experts) / (t * static_cast<float>(p.top_k)) / t;
    p.losses_2[1] = z / t;
  }
  __syncthreads();
  const auto* choices = reinterpret_cast<const std::uint16_t*>(shared + layout.choices);
  for (int i = threadIdx.x; i < p.tokens * p.top_k; i += kThreads) {
    const int token = i / p.top_k;
    const int expert = choices[i];
    const unsigned* set = sets + expert * layout.words;
    int place = starts[expert] + __popc(set[token / 32] & ((1u << (token % 32)) - 1));
    for (int w = 0; w < token / 32; ++w) place += __popc(set[w]);
    p.rows_TK[i] = place;
    p.tokens_R[place] = token;
  }
}

// All of the kernel behind the logits, for one token with top_k at most 32, by one warp: the token's experts
// are items of one row each, in the order of their numbers.
template <int kPerLane>
__device__ __forceinline__ void route_only_token(const Params& p, const Layout& layout,
                                                 const float* shared) {
  const int lane = threadIdx.x % 32;
  const TokenSoftmax<kPerLane> softmax = softmax_of<kPerLane>(p, layout, shared, 0);
  ExpertChoice<kPerLane> choice(softmax.logit, p.experts, lane);
  const int expert = choice.next_round(p.top_k);  // lane k has the k-th
  const bool chosen = lane < p.top_k;
  // Experts 32 j .. 32 j + 31 that are taken, and where this lane's choice and experts come among them.
  int place = 0;
  int before = 0;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int mine = lane + 32 * j;
    const bool taken = mine < p.experts && choice.chosen(j);
    const unsigned word = __ballot_sync(0xffffffff, taken);
    if (mine < p.experts) {
      p.offsets_E1[mine] = before + __popc(word & ((1u << lane) - 1));
      if (p.tokens_per_expert_E != nullptr) p.tokens_per_expert_E[mine] = taken;
    }
    if (expert / 32 == j) place = before + __popc(word & ((1u << (expert % 32)) - 1));
    before += __popc(word);
  }
  if (chosen) {
    p.items[place] = {expert, place, 1, place};
    p.up_done[place] = 0;
    p.tokens_R[place] = 0;
    p.rows_TK[lane] = place;
    p.indices_TK[lane] = expert;
  }
  if (lane == 0) {
    *p.control = {.ticket = p.grid, .items = p.top_k, .down_done = 0, .unused = 0};
    p.offsets_E1[p.experts] = p.top_k;
  }
  float weight = softmax.of(expert);
  if (p.normalize) weight /= warp_sum(chosen ? weight : 0.0f);
  if (chosen) p.weights_TK[lane] = weight;
  if (p.losses_2 == nullptr) return;
  float balance = 0.0f;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) balance += choice.chosen(j) ? softmax.p[j] : 0.0f;
  balance = warp_sum(balance);
  if (lane > 0) return;
  const float z = softmax.max + logf(softmax.sum);
  p.losses_2[0] = balance * static_cast<float>(p.experts) / static_cast<float>(p.top_k);
  p.losses_2[1] = z * z;
}

template <int kPerLane>
__global__ void __launch_bounds__(kThreads, 1) small_route_kernel(const Params p) {
  extern __shared__ float shared[];
  __shared__ float z_warps[kWarps];
  __shared__ float z_ctas[kCluster];
  ptx::launch_dependents();
  ptx::cluster_arrive();
  prefetch_router(p);
  ptx::dependency_wait();
  const Layout layout(p.tokens, p.experts, p.top_k);
  const int rank = static_cast<int>(ptx::cluster_rank());
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  auto* sets = reinterpret_cast<unsigned*>(shared + layout.sets);
  for (int i = threadIdx.x; i < p.experts * layout.words; i += kThreads) sets[i] = 0;
  all_logits(p, layout, shared, rank);
  ptx::cluster_sync();
  if (p.tokens == 1 && p.top_k <= 32) {
    if (rank == 0 && warp == 0) route_only_token<kPerLane>(p, layout, shared);
    return;
  }

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

std::int64_t shared_bytes(std::int64_t tokens, std::int64_t experts, std::int64_t top_k) {
  return 4 * static_cast<std::int64_t>(Layout(static_cast<int>(tokens), static_cast<int>(experts),
                                              static_cast<int>(top_k))
                                           .end);
}

}  // namespace

bool small_batch_fits(std::int64_t tokens, std::int64_t num_experts, std::int64_t top_k) {
  constexpr std::int64_t kMaxRows = 1 << 14;  // rows and items are counted in 16 bits
  return tokens >= 1 && tokens <= kSmallBatchTokens && num_experts <= 1024 && top_k >= 1 &&
         tokens * top_k <= kMaxRows && shared_bytes(tokens, num_experts, top_k) <= kMaxShared;
}

void small_batch_route(const SmallBatch& layer, int rows_per_item, int grid,
                       const SmallBatchBuffers& buffers, cudaStream_t stream) {
  const Params params{.tokens = static_cast<int>(layer.tokens),
                      .experts = static_cast<int>(layer.num_experts),
                      .top_k = static_cast<int>(layer.top_k),
                      .d = static_cast<int>(layer.d_model),
                      .rows_per_item = rows_per_item,
                      .grid = grid,
                      .normalize = layer.normalize,
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
  const auto bytes = static_cast<int>(shared_bytes(layer.tokens, layer.num_experts, layer.top_k));
  for_experts(layer.num_experts, [&](auto kernel) {
    launch_dependent(kernel, kCluster, kThreads, bytes, kCluster, stream, params);
  });
}

}  // namespace dropless::cuda
