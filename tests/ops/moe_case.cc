// The contract is moe_case.h.
#include "tests/ops/moe_case.h"

#include <algorithm>
#include <numeric>

namespace dropless::testing {
namespace {

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kQuickGelu:
      return x / (1 + std::exp(-1.702 * x));
  }
  return 0;
}

}  // namespace

MoECase::MoECase(const MoEConfig& config, std::int64_t tokens, DType dtype, std::uint64_t seed)
    : config(config), tokens(tokens), dtype(dtype) {
  const std::int64_t T = tokens, D = config.d_model, F = config.d_ffn, E = config.num_experts,
                     K = config.top_k, R = T * K;
  const DType sums = accumulator_dtype(dtype);
  std::mt19937_64 rng(seed);
  x_TD = normal(rng, dtype, {T, D});
  router_ED = normal(rng, dtype, {E, D}, 1 / std::sqrt(D));
  w1_EFD = normal(rng, dtype, {E, F, D}, 1 / std::sqrt(D));
  if (config.glu) v1_EFD = normal(rng, dtype, {E, F, D}, 1 / std::sqrt(D));
  w2_EFD = normal(rng, dtype, {E, F, D}, 1 / std::sqrt(F));
  d_out_TD = normal(rng, dtype, {T, D});
  d_losses_2 = normal(rng, sums, {2});

  out_TD = Tensor(dtype, {T, D});
  losses_2 = Tensor(sums, {2});
  counts_E = Tensor(DType::kInt32, {E});
  gate_RF = Tensor(dtype, {R, F});
  if (config.glu) up_RF = Tensor(dtype, {R, F});
  weights_TK = Tensor(sums, {T, K});
  indices_TK = Tensor(DType::kInt32, {T, K});
  rows_TK = Tensor(DType::kInt32, {T, K});
  offsets_E1 = Tensor(DType::kInt64, {E + 1});
  d_x_TD = Tensor(dtype, {T, D});
  d_router_ED = Tensor(dtype, {E, D});
  d_w1_EFD = Tensor(dtype, {E, F, D});
  if (config.glu) d_v1_EFD = Tensor(dtype, {E, F, D});
  d_w2_EFD = Tensor(dtype, {E, F, D});
}

MoECase MoECase::to(DType dtype) const {
  MoECase c(config, tokens, dtype, 0);
  c.x_TD = x_TD.to(dtype);
  c.router_ED = router_ED.to(dtype);
  c.w1_EFD = w1_EFD.to(dtype);
  c.v1_EFD = v1_EFD.to(dtype);
  c.w2_EFD = w2_EFD.to(dtype);
  c.d_out_TD = d_out_TD.to(dtype);
  c.d_losses_2 = d_losses_2.to(accumulator_dtype(dtype));
  return c;
}

MoESaved MoECase::saved() { return {gate_RF, up_RF, weights_TK, indices_TK, rows_TK, offsets_E1}; }

MoEGradients MoECase::gradients() { return {d_x_TD, d_router_ED, d_w1_EFD, d_v1_EFD, d_w2_EFD}; }

bool MoECase::forward() {
  Workspace workspace(moe_forward_workspace_bytes(config, tokens, dtype));
  moe_forward(config, x_TD, weights(), out_TD, losses_2, counts_E, saved(), workspace.data(),
              workspace.bytes());
  return workspace.intact();
}

bool MoECase::backward() {
  Workspace workspace(moe_backward_workspace_bytes(config, tokens, dtype));
  moe_backward(config, x_TD, weights(), saved(), d_out_TD, d_losses_2, gradients(),
               workspace.data(), workspace.bytes());
  return workspace.intact();
}

double MoECase::objective() const {
  double sum = 0;
  for (std::int64_t i = 0; i < out_TD.numel(); ++i) sum += out_TD.get(i) * d_out_TD.get(i);
  for (int i = 0; i < 2; ++i) sum += losses_2.get(i) * d_losses_2.get(i);
  return sum;
}

NaiveResult naive_forward(const MoECase& c) {
  const std::int64_t T = c.tokens, D = c.config.d_model, F = c.config.d_ffn,
                     E = c.config.num_experts, K = c.config.top_k;
  NaiveResult result{Tensor(DType::kFloat64, {T, D}), Tensor(DType::kFloat64, {2}),
                     Tensor(DType::kInt32, {E})};
  std::vector<double> mean_p(E), counts(E);
  double z_loss = 0;
  for (std::int64_t t = 0; t < T; ++t) {
    std::vector<double> z(E), p(E);
    double total = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      for (std::int64_t d = 0; d < D; ++d)
        z[e] += c.router_ED.get(e * D + d) * c.x_TD.get(t * D + d);
      total += std::exp(z[e]);
    }
    z_loss += std::pow(std::log(total), 2) / T;
    for (std::int64_t e = 0; e < E; ++e) {
      p[e] = std::exp(z[e]) / total;
      mean_p[e] += p[e] / T;
    }
    std::vector<int> order(E);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return z[a] > z[b]; });
    double norm = 0;
    const double q = c.config.normalize_p;
    for (std::int64_t k = 0; k < K; ++k) norm += std::pow(p[order[k]], q);
    norm = q == 0 ? 1 : std::pow(norm, 1 / q);
    std::vector<double> out(D);
    for (std::int64_t k = 0; k < K; ++k) {
      const std::int64_t e = order[k];
      counts[e] += 1;
      for (std::int64_t f = 0; f < F; ++f) {
        double gate = 0, up = c.config.glu ? 0 : 1;
        for (std::int64_t d = 0; d < D; ++d) {
          gate += c.w1_EFD.get((e * F + f) * D + d) * c.x_TD.get(t * D + d);
          if (c.config.glu) up += c.v1_EFD.get((e * F + f) * D + d) * c.x_TD.get(t * D + d);
        }
        const double h = activate(c.config.activation, gate) * up * p[e] / norm;
        for (std::int64_t d = 0; d < D; ++d) out[d] += h * c.w2_EFD.get((e * F + f) * D + d);
      }
    }
    for (std::int64_t d = 0; d < D; ++d) result.out_TD.set(t * D + d, out[d]);
  }
  double balance = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    balance += counts[e] * mean_p[e];
    result.counts_E.set(e, counts[e]);
  }
  result.losses_2.set(0,
                      T == 0 ? 0 : balance * static_cast<double>(E) / static_cast<double>(T * K));
  result.losses_2.set(1, z_loss);
  return result;
}

}  // namespace dropless::testing
