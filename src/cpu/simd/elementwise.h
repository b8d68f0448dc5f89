// Activations over ranges, vectorised by the compiler.
//
// float: exp and erfc are polynomials (our own fits by least squares at Chebyshev nodes), good to
// about 2 and 4 units in the last place; loops over them have no branches and no calls. double: the
// C library's.
#pragma once

#include "src/cpu/simd/table.h"
#include "src/cpu/simd/vec.h"

namespace dropless::cpu {
namespace {

// a b + c, in one instruction where the processor has it.
[[gnu::always_inline]] inline float multiply_add(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2. Below -87.3 and above 88.3 the result stays
// at that of the bound (1e-38, 2e38); NaN stays NaN.
[[gnu::always_inline]] inline float exp_of(float x) {
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.3f ? 88.3f : x;
  // n in the low bits of the mantissa
  const float shifted = multiply_add(x, 0x1.715476p+0f, 0x1.8p23f);
  const float n = shifted - 0x1.8p23f;
  // ln 2 in two parts, the first exact
  const float r = multiply_add(n, -0x1.7f7d1cp-20f, multiply_add(n, -0x1.62e4p-1f, x));
  float p = 1.394858e-3f;
  p = multiply_add(p, r, 8.375129e-3f);
  p = multiply_add(p, r, 4.1666218e-2f);
  p = multiply_add(p, r, 1.6666415e-1f);
  p = multiply_add(p, r, 0.5f);
  p = multiply_add(p * r, r, r) + 1.0f;
  return p * detail::bits_float((detail::float_bits(shifted) + 127u) << 23);
}
[[gnu::always_inline]] inline double exp_of(double x) { return __builtin_exp(x); }

// Upper tail of the normal distribution, erfc(u / sqrt 2) / 2 for u >= 0.
[[gnu::always_inline]] inline float normal_tail(float u) {
  const float z = u * 0x1.6a09e6p-1f;
  const float v = 1.0f / (1.0f + 0.5f * z);  // erfc(z) = v exp(-z^2 + P(v))
  float p = 0.1449302137f;
  p = multiply_add(p, v, -0.6808271777f);
  p = multiply_add(p, v, 1.156733757f);
  p = multiply_add(p, v, -0.6962518988f);
  p = multiply_add(p, v, -8.028043229e-2f);
  p = multiply_add(p, v, 1.267586419e-3f);
  p = multiply_add(p, v, 3.460279999e-2f);
  p = multiply_add(p, v, 0.3866404122f);
  p = multiply_add(p, v, 0.9986327833f);
  p = multiply_add(p, v, -1.265447997f);
  return 0.5f * v * exp_of(p - z * z);
}
[[gnu::always_inline]] inline double normal_tail(double u) {
  return 0.5 * __builtin_erfc(u * 0x1.6a09e667f3bcdp-1);
}

template <class A>
[[gnu::always_inline]] inline A sigmoid(A x) {
  return A(1) / (A(1) + exp_of(-x));
}

template <class A>
struct ValueAndSlope {
  A value, slope;
};

template <Activation activation, class A>
[[gnu::always_inline]] inline ValueAndSlope<A> activate(A x) {
  if constexpr (activation == Activation::kSilu) {
    const A s = sigmoid(x);
    return {x * s, s * (A(1) + x * (A(1) - s))};
  } else if constexpr (activation == Activation::kQuickGelu) {
    const A c = A(1.702), s = sigmoid(c * x);
    return {x * s, s * (A(1) + c * x * (A(1) - s))};
  } else if constexpr (activation == Activation::kGeluTanh) {
    // (1 + tanh y) / 2 = sigmoid(2 y)
    const A c = A(1.5957691216057308), cubic = A(0.044715), x2 = x * x;
    const A s = sigmoid(c * x * (A(1) + cubic * x2));
    return {x * s, s + x * s * (A(1) - s) * c * (A(1) + 3 * cubic * x2)};
  } else if constexpr (activation == Activation::kGelu) {
    const A tail = normal_tail(x < 0 ? -x : x);
    const A below = x < 0 ? tail : A(1) - tail;
    const A density = A(0.3989422804014327) * exp_of(A(-0.5) * x * x);
    return {x * below, below + x * density};
  } else {
    return {x <= 0 ? A(0) : x, x <= 0 ? A(0) : A(1)};
  }
}

// visitor(zero of the storage type, activation as a constant, whether there is an `up`)
template <Activation activation>
struct ActivationConstant {
  static constexpr Activation value = activation;
};
template <bool flag>
struct BoolConstant {
  static constexpr bool value = flag;
};

template <class Visitor>
void visit_activation(DType dtype, Activation activation, bool gated, Visitor&& visitor) {
  const auto with_gate = [&](auto zero, auto act) {
    gated ? visitor(zero, act, BoolConstant<true>{}) : visitor(zero, act, BoolConstant<false>{});
  };
  const auto with_activation = [&](auto zero) {
    switch (activation) {
      case Activation::kSilu:
        return with_gate(zero, ActivationConstant<Activation::kSilu>{});
      case Activation::kGeluTanh:
        return with_gate(zero, ActivationConstant<Activation::kGeluTanh>{});
      case Activation::kGelu:
        return with_gate(zero, ActivationConstant<Activation::kGelu>{});
      case Activation::kRelu:
        return with_gate(zero, ActivationConstant<Activation::kRelu>{});
      case Activation::kQuickGelu:
        return with_gate(zero, ActivationConstant<Activation::kQuickGelu>{});
    }
  };
  switch (dtype) {
    case DType::kFloat64:
      return with_activation(double{});
    case DType::kBFloat16:
      return with_activation(BFloat16{});
    case DType::kFloat16:
      return with_activation(Float16{});
    default:
      return with_activation(float{});
  }
}

void activation_forward_range(const ActivationForwardArgs& args, std::int64_t begin,
                              std::int64_t end) {
  visit_activation(args.dtype, args.activation, args.up != nullptr,
                   [&](auto zero, auto act, auto gated) {
                     using S = decltype(zero);
                     using A = Accumulator<S>;
                     const S* gate = static_cast<const S*>(args.gate);
                     const S* up = static_cast<const S*>(args.up);
                     S* a = static_cast<S*>(args.a);
#pragma omp simd
                     for (std::int64_t i = begin; i < end; ++i) {
                       A value = activate<act.value>(to_float(gate[i])).value;
                       if constexpr (gated.value) value *= to_float(up[i]);
                       a[i] = from_float<S>(value);
                     }
                   });
}

void activation_backward_range(const ActivationBackwardArgs& args, std::int64_t begin,
                               std::int64_t end) {
  visit_activation(args.dtype, args.activation, args.up != nullptr,
                   [&](auto zero, auto act, auto gated) {
                     using S = decltype(zero);
                     using A = Accumulator<S>;
                     const S* gate = static_cast<const S*>(args.gate);
                     const S* up = static_cast<const S*>(args.up);
                     const S* d_a = static_cast<const S*>(args.d_a);
                     S* d_gate = static_cast<S*>(args.d_gate);
                     S* d_up = static_cast<S*>(args.d_up);
#pragma omp simd
                     for (std::int64_t i = begin; i < end; ++i) {
                       const auto [value, slope] = activate<act.value>(to_float(gate[i]));
                       A d = to_float(d_a[i]);
                       if constexpr (gated.value) {
                         const A u = to_float(up[i]);
                         d_up[i] = from_float<S>(d * value);
                         d *= u;
                       }
                       d_gate[i] = from_float<S>(d * slope);
                     }
                   });
}

void expert_backward_tokens(const ExpertBackwardArgs& args, std::int64_t begin, std::int64_t end) {
  visit_activation(
      args.dtype, args.activation, args.up_RF != nullptr, [&](auto zero, auto act, auto gated) {
        using S = decltype(zero);
        using A = Accumulator<S>;
        const std::int64_t F = args.width;
        for (std::int64_t i = begin * args.top_k; i < end * args.top_k; ++i) {
          if (args.rows_TK[i] < 0) {
            static_cast<A*>(args.d_weights_TK)[i] = 0;
            continue;
          }
          const A weight = static_cast<const A*>(args.weights_TK)[i];
          const std::int64_t row = args.rows_TK[i] * F;
          const S* gate = static_cast<const S*>(args.gate_RF) + row;
          const S* up = gated.value ? static_cast<const S*>(args.up_RF) + row : nullptr;
          const S* g = static_cast<const S*>(args.g_RF) + row;
          S* d_gate = static_cast<S*>(args.d_gate_RF) + row;
          S* d_up = gated.value ? static_cast<S*>(args.d_up_RF) + row : nullptr;
          S* scaled_h = static_cast<S*>(args.scaled_h_RF) + row;
          A dot = 0;
#pragma omp simd reduction(+ : dot)
          for (std::int64_t f = 0; f < F; ++f) {
            const auto [value, slope] = activate<act.value>(to_float(gate[f]));
            const A d = to_float(g[f]);
            A h = value;
            A d_h = weight * d;
            if constexpr (gated.value) {
              const A u = to_float(up[f]);
              h *= u;
              d_up[f] = from_float<S>(d_h * value);
              d_h *= u;
            }
            dot += h * d;
            scaled_h[f] = from_float<S>(weight * h);
            d_gate[f] = from_float<S>(d_h * slope);
          }
          static_cast<A*>(args.d_weights_TK)[i] = dot;
        }
      });
}

}  // namespace
}  // namespace dropless::cpu
