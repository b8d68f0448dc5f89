// What the plain router (route.cu) and the general one (route_general.cu) share; dispatch.cu takes as many experts.
#pragma once

#include <cstdint>

#include "dropless/backend.h"
#include "dropless/route.h"

namespace dropless::cuda {

// A warp a token, kRouteTokensPerWarp of them in turn.
inline constexpr int kRouteWarps = 8;
inline constexpr int kRouteTokensPerWarp = 8;
inline constexpr int kRouteTokensPerCta = kRouteWarps * kRouteTokensPerWarp;
inline constexpr int kMaxExperts = 1024;

inline std::int64_t route_blocks(std::int64_t tokens) {
  return (tokens + kRouteTokensPerCta - 1) / kRouteTokensPerCta;
}

// Of each CTA: sums of p over its tokens, how often each expert was chosen, sums of lse^2.
struct RoutePartials {
  float* p_sums_BE;
  std::int32_t* counts_BE;
  float* z_sums_B;
};

// Any RouteConfig; bias_E may be null. As route_forward and route_backward of kernels.h.
void general_route_forward(const RouteConfig& config, const float* bias_E, const float* logits_TE,
                           std::int64_t pitch, std::int64_t num_tokens, std::int64_t num_experts,
                           std::int64_t top_k, float* weights_TK, std::int32_t* indices_TK,
                           const RoutePartials& partials, Stream stream);
void general_route_backward(const RouteConfig& config, const float* logits_TE, std::int64_t pitch,
                            std::int64_t num_tokens, std::int64_t num_experts, std::int64_t top_k,
                            const std::int32_t* indices_TK, const std::int32_t* tokens_per_expert_E,
                            const float* d_weights_TK, const float* d_losses_2, float* d_logits_TE,
                            Stream stream);

}  // namespace dropless::cuda
