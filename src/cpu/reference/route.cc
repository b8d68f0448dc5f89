// Router, plain loops. The contract is include/dropless/route.h.
//
//   lse_t = max_e z + log sum_e exp(z_e - max)
//   s_e = exp(z_e - lse_t)  or  1 / (1 + exp(-z_e)),    p_e = s_e / sum_j s_j
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "src/common/dispatch.h"
#include "src/common/philox.h"
#include "src/cpu/kernels.h"

namespace dropless::cpu::reference {
namespace {

template <class A>
A divisor(A x) {
  return x < A(kRouteTiny) ? A(1) : x;
}

template <class A>
A log_sum_exp(const A* z_E, std::int64_t experts) {
  A max = z_E[0];
  for (std::int64_t e = 1; e < experts; ++e) max = std::max(max, z_E[e]);
  A sum = 0;
  for (std::int64_t e = 0; e < experts; ++e) sum += std::exp(z_E[e] - max);
  return max + std::log(sum);
}

// One token: scores, and what divides them to p.
template <class A>
struct Scores {
  A lse, sum;
  std::vector<A> s_E;

  Scores(RouteScore score, const A* z_E, std::int64_t experts)
      : lse(log_sum_exp(z_E, experts)), sum(1), s_E(experts) {
    for (std::int64_t e = 0; e < experts; ++e) {
      s_E[e] = score == RouteScore::kSoftmax ? std::exp(z_E[e] - lse) : 1 / (1 + std::exp(-z_E[e]));
    }
    if (score == RouteScore::kSigmoid) sum = divisor(std::accumulate(s_E.begin(), s_E.end(), A(0)));
  }
};

using Indices = std::vector<std::int32_t>;

Indices range(std::int64_t begin, std::int64_t end) {
  Indices indices(end - begin);
  std::iota(indices.begin(), indices.end(), static_cast<std::int32_t>(begin));
  return indices;
}

// The `count` largest of the candidates in order; of equal ones the earliest candidate first. NaN
// compares false, so candidates that are all NaN are taken as they come: always distinct ones.
template <class A>
Indices largest(const A* values, Indices candidates, std::int64_t count) {
  Indices chosen;
  for (std::int64_t k = 0; k < count; ++k) {
    auto best = candidates.begin();
    for (auto c = candidates.begin(); c != candidates.end(); ++c) {
      if (values[*c] > values[*best]) best = c;
    }
    chosen.push_back(*best);
    candidates.erase(best);
  }
  return chosen;
}

// The experts of the best groups, in ascending order.
template <class A>
Indices eligible_experts(const RouteConfig& config, const A* choice_E, std::int64_t experts) {
  const std::int64_t groups = config.num_groups, size = experts / groups;
  std::vector<A> value_G(groups, A(0));
  for (std::int64_t g = 0; g < groups; ++g) {
    const Indices members = range(g * size, (g + 1) * size);
    for (std::int32_t e : largest(choice_E, members, std::min<std::int64_t>(2, size))) {
      value_G[g] += choice_E[e];
    }
  }
  Indices best = largest(value_G.data(), range(0, groups), config.group_top_k);
  std::sort(best.begin(), best.end());
  Indices eligible;
  for (std::int32_t g : best) {
    for (std::int32_t e : range(g * size, (g + 1) * size)) eligible.push_back(e);
  }
  return eligible;
}

template <class A>
void select_top_k(const RouteForwardArgs& args, const A* z_E, const std::vector<A>& s_E,
                  std::int32_t* indices_K) {
  const A* bias_E = static_cast<const A*>(args.bias_E);
  const bool limited = args.config.group_top_k < args.config.num_groups;
  std::vector<A> choice_E(z_E, z_E + args.experts);
  if (bias_E != nullptr || limited) {
    for (std::int64_t e = 0; e < args.experts; ++e) {
      choice_E[e] = s_E[e] + (bias_E == nullptr ? A(0) : bias_E[e]);
    }
  }
  const Indices eligible = limited ? eligible_experts(args.config, choice_E.data(), args.experts)
                                   : range(0, args.experts);
  const Indices chosen = largest(choice_E.data(), eligible, args.top_k);
  std::copy(chosen.begin(), chosen.end(), indices_K);
}

// (sum_k s_k^q)^(1/q) = m (sum_k (s_k / m)^q)^(1/q) with m = max_k s_k, so that no power
// underflows; 1 for q = 0.
template <class A>
A q_norm(const A* s_K, std::int64_t top_k, double q) {
  if (q == 0) return 1;
  if (std::accumulate(s_K, s_K + top_k, A(0)) < A(kRouteTiny)) return 1;
  const A max = *std::max_element(s_K, s_K + top_k);
  A sum = 0;
  for (std::int64_t k = 0; k < top_k; ++k) sum += std::pow(s_K[k] / max, static_cast<A>(q));
  return max * std::pow(sum, static_cast<A>(1 / q));
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
    const Scores<A> scores(args.config.score, z_E, E);
    for (std::int64_t e = 0; e < E; ++e) sum_p_E[e] += scores.s_E[e] / scores.sum;
    sum_lse2 += scores.lse * scores.lse;

    switch (args.config.selection) {
      case RouteSelection::kTopK:
        select_top_k(args, z_E, scores.s_E, indices_K);
        break;
      case RouteSelection::kUniform:
        for (std::int64_t k = 0; k < K; ++k) {
          indices_K[k] = static_cast<std::int32_t>((t * K + k) % E);
        }
        break;
      case RouteSelection::kGiven:
        break;
    }
    for (std::int64_t k = 0; k < K; ++k) {
      weights_K[k] = scores.s_E[indices_K[k]];
      args.tokens_per_expert_E[indices_K[k]] += 1;
    }
    const A norm = q_norm(weights_K, K, args.config.normalize_p);
    for (std::int64_t k = 0; k < K; ++k) {
      weights_K[k] = weights_K[k] / norm * static_cast<A>(args.config.scaling_factor);
    }
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
  const A q = static_cast<A>(args.config.normalize_p);
  const A factor = static_cast<A>(args.config.scaling_factor);
  const A* d_losses_2 = static_cast<const A*>(args.d_losses_2);
  std::vector<A> d_p_E(E), d_s_E(E), s_K(K);
  for (std::int64_t t = 0; t < T; ++t) {
    const A* z_E = static_cast<const A*>(args.logits_TE) + t * E;
    const A* d_w_K = static_cast<const A*>(args.d_weights_TK) + t * K;
    const std::int32_t* indices_K = args.indices_TK + t * K;
    A* d_z_E = static_cast<A*>(args.d_logits_TE) + t * E;
    const Scores<A> scores(args.config.score, z_E, E);
    const std::vector<A>& s_E = scores.s_E;
    for (std::int64_t k = 0; k < K; ++k) s_K[k] = s_E[indices_K[k]];

    // The balance loss reaches the score of every expert, through p = s / sum s.
    for (std::int64_t e = 0; e < E; ++e) {
      d_p_E[e] = d_losses_2 == nullptr
                     ? A(0)
                     : d_losses_2[0] * static_cast<A>(E) / static_cast<A>(T * K) *
                           static_cast<A>(args.tokens_per_expert_E[e]) / static_cast<A>(T);
    }
    A mean = 0;  // sum_e p_e d_p_e; softmax has it in its own derivative below
    if (args.config.score == RouteScore::kSigmoid) {
      for (std::int64_t e = 0; e < E; ++e) mean += s_E[e] / scores.sum * d_p_E[e];
    }
    for (std::int64_t e = 0; e < E; ++e) d_s_E[e] = (d_p_E[e] - mean) / scores.sum;

    // The weights reach the scores of the selected experts.
    const A norm = q_norm(s_K.data(), K, args.config.normalize_p);
    A dot = 0;  // sum_j d_w_j v_j
    for (std::int64_t k = 0; k < K; ++k) dot += d_w_K[k] * (s_K[k] / norm);
    for (std::int64_t k = 0; k < K; ++k) {
      const A v = s_K[k] / norm;
      // A weight that underflowed to 0 has no slope worth an infinity (q < 1).
      const A slope = q == 0 || v == 0 ? A(0) : std::pow(v, q - 1) * dot;
      d_s_E[indices_K[k]] += factor * (d_w_K[k] - slope) / norm;
    }

    const A d_lse = d_losses_2 == nullptr ? A(0) : d_losses_2[1] * 2 / static_cast<A>(T);
    A through_sum = 0;  // softmax: sum_e s_e d_s_e
    if (args.config.score == RouteScore::kSoftmax) {
      for (std::int64_t e = 0; e < E; ++e) through_sum += s_E[e] * d_s_E[e];
    }
    for (std::int64_t e = 0; e < E; ++e) {
      const A slope = args.config.score == RouteScore::kSoftmax
                          ? s_E[e] * (d_s_E[e] - through_sum)
                          : s_E[e] * (1 / (1 + std::exp(z_E[e]))) * d_s_E[e];
      d_z_E[e] = slope + d_lse * scores.lse * std::exp(z_E[e] - scores.lse);
    }
  }
}

// out_i = x_i (1 + epsilon (2 u_i - 1)), u_i from word i mod 4 at position i / 4.
template <class S>
void jitter(const RouteJitterArgs& args) {
  using A = Accumulator<S>;
  for (std::int64_t i = 0; i < args.size; ++i) {
    const double noise =
        symmetric_unit(philox(static_cast<std::uint64_t>(i / 4), args.stream, args.seed)[i % 4]);
    const A factor = static_cast<A>(1 + args.epsilon * noise);
    static_cast<S*>(args.out)[i] =
        from_float<S>(to_float(static_cast<const S*>(args.x)[i]) * factor);
  }
}

}  // namespace

void route_forward(const RouteForwardArgs& args) {
  args.dtype == DType::kFloat64 ? forward<double>(args) : forward<float>(args);
}

void route_backward(const RouteBackwardArgs& args) {
  args.dtype == DType::kFloat64 ? backward<double>(args) : backward<float>(args);
}

void route_jitter(const RouteJitterArgs& args) {
  visit_floating(args.dtype, [&](auto zero) { jitter<decltype(zero)>(args); });
}

}  // namespace dropless::cpu::reference
