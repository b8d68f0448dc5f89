// The router on the device: softmax, top-k, normalisation and the two losses, and their backward.
// Formulas and tie rules: include/dropless/route.h. fp32 throughout. Other scores, selections and norms:
// route_general.cu.
//
// A warp per token; lane l holds experts l, l + 32, .... Sums over tokens go through per-CTA
// partial sums that one CTA adds in order: the result depends on the shapes only.
#include <cuda_runtime.h>

#include <string>
#include <type_traits>

#include "src/cuda/check.h"
#include "src/cuda/device/token_router.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/route_launch.h"

namespace dropless::cuda {
namespace {

constexpr int kWarps = kRouteWarps;
constexpr int kReduceThreads = 1024;

template <int kPerLane>
__global__ void __launch_bounds__(32 * kWarps, 1)
    route_kernel(const float* logits_TE, int pitch, std::int64_t tokens, int experts, int top_k,
                 bool normalize, float* weights_TK, int* indices_TK, float* p_sums_BE,
                 int* counts_BE, float* z_sums_B) {
  __shared__ float shared_p[kWarps][kPerLane * 32];
  __shared__ int shared_counts[kPerLane * 32];
  __shared__ float shared_z[kWarps];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < kPerLane * 32; i += blockDim.x) shared_counts[i] = 0;
  __syncthreads();
  float p_sum[kPerLane] = {};
  float z_sum = 0.0f;
  const std::int64_t first_token =
      static_cast<std::int64_t>(blockIdx.x) * kRouteTokensPerCta + warp * kRouteTokensPerWarp;
  const std::int64_t end = min(first_token + kRouteTokensPerWarp, tokens);
  float ahead[kPerLane] = {};  // the next token's logits
  const auto fetch = [&](std::int64_t token) {
    if (token >= end) return;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane + 32 * i < experts) ahead[i] = logits_TE[token * pitch + lane + 32 * i];
    }
  };
  fetch(first_token);
  for (std::int64_t token = first_token; token < end; ++token) {
    const TokenSoftmax<kPerLane> softmax([&](int expert) { return ahead[(expert - lane) / 32]; },
                                         experts, lane);
    fetch(token + 1);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) p_sum[j] += softmax.p[j];
    const float z = softmax.max + logf(softmax.sum);
    z_sum += z * z;

    ExpertChoice<kPerLane> choice(softmax.logit, experts, lane);
    float norm = 0.0f;
    for (int first = 0; first < top_k; first += 32) {
      const int count = min(32, top_k - first);
      const int expert = choice.next_round(count);
      const float s = softmax.of(expert);
      if (normalize) norm += warp_sum(lane < count ? s : 0.0f);
      if (lane < count) {
        weights_TK[token * top_k + first + lane] = s;
        indices_TK[token * top_k + first + lane] = expert;
        atomicAdd(&shared_counts[expert], 1);  // integers: the order cannot show
      }
    }
    if (normalize) {  // each lane its own
      for (int k = lane; k < top_k; k += 32) weights_TK[token * top_k + k] /= norm;
    }
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) shared_p[warp][lane + 32 * j] = p_sum[j];
  if (lane == 0) shared_z[warp] = z_sum;
  __syncthreads();
  for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += shared_p[w][expert];
    p_sums_BE[static_cast<std::int64_t>(blockIdx.x) * experts + expert] = sum;
    counts_BE[static_cast<std::int64_t>(blockIdx.x) * experts + expert] = shared_counts[expert];
  }
  if (threadIdx.x == 0) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += shared_z[w];
    z_sums_B[blockIdx.x] = sum;
  }
}

// Sums the CTAs' partial sums: thread (part, expert) adds a fixed range, then parts in order.
__global__ void __launch_bounds__(kReduceThreads)
    losses_kernel(const float* p_sums_BE, const int* counts_BE, const float* z_sums_B, int blocks,
                  std::int64_t tokens, int experts, int top_k, float* losses_2,
                  int* tokens_per_expert_E) {
  __shared__ float shared_p[kReduceThreads];
  __shared__ int shared_counts[kReduceThreads];
  const int parts = kReduceThreads / experts;
  const int part = threadIdx.x / experts;
  const int expert = threadIdx.x % experts;
  float p = 0.0f;
  int count = 0;
  if (part < parts) {
    const int range = (blocks + parts - 1) / parts;
    const int end = min(blocks, (part + 1) * range);
#pragma unroll 8
    for (int b = part * range; b < end; ++b) {
      p += p_sums_BE[static_cast<std::int64_t>(b) * experts + expert];
      count += counts_BE[static_cast<std::int64_t>(b) * experts + expert];
    }
  }
  shared_p[threadIdx.x] = p;
  shared_counts[threadIdx.x] = count;
  __syncthreads();
  float product = 0.0f;
  if (threadIdx.x < experts) {
    for (int i = 1; i < parts; ++i) {
      p += shared_p[i * experts + threadIdx.x];
      count += shared_counts[i * experts + threadIdx.x];
    }
    if (tokens_per_expert_E != nullptr) tokens_per_expert_E[threadIdx.x] = count;
    product = p * static_cast<float>(count);
  }
  float z = 0.0f;
  for (int b = threadIdx.x; b < blocks; b += kReduceThreads) z += z_sums_B[b];
  // Two trees over the threads, halving: a fixed order.
  __shared__ float shared_z[kReduceThreads];
  __syncthreads();
  shared_p[threadIdx.x] = product;
  shared_z[threadIdx.x] = z;
  __syncthreads();
  for (int half = kReduceThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      shared_p[threadIdx.x] += shared_p[threadIdx.x + half];
      shared_z[threadIdx.x] += shared_z[threadIdx.x + half];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0 && losses_2 != nullptr) {
    const auto t = static_cast<float>(tokens);
    losses_2[0] = tokens == 0 ? 0.0f : shared_p[0] * experts / (t * top_k) / t;
    losses_2[1] = tokens == 0 ? 0.0f : shared_z[0] / t;
  }
}

template <int kPerLane>
__global__ void __launch_bounds__(32 * kWarps, 1)
    route_backward_kernel(const float* logits_TE, int pitch, const int* indices_TK,
                          const int* tokens_per_expert_E, const float* d_weights_TK,
                          const float* d_losses_2, std::int64_t tokens, int experts, int top_k,
                          bool normalize, float* d_logits_TE) {
  const int lane = threadIdx.x % 32;
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (token >= tokens) return;
  const float* logits_E = logits_TE + token * pitch;
  const TokenSoftmax<kPerLane> softmax([&](int expert) { return logits_E[expert]; }, experts, lane);
  // A round of up to 32 choices: lane k has the k-th, and lanes behind the last have none.
  const auto round = [&](int first, auto action) {
    const int k = first + lane;
    const int expert = k < top_k ? indices_TK[token * top_k + k] : 0;
    action(k < top_k, expert, k < top_k ? d_weights_TK[token * top_k + k] : 0.0f);
  };
  // norm = sum_j s_j, inner = sum_j d_w_j w_j with w_j = s_j / norm: of one choice w is 1 and nothing is left of d_w.
  float norm = normalize ? 0.0f : 1.0f;
  float inner = 0.0f;
  for (int first = 0; normalize && first < top_k; first += 32) {
    round(first, [&](bool valid, int expert, float) {
      const float s = softmax.of(expert);  // by all lanes
      norm += warp_sum(valid ? s : 0.0f);
    });
  }
  for (int first = 0; normalize && first < top_k; first += 32) {
    round(first, [&](bool, int expert, float d_w) {
      inner += warp_sum(d_w * (softmax.of(expert) / norm));
    });
  }

  float d_p[kPerLane];
  const auto t = static_cast<float>(tokens);
  const float balance = d_losses_2 == nullptr ? 0.0f : d_losses_2[0] * experts / (t * top_k) / t;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int expert = lane + 32 * j;
    d_p[j] = balance != 0.0f && expert < experts ? balance * tokens_per_expert_E[expert] : 0.0f;
  }
  for (int first = 0; first < top_k; first += 32) {
    round(first, [&](bool, int own, float d_s) {
      if (normalize) d_s = (d_s - inner) / norm;
      for (int k = 0; k < min(32, top_k - first); ++k) {
        const int expert = __shfl_sync(0xffffffff, own, k);
        const float d = __shfl_sync(0xffffffff, d_s, k);
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) d_p[j] += expert == lane + 32 * j ? d : 0.0f;
      }
    });
  }
  float mean = 0.0f;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) mean += softmax.p[j] * d_p[j];
  mean = warp_sum(mean);
  const float z = softmax.max + logf(softmax.sum);
  const float d_z = d_losses_2 == nullptr ? 0.0f : d_losses_2[1] * 2.0f / t * z;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int expert = lane + 32 * j;
    if (expert < experts) {
      d_logits_TE[token * pitch + expert] = softmax.p[j] * (d_p[j] - mean + d_z);
    }
  }
}

// Calls launch with the number of experts a lane holds, as a constant.
template <class Launch>
void for_experts(std::int64_t experts, Launch launch) {
  const auto call = [&]<int kPerLane>() { launch(std::integral_constant<int, kPerLane>{}); };
  if (experts <= 32) return call.template operator()<1>();
  if (experts <= 64) return call.template operator()<2>();
  if (experts <= 128) return call.template operator()<4>();
  if (experts <= 256) return call.template operator()<8>();
  if (experts <= 512) return call.template operator()<16>();
  call.template operator()<32>();
}

void check_experts(std::int64_t experts) {
  if (experts <= kMaxExperts) return;
  throw Error(ErrorKind::kInvalidArgument, "route: " + std::to_string(experts) + " experts",
              "the CUDA router takes at most 1024", __FILE__, __LINE__);
}

}  // namespace

std::size_t route_workspace_bytes(std::int64_t num_tokens, std::int64_t num_experts) {
  return static_cast<std::size_t>(route_blocks(num_tokens) * (2 * num_experts + 1)) * 4;
}

void route_forward(const RouteConfig& config, const float* bias_E, const float* logits_TE,
                   std::int64_t pitch, std::int64_t num_tokens, std::int64_t num_experts,
                   std::int64_t top_k, float* weights_TK, std::int32_t* indices_TK, float* losses_2,
                   std::int32_t* tokens_per_expert_E, void* workspace, Stream stream) {
  check_experts(num_experts);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const auto blocks = static_cast<int>(route_blocks(num_tokens));
  const auto experts = static_cast<int>(num_experts);
  const auto k = static_cast<int>(top_k);
  auto* p_sums_BE = static_cast<float*>(workspace);
  auto* counts_BE = reinterpret_cast<int*>(p_sums_BE + static_cast<std::int64_t>(blocks) * experts);
  auto* z_sums_B =
      reinterpret_cast<float*>(counts_BE + static_cast<std::int64_t>(blocks) * experts);
  if (bias_E != nullptr || !plain_router(config)) {
    general_route_forward(config, bias_E, logits_TE, pitch, num_tokens, num_experts, top_k,
                          weights_TK, indices_TK, {p_sums_BE, counts_BE, z_sums_B}, stream);
  } else {
    for_experts(num_experts, [&](auto per_lane) {
      if (blocks == 0) return;
      route_kernel<per_lane.value><<<blocks, 32 * kWarps, 0, cuda_stream>>>(
          logits_TE, static_cast<int>(pitch), num_tokens, experts, k, config.normalize_p == 1,
          weights_TK, indices_TK, p_sums_BE, counts_BE, z_sums_B);
    });
  }
  if (losses_2 != nullptr || tokens_per_expert_E != nullptr) {
    losses_kernel<<<1, kReduceThreads, 0, cuda_stream>>>(p_sums_BE, counts_BE, z_sums_B, blocks,
                                                         num_tokens, experts, k, losses_2,
                                                         tokens_per_expert_E);
  }
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

void route_backward(const RouteConfig& config, const float* logits_TE, std::int64_t pitch,
                    std::int64_t num_tokens, std::int64_t num_experts, std::int64_t top_k,
                    const std::int32_t* indices_TK, const std::int32_t* tokens_per_expert_E,
                    const float* d_weights_TK, const float* d_losses_2, float* d_logits_TE,
                    Stream stream) {
  check_experts(num_experts);
  if (num_tokens == 0) return;
  if (!plain_router(config)) {
    return general_route_backward(config, logits_TE, pitch, num_tokens, num_experts, top_k,
                                  indices_TK, tokens_per_expert_E, d_weights_TK, d_losses_2,
                                  d_logits_TE, stream);
  }
  const auto blocks = static_cast<unsigned>((num_tokens + kWarps - 1) / kWarps);
  for_experts(num_experts, [&](auto per_lane) {
    route_backward_kernel<per_lane.value>
        <<<blocks, 32 * kWarps, 0, static_cast<cudaStream_t>(stream)>>>(
            logits_TE, static_cast<int>(pitch), indices_TK, tokens_per_expert_E, d_weights_TK,
            d_losses_2, num_tokens, static_cast<int>(num_experts), static_cast<int>(top_k),
            config.normalize_p == 1, d_logits_TE);
  });
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
