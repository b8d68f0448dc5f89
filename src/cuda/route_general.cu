// The router with everything that RouteConfig offers: sigmoid scores, a selection bias, groups, a
// factor, uniform or given indices. Formulas: include/dropless/route.h. A warp per token, as in
// route.cu, which holds the kernel of plain softmax routers: it has fewer branches and registers.
#include <cuda_runtime.h>

#include <type_traits>

#include "src/cuda/check.h"
#include "src/cuda/device/token_router.cuh"
#include "src/cuda/route_launch.h"

namespace dropless::cuda {
namespace {

constexpr float kTiny = 1e-30f;  // scores that sum to less are not divided

struct Options {
  bool sigmoid, by_score;  // by_score: s + bias chooses, not the logits
  RouteSelection selection;
  int groups, group_top_k;
  float q, factor;
  const float* bias_E;
};

// The value of `expert`, from its lane; 0 for an index that is none's.
template <int kPerLane>
__device__ __forceinline__ float value_of(const float (&values)[kPerLane], int expert, int lane) {
  float value = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) value = expert == lane + 32 * i ? values[i] : value;
  return __shfl_sync(0xffffffff, value, expert & 31);
}

// One token's scores, and what divides them to p.
template <int kPerLane>
struct TokenScores {
  TokenSoftmax<kPerLane> softmax;
  float s[kPerLane];
  float sum = 1.0f;
  float lse;

  __device__ __forceinline__ TokenScores(const float* logits_E, bool sigmoid, int experts, int lane)
      : softmax([&](int expert) { return logits_E[expert]; }, experts, lane) {
    lse = softmax.max + logf(softmax.sum);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      s[i] = sigmoid ? 1.0f / (1.0f + expf(-softmax.logit[i])) : softmax.p[i];
    }
    if (sigmoid) {
      float total = 0.0f;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) total += s[i];
      total = warp_sum(total);
      sum = total < kTiny ? 1.0f : total;
    }
  }
};

// (sum_k s_k^q)^(1/q) over the chosen experts, by their largest, so that no power underflows.
template <class Score>
__device__ __forceinline__ float q_norm(Score score, int top_k, float q) {
  if (q == 0.0f) return 1.0f;
  float sum = 0.0f, max = 0.0f;
  for (int k = 0; k < top_k; ++k) {
    const float s = score(k);
    sum += s;
    max = fmaxf(max, s);
  }
  if (sum < kTiny) return 1.0f;
  if (q == 1.0f) return sum;
  float powers = 0.0f;
  for (int k = 0; k < top_k; ++k) powers += powf(score(k) / max, q);
  return max * powf(powers, 1.0f / q);
}

// Bit i set: expert lane + 32 i is outside the group_top_k best groups. choice_E: in shared memory.
template <int kPerLane>
__device__ __forceinline__ unsigned outside_groups(const float* choice_E, const Options& options,
                                                   int experts, int lane) {
  const int size = experts / options.groups;
  float value[kPerLane];  // of group lane + 32 i
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    float first = -INFINITY, second = -INFINITY;
    const int group = lane + 32 * i;
    for (int e = 0; group < options.groups && e < size; ++e) {
      const float c = choice_E[group * size + e];
      second = c > first ? first : fmaxf(second, c);
      first = fmaxf(first, c);
    }
    value[i] = size > 1 ? first + second : first;
  }
  unsigned outside = 0xffffffff;
  ExpertChoice<kPerLane> groups(value, options.groups, lane);
  for (int n = 0; n < options.group_top_k; ++n) {
    const int begin = groups.next() * size;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int expert = lane + 32 * i;
      if (expert >= begin && expert < begin + size) outside &= ~(1u << i);
    }
  }
  return outside;
}

// The token's experts into indices_K; choice_E: this warp's scratch.
template <int kPerLane>
__device__ __forceinline__ void select(const TokenScores<kPerLane>& scores, const Options& options,
                                       std::int64_t token, int experts, int top_k, int lane,
                                       float* choice_E, int* indices_K) {
  if (options.selection == RouteSelection::kGiven) return;
  if (options.selection == RouteSelection::kUniform) {
    for (int k = lane; k < top_k; k += 32) {
      indices_K[k] = static_cast<int>((token * top_k + k) % experts);
    }
    return;
  }
  float choice[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane + 32 * i;
    choice[i] = scores.softmax.logit[i];
    if (options.by_score && expert < experts) {
      choice[i] = scores.s[i] + (options.bias_E == nullptr ? 0.0f : __ldg(options.bias_E + expert));
    }
  }
  unsigned outside = 0;
  if (options.group_top_k < options.groups) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) choice_E[lane + 32 * i] = choice[i];
    __syncwarp();
    outside = outside_groups<kPerLane>(choice_E, options, experts, lane);
    __syncwarp();  // before the next token's choices
  }
  ExpertChoice<kPerLane> experts_left(choice, experts, lane, outside);
  for (int first = 0; first < top_k; first += 32) {
    const int count = min(32, top_k - first);
    const int expert = experts_left.next_round(count);
    if (lane < count) indices_K[first + lane] = expert;
  }
}

template <int kPerLane>
__global__ void __launch_bounds__(32 * kRouteWarps, 1)
    general_route_kernel(const float* logits_TE, int pitch, std::int64_t tokens, int experts,
                         int top_k, Options options, float* weights_TK, int* indices_TK,
                         RoutePartials partials) {
  __shared__ float shared_p[kRouteWarps][kPerLane * 32];
  __shared__ int shared_counts[kPerLane * 32];
  __shared__ float shared_z[kRouteWarps];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < kPerLane * 32; i += blockDim.x) shared_counts[i] = 0;
  __syncthreads();
  float p_sum[kPerLane] = {};
  float z_sum = 0.0f;
  for (int i = 0; i < kRouteTokensPerWarp; ++i) {
    const std::int64_t token =
        static_cast<std::int64_t>(blockIdx.x) * kRouteTokensPerCta + warp * kRouteTokensPerWarp + i;
    if (token >= tokens) break;
    const TokenScores<kPerLane> scores(logits_TE + token * pitch, options.sigmoid, experts, lane);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) p_sum[j] += scores.s[j] / scores.sum;
    z_sum += scores.lse * scores.lse;

    int* indices_K = indices_TK + token * top_k;
    select(scores, options, token, experts, top_k, lane, shared_p[warp], indices_K);
    __syncwarp();
    const auto score = [&](int k) { return value_of(scores.s, indices_K[k], lane); };
    const float norm = q_norm(score, top_k, options.q);
    for (int k = 0; k < top_k; ++k) {
      const float weight = score(k) / norm * options.factor;
      const int expert = indices_K[k];
      if (lane == 0) {
        weights_TK[token * top_k + k] = weight;
        if (expert >= 0 && expert < experts) {
          atomicAdd(&shared_counts[expert], 1);  // integers: the order cannot show
        }
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) shared_p[warp][lane + 32 * j] = p_sum[j];
  if (lane == 0) shared_z[warp] = z_sum;
  __syncthreads();
  const std::int64_t block = blockIdx.x;
  for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
    float sum = 0.0f;
    for (int w = 0; w < kRouteWarps; ++w) sum += shared_p[w][expert];
    partials.p_sums_BE[block * experts + expert] = sum;
    partials.counts_BE[block * experts + expert] = shared_counts[expert];
  }
  if (threadIdx.x == 0) {
    float sum = 0.0f;
    for (int w = 0; w < kRouteWarps; ++w) sum += shared_z[w];
    partials.z_sums_B[block] = sum;
  }
}

template <int kPerLane>
__global__ void __launch_bounds__(32 * kRouteWarps, 1)
    general_route_backward_kernel(const float* logits_TE, int pitch, const int* indices_TK,
                                  const int* tokens_per_expert_E, const float* d_weights_TK,
                                  const float* d_losses_2, std::int64_t tokens, int experts,
                                  int top_k, Options options, float* d_logits_TE) {
  const int lane = threadIdx.x % 32;
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kRouteWarps + threadIdx.x / 32;
  if (token >= tokens) return;
  const TokenScores<kPerLane> scores(logits_TE + token * pitch, options.sigmoid, experts, lane);
  const int* indices_K = indices_TK + token * top_k;
  const float* d_weights_K = d_weights_TK + token * top_k;
  const auto t = static_cast<float>(tokens);

  // The balance loss reaches the score of every expert, through p = s / sum s.
  float d_s[kPerLane];
  const float balance = d_losses_2 == nullptr ? 0.0f : d_losses_2[0] * experts / (t * top_k) / t;
  float mean = 0.0f;  // sum_e p_e d_p_e; softmax has it in its own derivative below
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int expert = lane + 32 * j;
    d_s[j] = balance != 0.0f && expert < experts ? balance * tokens_per_expert_E[expert] : 0.0f;
    mean += scores.s[j] / scores.sum * d_s[j];
  }
  mean = options.sigmoid ? warp_sum(mean) : 0.0f;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) d_s[j] = (d_s[j] - mean) / scores.sum;

  // The weights reach the scores of the selected experts.
  const auto score = [&](int k) { return value_of(scores.s, indices_K[k], lane); };
  const float norm = q_norm(score, top_k, options.q);
  float dot = 0.0f;  // sum_j d_w_j v_j
  for (int k = 0; k < top_k; ++k) dot += d_weights_K[k] * (score(k) / norm);
  for (int k = 0; k < top_k; ++k) {
    const float v = score(k) / norm;
    // A weight that underflowed to 0 has no slope worth an infinity (q < 1).
    const float slope = options.q == 0.0f || v == 0.0f ? 0.0f : powf(v, options.q - 1.0f) * dot;
    const float d = options.factor * (d_weights_K[k] - slope) / norm;
    const int expert = indices_K[k];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) d_s[j] += expert == lane + 32 * j ? d : 0.0f;
  }

  float through_sum = 0.0f;  // softmax: sum_e s_e d_s_e
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) through_sum += scores.s[j] * d_s[j];
  through_sum = options.sigmoid ? 0.0f : warp_sum(through_sum);
  const float d_lse = d_losses_2 == nullptr ? 0.0f : d_losses_2[1] * 2.0f / t * scores.lse;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int expert = lane + 32 * j;
    const float s = scores.s[j];
    const float slope = options.sigmoid ? s / (1.0f + expf(scores.softmax.logit[j])) * d_s[j]
                                        : s * (d_s[j] - through_sum);
    if (expert < experts) d_logits_TE[token * pitch + expert] = slope + d_lse * scores.softmax.p[j];
  }
}

Options options_of(const RouteConfig& config, const float* bias_E) {
  return {.sigmoid = config.score == RouteScore::kSigmoid,
          .by_score = bias_E != nullptr || config.group_top_k < config.num_groups,
          .selection = config.selection,
          .groups = static_cast<int>(config.num_groups),
          .group_top_k = static_cast<int>(config.group_top_k),
          .q = static_cast<float>(config.normalize_p),
          .factor = static_cast<float>(config.scaling_factor),
          .bias_E = bias_E};
}

// The number of experts a lane holds, as a constant; fewer sizes than plain routers have.
template <class Launch>
void for_experts(std::int64_t experts, Launch launch) {
  if (experts <= 128) return launch(std::integral_constant<int, 4>{});
  if (experts <= 256) return launch(std::integral_constant<int, 8>{});
  launch(std::integral_constant<int, kMaxExperts / 32>{});
}

}  // namespace

void general_route_forward(const RouteConfig& config, const float* bias_E, const float* logits_TE,
                           std::int64_t pitch, std::int64_t num_tokens, std::int64_t num_experts,
                           std::int64_t top_k, float* weights_TK, std::int32_t* indices_TK,
                           const RoutePartials& partials, Stream stream) {
  const auto blocks = static_cast<unsigned>(route_blocks(num_tokens));
  for_experts(num_experts, [&](auto per_lane) {
    if (blocks == 0) return;
    general_route_kernel<per_lane.value>
        <<<blocks, 32 * kRouteWarps, 0, static_cast<cudaStream_t>(stream)>>>(
            logits_TE, static_cast<int>(pitch), num_tokens, static_cast<int>(num_experts),
            static_cast<int>(top_k), options_of(config, bias_E), weights_TK, indices_TK, partials);
  });
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

void general_route_backward(const RouteConfig& config, const float* logits_TE, std::int64_t pitch,
                            std::int64_t num_tokens, std::int64_t num_experts, std::int64_t top_k,
                            const std::int32_t* indices_TK, const std::int32_t* tokens_per_expert_E,
                            const float* d_weights_TK, const float* d_losses_2, float* d_logits_TE,
                            Stream stream) {
  const auto blocks = static_cast<unsigned>((num_tokens + kRouteWarps - 1) / kRouteWarps);
  for_experts(num_experts, [&](auto per_lane) {
    general_route_backward_kernel<per_lane.value>
        <<<blocks, 32 * kRouteWarps, 0, static_cast<cudaStream_t>(stream)>>>(
            logits_TE, static_cast<int>(pitch), indices_TK, tokens_per_expert_E, d_weights_TK,
            d_losses_2, num_tokens, static_cast<int>(num_experts), static_cast<int>(top_k),
            options_of(config, nullptr), d_logits_TE);
  });
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
