// Activations, plain loops. The contract is include/dropless/activation.h, of expert_backward
// src/cpu/kernels.h.
#include <cmath>
#include <numbers>

#include "src/common/dispatch.h"
#include "src/cpu/kernels.h"

namespace dropless::cpu::reference {
namespace {

template <class A>
struct ValueAndSlope {
  A value, slope;
};

template <class A>
A sigmoid(A x) {
  return 1 / (1 + std::exp(-x));
}

template <class A>
ValueAndSlope<A> activate(Activation activation, A x) {
  switch (activation) {
    case Activation::kSilu: {
      const A s = sigmoid(x);
      return {x * s, s * (1 + x * (1 - s))};
    }
    case Activation::kQuickGelu: {
      const A c = A(1.702), s = sigmoid(c * x);
      return {x * s, s * (1 + c * x * (1 - s))};
    }
    case Activation::kGeluTanh: {
      const A c = std::sqrt(2 / std::numbers::pi_v<A>), cubic = A(0.044715);
      const A t = std::tanh(c * (x + cubic * x * x * x));
      return {x * (1 + t) / 2, (1 + t) / 2 + x / 2 * (1 - t * t) * c * (1 + 3 * cubic * x * x)};
    }
    case Activation::kGelu: {
      // Phi is the normal distribution function, phi its density.
      const A Phi = std::erfc(-x / std::numbers::sqrt2_v<A>) / 2;
      const A phi = std::exp(-x * x / 2) * std::numbers::inv_sqrtpi_v<A> / std::numbers::sqrt2_v<A>;
      return {x * Phi, Phi + x * phi};
    }
    case Activation::kRelu:
      return {x <= 0 ? A(0) : x, x <= 0 ? A(0) : A(1)};  // NaN stays NaN
  }
  return {};
}

}  // namespace

void activation_forward(const ActivationForwardArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Accumulator<S>;
    for (std::int64_t i = 0; i < args.size; ++i) {
      A a = activate<A>(args.activation, to_float(static_cast<const S*>(args.gate)[i])).value;
      if (args.up != nullptr) a *= to_float(static_cast<const S*>(args.up)[i]);
      static_cast<S*>(args.a)[i] = from_float<S>(a);
    }
  });
}

void activation_backward(const ActivationBackwardArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Accumulator<S>;
    for (std::int64_t i = 0; i < args.size; ++i) {
      const auto act = activate<A>(args.activation, to_float(static_cast<const S*>(args.gate)[i]));
      const A up = args.up == nullptr ? A(1) : to_float(static_cast<const S*>(args.up)[i]);
      const A d_a = to_float(static_cast<const S*>(args.d_a)[i]);
      static_cast<S*>(args.d_gate)[i] = from_float<S>(d_a * up * act.slope);
      if (args.d_up != nullptr) static_cast<S*>(args.d_up)[i] = from_float<S>(d_a * act.value);
    }
  });
}

void expert_backward(const ExpertBackwardArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Accumulator<S>;
    for (std::int64_t i = 0; i < args.tokens * args.top_k; ++i) {
      if (args.rows_TK[i] < 0) {
        static_cast<A*>(args.d_weights_TK)[i] = 0;
        continue;
      }
      const A weight = static_cast<const A*>(args.weights_TK)[i];
      const std::int64_t row = args.rows_TK[i] * args.width;
      A dot = 0;
      for (std::int64_t f = row; f < row + args.width; ++f) {
        const auto act =
            activate<A>(args.activation, to_float(static_cast<const S*>(args.gate_RF)[f]));
        const A up = args.up_RF == nullptr ? A(1) : to_float(static_cast<const S*>(args.up_RF)[f]);
        const A g = to_float(static_cast<const S*>(args.g_RF)[f]);
        const A h = act.value * up;
        dot += h * g;
        static_cast<S*>(args.scaled_h_RF)[f] = from_float<S>(weight * h);
        static_cast<S*>(args.d_gate_RF)[f] = from_float<S>(weight * g * up * act.slope);
        if (args.d_up_RF != nullptr) {
          static_cast<S*>(args.d_up_RF)[f] = from_float<S>(weight * g * act.value);
        }
      }
      static_cast<A*>(args.d_weights_TK)[i] = dot;
    }
  });
}

}  // namespace dropless::cpu::reference
