// Router, plain loops. The contract is include/dropless/route.h.
//
//   lse_t = max_e z + log sum_e exp(z_e - max)         p_e = exp(z_e - lse_t)
#include <algorithm>
#include <cmath>
#include <vector>

#include "src/common/dispatch.h"
#include "src/cpu/kernels.h"

namespace dropless::cpu::reference {
namespace {

template <class A>
A log_sum_exp(const A* z_E, std::int64_t experts) {
  A max = z_E[0];
  for (std::int64_t e = 1; e < experts; ++e) max = std::max(max, z_E[e]);
  A sum = 0;
  for (std::int64_t e = 0; e < experts; ++e) sum += std::exp(z_E[e] - max);
  return max + std::log(sum);
}

// The K largest in order; of equal ones the lowest index first. NaN compares false, so a row of NaN
// yields 0..K-1: always K distinct valid experts.
template <class A>
void select_top_k(const A* z_E, std::int64_t experts, std::int64_t top_k, std::int32_t* indices_K) {
  for (std::int64_t k = 0; k < top_k; ++k) {
    std::int64_t best = -1;
    for (std::int64_t e = 0; e < experts; ++e) {
      const bool taken = std::find(indices_K, indices_K + k, e) != indices_K + k;
      if (!taken && (best < 0 || z_E[e] > z_E[best])) best = e;
    }
    indices_K[k] = static_cast<std::int32_t>(best);
  }
}

// (sum_k s_k^q)^(1/q); 1 for q = 0.
template <class A>
A q_norm(const A* s_K, std::int64_t top_k, double q) {
  if (q == 0) return 1;
  A sum = 0;
  for (std::int64_t k = 0; k < top_k; ++k) sum += std::pow(s_K[k], static_cast<A>(q));
  return std::pow(sum, static_cast<A>(1 / q));
}

template <class A>
void forward(const RouteForwardArgs& args) {
  const std::int64_t T = args.tokens, E = args.experts, K = args.top_k;
  const A* logits_TE = static_cast<const A*>(args.logits_TE);
  A* weights_TK = static_cast<A*>(args.weights_TK);
  A* sum_p_E = static_cast<A*>(args.partials);
  std::fill_n(sum_p_E, E, A(0));
  std::fill_n(args.tokens_per_expert_E, E, 0);
  A sum_lse2 = 0;
  for (std::int64_t t = 0; t < T; ++t) {
    const A* z_E = logits_TE + t * E;
    std::int32_t* indices_K = args.indices_TK + t * K;
    A* weights_K = weights_TK + t * K;
    const A lse = log_sum_exp(z_E, E);
    for (std::int64_t e = 0; e < E; ++e) sum_p_E[e] += std::exp(z_E[e] - lse);
    sum_lse2 += lse * lse;

    select_top_k(z_E, E, K, indices_K);
    for (std::int64_t k = 0; k < K; ++k) {
      weights_K[k] = std::exp(z_E[indices_K[k]] - lse);
      args.tokens_per_expert_E[indices_K[k]] += 1;
    }
    const A norm = q_norm(weights_K, K, args.normalize_p);
    for (std::int64_t k = 0; k < K; ++k) weights_K[k] /= norm;
  }
  if (args.losses_2 == nullptr) return;
  A* losses_2 = static_cast<A*>(args.losses_2);
  losses_2[0] = losses_2[1] = 0;
  if (T == 0) return;
  for (std::int64_t e = 0; e < E; ++e) {
    losses_2[0] += static_cast<A>(args.tokens_per_expert_E[e]) * (sum_p_E[e] / static_cast<A>(T));
  }
  losses_2[0] *= static_cast<A>(E) / static_cast<A>(T * K);
  losses_2[1] = sum_lse2 / static_cast<A>(T);
}

template <class A>
void backward(const RouteBackwardArgs& args) {
  const std::int64_t T = args.tokens, E = args.experts, K = args.top_k;
  const A q = static_cast<A>(args.normalize_p);
  const A* d_losses_2 = static_cast<const A*>(args.d_losses_2);
  std::vector<A> p_E(E), d_p_E(E), s_K(K);
  for (std::int64_t t = 0; t < T; ++t) {
    const A* z_E = static_cast<const A*>(args.logits_TE) + t * E;
    const A* d_w_K = static_cast<const A*>(args.d_weights_TK) + t * K;
    const std::int32_t* indices_K = args.indices_TK + t * K;
    A* d_z_E = static_cast<A*>(args.d_logits_TE) + t * E;
    const A lse = log_sum_exp(z_E, E);
    for (std::int64_t e = 0; e < E; ++e) p_E[e] = std::exp(z_E[e] - lse);
    for (std::int64_t k = 0; k < K; ++k) s_K[k] = p_E[indices_K[k]];

    // d loss / d p: the balance loss reaches every expert, the weights the selected ones.
    for (std::int64_t e = 0; e < E; ++e) {
      d_p_E[e] = d_losses_2 == nullptr
                     ? A(0)
                     : d_losses_2[0] * static_cast<A>(E) / static_cast<A>(T * K) *
                           static_cast<A>(args.tokens_per_expert_E[e]) / static_cast<A>(T);
    }
    const A norm = q_norm(s_K.data(), K, args.normalize_p);
    A dot = 0;  // sum_j d_w_j w_j
    for (std::int64_t k = 0; k < K; ++k) dot += d_w_K[k] * (s_K[k] / norm);
    for (std::int64_t k = 0; k < K; ++k) {
      const A w = s_K[k] / norm;
      // A weight that underflowed to 0 has no slope worth an infinity (q < 1).
      const A slope = q == 0 || w == 0 ? A(0) : std::pow(w, q - 1) * dot;
      d_p_E[indices_K[k]] += (d_w_K[k] - slope) / norm;
    }

    A mean = 0;  // sum_e p_e d_p_e
    for (std::int64_t e = 0; e < E; ++e) mean += p_E[e] * d_p_E[e];
    const A d_lse = d_losses_2 == nullptr ? A(0) : d_losses_2[1] * 2 / static_cast<A>(T) * lse;
    for (std::int64_t e = 0; e < E; ++e) d_z_E[e] = p_E[e] * (d_p_E[e] - mean + d_lse);
  }
}

}  // namespace

void route_forward(const RouteForwardArgs& args) {
  args.dtype == DType::kFloat64 ? forward<double>(args) : forward<float>(args);
}

void route_backward(const RouteBackwardArgs& args) {
  args.dtype == DType::kFloat64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace dropless::cpu::reference
