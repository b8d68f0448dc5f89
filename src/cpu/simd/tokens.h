// Loops over tokens: the router's rows, and weighted sums of routed rows. The math is in
// src/cpu/reference/route.cc and permute.cc.
#pragma once

#include "src/cpu/simd/elementwise.h"
#include "src/cpu/simd/table.h"
#include "src/cpu/simd/vec.h"

namespace dropless::cpu {
namespace {

[[gnu::always_inline]] inline float log_of(float x) { return __builtin_logf(x); }
[[gnu::always_inline]] inline double log_of(double x) { return __builtin_log(x); }
[[gnu::always_inline]] inline float pow_of(float x, float y) { return __builtin_powf(x, y); }
[[gnu::always_inline]] inline double pow_of(double x, double y) { return __builtin_pow(x, y); }

template <class A>
A max_of(const A* z_E, std::int64_t experts) {
  A max = z_E[0];
#pragma omp simd reduction(max : max)
  for (std::int64_t e = 0; e < experts; ++e) max = z_E[e] > max ? z_E[e] : max;
  return max;
}

// exp_E = exp(z - max); returns their sum.
template <class A>
A exponentials(const A* z_E, std::int64_t experts, A max, A* exp_E) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t e = 0; e < experts; ++e) {
    exp_E[e] = exp_of(z_E[e] - max);
    sum += exp_E[e];
  }
  return sum;
}

// The sum of exp(z - max).
template <class A>
A exponential_sum(const A* z_E, std::int64_t experts, A max) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t e = 0; e < experts; ++e) sum += exp_of(z_E[e] - max);
  return sum;
}

// s_E = sigmoid(z); returns their sum.
template <class A>
A sigmoids(const A* z_E, std::int64_t experts, A* s_E) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t e = 0; e < experts; ++e) {
    s_E[e] = sigmoid(z_E[e]);
    sum += s_E[e];
  }
  return sum;
}

template <class A>
A divisor(A x) {
  return x < A(kRouteTiny) ? A(1) : x;
}

// One pass over [begin, end) that keeps the K best so far in order, `count` of them from earlier
// ranges; a later equal value never displaces an earlier one. Returns the new count.
template <class A>
std::int64_t select_largest(const A* values, std::int64_t begin, std::int64_t end,
                            std::int64_t top_k, std::int64_t count, std::int32_t* indices_K) {
  for (std::int64_t e = begin; e < end; ++e) {
    if (count == top_k && !(values[e] > values[indices_K[top_k - 1]])) continue;
    std::int64_t at = count < top_k ? count++ : top_k - 1;
    for (; at > 0 && values[e] > values[indices_K[at - 1]]; --at) indices_K[at] = indices_K[at - 1];
    indices_K[at] = static_cast<std::int32_t>(e);
  }
  return count;
}

// marks_G[g] becomes 1 for the best groups and 0 for the others.
template <class A>
void mark_best_groups(const RouteConfig& config, const A* choice_E, std::int64_t size, A* value_G,
                      std::int32_t* order_G, std::int32_t* marks_G) {
  const std::int64_t groups = config.num_groups;
  for (std::int64_t g = 0; g < groups; ++g) {
    std::int32_t best[2];
    const std::int64_t count =
        select_largest(choice_E, g * size, (g + 1) * size, size < 2 ? size : 2, 0, best);
    value_G[g] = choice_E[best[0]] + (count == 2 ? choice_E[best[1]] : A(0));
    marks_G[g] = 0;
  }
  select_largest(value_G, 0, groups, config.group_top_k, 0, order_G);
  for (std::int64_t k = 0; k < config.group_top_k; ++k) marks_G[order_G[k]] = 1;
}

// `scores_E` times `unit` are the scores.
template <class A>
void select_top_k(const RouteForwardArgs& args, const A* z_E, const A* scores_E, A unit,
                  const RouteChunk& chunk, std::int32_t* indices_K) {
  const std::int64_t E = args.experts, K = args.top_k;
  const bool limited = args.config.group_top_k < args.config.num_groups;
  const A* bias_E = static_cast<const A*>(args.bias_E);
  A* sum_E = static_cast<A*>(chunk.choice_E);
  const A* choice_E = z_E;
  if (bias_E != nullptr || limited) {
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) {
      sum_E[e] = scores_E[e] * unit + (bias_E == nullptr ? A(0) : bias_E[e]);
    }
    choice_E = sum_E;
  }
  if (!limited) {
    select_largest(choice_E, 0, E, K, 0, indices_K);
    return;
  }
  const std::int64_t groups = args.config.num_groups, size = E / groups;
  mark_best_groups(args.config, choice_E, size, static_cast<A*>(chunk.values_E), chunk.order_E,
                   chunk.marks_E);
  std::int64_t count = 0;
  for (std::int64_t g = 0; g < groups; ++g) {
    if (chunk.marks_E[g] == 0) continue;
    count = select_largest(choice_E, g * size, (g + 1) * size, K, count, indices_K);
  }
}

// (sum_k s(k)^q)^(1/q), powers taken relative to the largest so that none underflows; 1 for q = 0.
template <class A, class Score>
A q_norm(Score&& s, std::int64_t top_k, A q) {
  if (q == 0) return 1;
  A sum = 0, max = 0;
  if (q == 1) {
    for (std::int64_t k = 0; k < top_k; ++k) sum += s(k);
    return divisor(sum);
  }
  for (std::int64_t k = 0; k < top_k; ++k) {
    max = s(k) > max ? s(k) : max;
    sum += s(k);
  }
  if (sum < A(kRouteTiny)) return 1;
  sum = 0;
  for (std::int64_t k = 0; k < top_k; ++k) sum += pow_of(s(k) / max, q);
  return max * pow_of(sum, 1 / q);
}

template <class A, RouteScore score>
void route_forward_typed(const RouteForwardArgs& args, std::int64_t begin, std::int64_t end,
                         const RouteChunk& chunk) {
  const std::int64_t E = args.experts, K = args.top_k;
  A* sums_E1 = static_cast<A*>(chunk.sums_E1);
  A* scores_E = static_cast<A*>(chunk.scores_E);  // times `unit`; times `scale` they are p
  constexpr bool softmax = score == RouteScore::kSoftmax;
  const bool losses = args.losses_2 != nullptr;
  const A factor = static_cast<A>(args.config.scaling_factor);
  for (std::int64_t t = begin; t < end; ++t) {
    const A* z_E = static_cast<const A*>(args.logits_TE) + t * E;
    A* weights_K = static_cast<A*>(args.weights_TK) + t * K;
    std::int32_t* indices_K = args.indices_TK + t * K;
    const A max = max_of(z_E, E);
    const A total = softmax ? exponentials(z_E, E, max, scores_E) : sigmoids(z_E, E, scores_E);
    const A scale = 1 / divisor(total), unit = softmax ? scale : A(1);
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) sums_E1[e] += scores_E[e] * scale;
    if (losses) {
      const A lse = max + log_of(softmax ? total : exponential_sum(z_E, E, max));
      sums_E1[E] += lse * lse;
    }

    if (args.config.selection == RouteSelection::kTopK) {
      select_top_k(args, z_E, scores_E, unit, chunk, indices_K);
    } else if (args.config.selection == RouteSelection::kUniform) {
      for (std::int64_t k = 0; k < K; ++k) {
        indices_K[k] = static_cast<std::int32_t>((t * K + k) % E);
      }
    }
    for (std::int64_t k = 0; k < K; ++k) {
      weights_K[k] = scores_E[indices_K[k]] * unit;
      chunk.counts_E[indices_K[k]] += 1;
    }
    const A norm = q_norm([&](std::int64_t k) { return weights_K[k]; }, K,
                          static_cast<A>(args.config.normalize_p));
    for (std::int64_t k = 0; k < K; ++k) weights_K[k] = weights_K[k] / norm * factor;
  }
}

void route_forward_tokens(const RouteForwardArgs& args, std::int64_t begin, std::int64_t end,
                          const RouteChunk& chunk) {
  const bool softmax = args.config.score == RouteScore::kSoftmax;
  if (args.dtype == DType::kFloat64) {
    softmax ? route_forward_typed<double, RouteScore::kSoftmax>(args, begin, end, chunk)
            : route_forward_typed<double, RouteScore::kSigmoid>(args, begin, end, chunk);
  } else {
    softmax ? route_forward_typed<float, RouteScore::kSoftmax>(args, begin, end, chunk)
            : route_forward_typed<float, RouteScore::kSigmoid>(args, begin, end, chunk);
  }
}

template <class A, RouteScore score>
void route_backward_typed(const RouteBackwardArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t E = args.experts, K = args.top_k;
  const A q = static_cast<A>(args.config.normalize_p), T = static_cast<A>(args.tokens);
  const A factor = static_cast<A>(args.config.scaling_factor);
  constexpr bool softmax = score == RouteScore::kSoftmax;
  const A* d_losses_2 = static_cast<const A*>(args.d_losses_2);
  const bool losses = d_losses_2 != nullptr;
  // d_p of the balance loss is per_count * (tokens of the expert).
  const A per_count =
      losses ? d_losses_2[0] * static_cast<A>(E) / (T * static_cast<A>(K)) / T : A(0);
  const auto d_p_balance = [&](std::int64_t e) {
    return losses ? per_count * static_cast<A>(args.tokens_per_expert_E[e]) : A(0);
  };
  for (std::int64_t t = begin; t < end; ++t) {
    const A* z_E = static_cast<const A*>(args.logits_TE) + t * E;
    const A* d_w_K = static_cast<const A*>(args.d_weights_TK) + t * K;
    const std::int32_t* indices_K = args.indices_TK + t * K;
    A* d_z_E = static_cast<A*>(args.d_logits_TE) + t * E;
    const A max = max_of(z_E, E);
    // Until the last loops d_z_E holds what times `scale` is p.
    const A total = softmax ? exponentials(z_E, E, max, d_z_E) : sigmoids(z_E, E, d_z_E);
    const A scale = 1 / divisor(total);
    const auto score_of = [&](std::int64_t k) {
      const A z = z_E[indices_K[k]];
      return softmax ? exp_of(z - max) * scale : sigmoid(z);
    };

    const A norm = q_norm(score_of, K, q);
    A dot = 0;
    for (std::int64_t k = 0; k < K; ++k) dot += d_w_K[k] * (score_of(k) / norm);
    const auto d_score_of = [&](std::int64_t k) {
      const A v = score_of(k) / norm;
      const A power = q == 1 ? A(1) : pow_of(v, q - 1);
      return factor * (d_w_K[k] - (q == 0 || v == 0 ? A(0) : power * dot)) / norm;
    };
    A mean = 0;
    if (losses) {
#pragma omp simd reduction(+ : mean)
      for (std::int64_t e = 0; e < E; ++e) mean += d_z_E[e] * scale * d_p_balance(e);
    }

    if (softmax) {
      for (std::int64_t k = 0; k < K; ++k) mean += score_of(k) * d_score_of(k);
      const A lse = max + log_of(total);
      const A d_lse = losses ? d_losses_2[1] * 2 / T * lse : A(0);
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) d_z_E[e] *= scale * (d_p_balance(e) - mean + d_lse);
      for (std::int64_t k = 0; k < K; ++k) d_z_E[indices_K[k]] += score_of(k) * d_score_of(k);
      continue;
    }
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) {
      d_z_E[e] *= sigmoid(-z_E[e]) * scale * (d_p_balance(e) - mean);
    }
    if (losses) {
      const A lse = max + log_of(exponential_sum(z_E, E, max));
      const A d_lse = d_losses_2[1] * 2 / T * lse;
#pragma omp simd
      for (std::int64_t e = 0; e < E; ++e) d_z_E[e] += d_lse * exp_of(z_E[e] - lse);
    }
    for (std::int64_t k = 0; k < K; ++k) {
      d_z_E[indices_K[k]] += score_of(k) * sigmoid(-z_E[indices_K[k]]) * d_score_of(k);
    }
  }
}

void route_backward_tokens(const RouteBackwardArgs& args, std::int64_t begin, std::int64_t end) {
  const bool softmax = args.config.score == RouteScore::kSoftmax;
  if (args.dtype == DType::kFloat64) {
    softmax ? route_backward_typed<double, RouteScore::kSoftmax>(args, begin, end)
            : route_backward_typed<double, RouteScore::kSigmoid>(args, begin, end);
  } else {
    softmax ? route_backward_typed<float, RouteScore::kSoftmax>(args, begin, end)
            : route_backward_typed<float, RouteScore::kSigmoid>(args, begin, end);
  }
}

// visitor(zero of the storage type)
template <class Visitor>
void visit_dtype(DType dtype, Visitor&& visitor) {
  switch (dtype) {
    case DType::kFloat64:
      return visitor(double{});
    case DType::kBFloat16:
      return visitor(BFloat16{});
    case DType::kFloat16:
      return visitor(Float16{});
    default:
      return visitor(float{});
  }
}

void combine_tokens(const CombineArgs& args, std::int64_t begin, std::int64_t end) {
  visit_dtype(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Accumulator<S>;
    constexpr std::int64_t kStrip = 256;  // sums stay in the first-level cache
    const std::int64_t K = args.top_k, D = args.width;
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t first = 0; first < D; first += kStrip) {
        const std::int64_t n = D - first < kStrip ? D - first : kStrip;
        A sum[kStrip] = {};
        for (std::int64_t k = 0; k < K; ++k) {
          if (args.rows_TK[t * K + k] < 0) continue;
          const A weight =
              args.weights_TK == nullptr ? A(1) : static_cast<const A*>(args.weights_TK)[t * K + k];
          const S* y = static_cast<const S*>(args.y_RD) + args.rows_TK[t * K + k] * D + first;
#pragma omp simd
          for (std::int64_t d = 0; d < n; ++d) sum[d] += weight * to_float(y[d]);
        }
        if (args.base_TD != nullptr) {
          const A base_scale = static_cast<A>(args.base_scale);
          const A* base = static_cast<const A*>(args.base_TD) + t * D + first;
#pragma omp simd
          for (std::int64_t d = 0; d < n; ++d) sum[d] += base_scale * base[d];
        }
        S* out = static_cast<S*>(args.out_TD) + t * D + first;
#pragma omp simd
        for (std::int64_t d = 0; d < n; ++d) out[d] = from_float<S>(sum[d]);
      }
    }
  });
}

void combine_backward_tokens(const CombineBackwardArgs& args, std::int64_t begin,
                             std::int64_t end) {
  visit_dtype(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Accumulator<S>;
    const std::int64_t K = args.top_k, D = args.width;
    for (std::int64_t i = begin * K; i < end * K; ++i) {
      if (args.rows_TK[i] < 0) {
        static_cast<A*>(args.d_weights_TK)[i] = 0;
        continue;
      }
      const A weight = static_cast<const A*>(args.weights_TK)[i];
      const S* d_out = static_cast<const S*>(args.d_out_TD) + i / K * D;
      const S* y = static_cast<const S*>(args.y_RD) + args.rows_TK[i] * D;
      S* d_y = static_cast<S*>(args.d_y_RD) + args.rows_TK[i] * D;
      A dot = 0;
#pragma omp simd reduction(+ : dot)
      for (std::int64_t d = 0; d < D; ++d) {
        const A g = to_float(d_out[d]);
        dot += to_float(y[d]) * g;
        d_y[d] = from_float<S>(weight * g);
      }
      static_cast<A*>(args.d_weights_TK)[i] = dot;
    }
  });
}

}  // namespace
}  // namespace dropless::cpu
