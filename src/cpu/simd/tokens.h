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

// One pass that keeps the K best so far in order; a later equal value never displaces an earlier
// one.
template <class A>
void select_top_k(const A* z_E, std::int64_t experts, std::int64_t top_k, std::int32_t* indices_K) {
  std::int64_t count = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    if (count == top_k && !(z_E[e] > z_E[indices_K[top_k - 1]])) continue;
    std::int64_t at = count < top_k ? count++ : top_k - 1;
    for (; at > 0 && z_E[e] > z_E[indices_K[at - 1]]; --at) indices_K[at] = indices_K[at - 1];
    indices_K[at] = static_cast<std::int32_t>(e);
  }
}

template <class A>
A q_norm(const A* s_K, std::int64_t top_k, A q) {
  if (q == 0) return 1;
  A sum = 0;
  for (std::int64_t k = 0; k < top_k; ++k) sum += q == 1 ? s_K[k] : pow_of(s_K[k], q);
  return q == 1 ? sum : pow_of(sum, 1 / q);
}

template <class A>
void route_forward_typed(const RouteForwardArgs& args, std::int64_t begin, std::int64_t end,
                         A* sums, A* exp_E, std::int32_t* counts_E) {
  const std::int64_t E = args.experts, K = args.top_k;
  for (std::int64_t t = begin; t < end; ++t) {
    const A* z_E = static_cast<const A*>(args.logits_TE) + t * E;
    A* weights_K = static_cast<A*>(args.weights_TK) + t * K;
    std::int32_t* indices_K = args.indices_TK + t * K;
    const A max = max_of(z_E, E);
    const A total = exponentials(z_E, E, max, exp_E);
    const A scale = 1 / total;
#pragma omp simd
    for (std::int64_t e = 0; e < E; ++e) sums[e] += exp_E[e] * scale;
    const A lse = max + log_of(total);
    sums[E] += lse * lse;

    select_top_k(z_E, E, K, indices_K);
    for (std::int64_t k = 0; k < K; ++k) {
      weights_K[k] = exp_E[indices_K[k]] * scale;
      counts_E[indices_K[k]] += 1;
    }
    const A norm = q_norm(weights_K, K, static_cast<A>(args.normalize_p));
    for (std::int64_t k = 0; k < K; ++k) weights_K[k] /= norm;
  }
}

void route_forward_tokens(const RouteForwardArgs& args, std::int64_t begin, std::int64_t end,
                          void* sums, void* scratch, std::int32_t* counts_E) {
  if (args.dtype == DType::kFloat64) {
    route_forward_typed(args, begin, end, static_cast<double*>(sums), static_cast<double*>(scratch),
                        counts_E);
  } else {
    route_forward_typed(args, begin, end, static_cast<float*>(sums), static_cast<float*>(scratch),
                        counts_E);
  }
}

template <class A>
void route_backward_typed(const RouteBackwardArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t E = args.experts, K = args.top_k;
  const A q = static_cast<A>(args.normalize_p), T = static_cast<A>(args.tokens);
  const A* d_losses_2 = static_cast<const A*>(args.d_losses_2);
  const bool losses = d_losses_2 != nullptr;
  // d_p of an expert that a token did not select is per_count * (tokens of the expert).
  const A per_count =
      losses ? d_losses_2[0] * static_cast<A>(E) / (T * static_cast<A>(K)) / T : A(0);
  const auto d_p_base = [&](std::int64_t e) {
    return losses ? per_count * static_cast<A>(args.tokens_per_expert_E[e]) : A(0);
  };
  for (std::int64_t t = begin; t < end; ++t) {
    const A* z_E = static_cast<const A*>(args.logits_TE) + t * E;
    const A* d_w_K = static_cast<const A*>(args.d_weights_TK) + t * K;
    const std::int32_t* indices_K = args.indices_TK + t * K;
    A* d_z_E = static_cast<A*>(args.d_logits_TE) + t * E;
    const A max = max_of(z_E, E);
    const A total = exponentials(z_E, E, max, d_z_E);
    const A scale = 1 / total;
    const auto p_of = [&](std::int64_t k) { return exp_of(z_E[indices_K[k]] - max) * scale; };

    A norm = 0, dot = 0, mean = 0;
    if (q == 0) {
      norm = 1;
    } else {
      for (std::int64_t k = 0; k < K; ++k) norm += q == 1 ? p_of(k) : pow_of(p_of(k), q);
      norm = q == 1 ? norm : pow_of(norm, 1 / q);
    }
    for (std::int64_t k = 0; k < K; ++k) dot += d_w_K[k] * (p_of(k) / norm);
    const auto d_p_selected = [&](std::int64_t k) {
      const A w = p_of(k) / norm;
      const A power = q == 1 ? A(1) : pow_of(w, q - 1);
      return (d_w_K[k] - (q == 0 || w == 0 ? A(0) : power * dot)) / norm;
    };
    for (std::int64_t e = 0; e < E; ++e) mean += d_z_E[e] * scale * d_p_base(e);
    for (std::int64_t k = 0; k < K; ++k) mean += p_of(k) * d_p_selected(k);

    const A lse = max + log_of(total);
    const A d_lse = losses ? d_losses_2[1] * 2 / T * lse : A(0);
    for (std::int64_t e = 0; e < E; ++e) d_z_E[e] *= scale * (d_p_base(e) - mean + d_lse);
    for (std::int64_t k = 0; k < K; ++k) d_z_E[indices_K[k]] += p_of(k) * d_p_selected(k);
  }
}

void route_backward_tokens(const RouteBackwardArgs& args, std::int64_t begin, std::int64_t end) {
  args.dtype == DType::kFloat64 ? route_backward_typed<double>(args, begin, end)
                                : route_backward_typed<float>(args, begin, end);
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
          const A weight =
              args.weights_TK == nullptr ? A(1) : static_cast<const A*>(args.weights_TK)[t * K + k];
          const S* y = static_cast<const S*>(args.y_RD) + args.rows_TK[t * K + k] * D + first;
#pragma omp simd
          for (std::int64_t d = 0; d < n; ++d) sum[d] += weight * to_float(y[d]);
        }
        if (args.base_TD != nullptr) {
          const A* base = static_cast<const A*>(args.base_TD) + t * D + first;
#pragma omp simd
          for (std::int64_t d = 0; d < n; ++d) sum[d] += base[d];
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
