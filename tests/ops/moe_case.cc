// The contract is moe_case.h.
#include "tests/ops/moe_case.h"

#include <algorithm>
#include <utility>
#include <vector>

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

// The experts of token t: scores sorted within the groups that survive a sort of the groups.
std::vector<int> naive_selection(const MoECase& c, std::int64_t t,
                                 const std::vector<double>& score_E) {
  const RouteConfig& route = c.config.route;
  const std::int64_t E = c.config.num_experts, K = c.config.top_k;
  std::vector<int> experts(K);
  if (route.selection == RouteSelection::kUniform) {
    for (std::int64_t k = 0; k < K; ++k) experts[k] = static_cast<int>((t * K + k) % E);
    return experts;
  }
  if (route.selection == RouteSelection::kGiven) {
    for (std::int64_t k = 0; k < K; ++k) experts[k] = static_cast<int>(c.indices_TK.get(t * K + k));
    return experts;
  }
  std::vector<double> choice = score_E;
  for (std::int64_t e = 0; c.bias_E && e < E; ++e) choice[e] += c.bias_E.get(e);
  std::vector<std::pair<double, std::int64_t>>
      groups;  // negative sum of the two best, first expert
  const std::int64_t size = E / route.num_groups;
  for (std::int64_t first = 0; first < E; first += size) {
    std::vector<double> sorted(choice.begin() + first, choice.begin() + first + size);
    std::sort(sorted.rbegin(), sorted.rend());
    groups.emplace_back(-(sorted[0] + (size > 1 ? sorted[1] : 0)), first);
  }
  std::sort(groups.begin(), groups.end());
  std::vector<std::pair<double, int>> ranked;
  for (std::int64_t g = 0; g < route.group_top_k; ++g) {
    for (std::int64_t i = 0; i < size; ++i) {
      const std::int64_t e = groups[g].second + i;
      ranked.emplace_back(-choice[e], static_cast<int>(e));
    }
  }
  std::sort(ranked.begin(), ranked.end());
  for (std::int64_t k = 0; k < K; ++k) experts[k] = ranked[k].second;
  return experts;
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

  if (config.selection_bias) bias_E = normal(rng, sums, {E}, 0.2);
  out_TD = Tensor(dtype, {T, D});
  losses_2 = Tensor(sums, {2});
  counts_E = Tensor(DType::kInt32, {E});
  gate_RF = Tensor(dtype, {R, F});
  if (config.glu) up_RF = Tensor(dtype, {R, F});
  weights_TK = Tensor(sums, {T, K});
  indices_TK = Tensor(DType::kInt32, {T, K});
  if (config.route.selection == RouteSelection::kGiven) {
    for (std::int64_t i = 0; i < R; ++i) indices_TK.set(i, static_cast<double>(rng() % E));
  }
  rows_TK = Tensor(DType::kInt32, {T, K});
  offsets_E1 = Tensor(DType::kInt64, {E + 1});
  d_x_TD = Tensor(dtype, {T, D});
  d_router_ED = Tensor(dtype, {E, D});
  d_w1_EFD = Tensor(dtype, {E, F, D});
  if (config.glu) d_v1_EFD = Tensor(dtype, {E, F, D});
  d_w2_EFD = Tensor(dtype, {E, F, D});
  if (config.expert_bias) {
    b1_EF = normal(rng, dtype, {E, F});
    b2_ED = normal(rng, dtype, {E, D});
    d_b1_EF = Tensor(dtype, {E, F});
    d_b2_ED = Tensor(dtype, {E, D});
    if (config.glu) bv1_EF = normal(rng, dtype, {E, F});
    if (config.glu) d_bv1_EF = Tensor(dtype, {E, F});
  }
  const std::int64_t S = config.shared_d_ffn;
  if (S > 0) {
    shared_w1_SD = normal(rng, dtype, {S, D}, 1 / std::sqrt(D));
    shared_w2_SD = normal(rng, dtype, {S, D}, 1 / std::sqrt(S));
    d_shared_w1_SD = Tensor(dtype, {S, D});
    d_shared_w2_SD = Tensor(dtype, {S, D});
    shared_gate_TS = Tensor(dtype, {T, S});
    if (config.glu) {
      shared_v1_SD = normal(rng, dtype, {S, D}, 1 / std::sqrt(D));
      d_shared_v1_SD = Tensor(dtype, {S, D});
      shared_up_TS = Tensor(dtype, {T, S});
    }
    if (config.shared_bias) {
      shared_b1_S = normal(rng, dtype, {S});
      shared_b2_D = normal(rng, dtype, {D});
      d_shared_b1_S = Tensor(dtype, {S});
      d_shared_b2_D = Tensor(dtype, {D});
      if (config.glu) shared_bv1_S = normal(rng, dtype, {S});
      if (config.glu) d_shared_bv1_S = Tensor(dtype, {S});
    }
  }
}

MoECase MoECase::to(DType dtype) const {
  MoECase c(config, tokens, dtype, 0);
  c.x_TD = x_TD.to(dtype);
  c.router_ED = router_ED.to(dtype);
  c.w1_EFD = w1_EFD.to(dtype);
  c.v1_EFD = v1_EFD.to(dtype);
  c.w2_EFD = w2_EFD.to(dtype);
  c.bias_E = bias_E.to(accumulator_dtype(dtype));
  c.b1_EF = b1_EF.to(dtype);
  c.bv1_EF = bv1_EF.to(dtype);
  c.b2_ED = b2_ED.to(dtype);
  c.shared_w1_SD = shared_w1_SD.to(dtype);
  c.shared_v1_SD = shared_v1_SD.to(dtype);
  c.shared_w2_SD = shared_w2_SD.to(dtype);
  c.shared_b1_S = shared_b1_S.to(dtype);
  c.shared_bv1_S = shared_bv1_S.to(dtype);
  c.shared_b2_D = shared_b2_D.to(dtype);
  if (config.route.selection == RouteSelection::kGiven) c.indices_TK = indices_TK;
  c.d_out_TD = d_out_TD.to(dtype);
  c.d_losses_2 = d_losses_2.to(accumulator_dtype(dtype));
  return c;
}

MoESaved MoECase::saved() {
  return {gate_RF, up_RF,      weights_TK,     indices_TK,
          rows_TK, offsets_E1, shared_gate_TS, shared_up_TS};
}

MoEGradients MoECase::gradients() {
  return {.x_TD = d_x_TD,
          .router_ED = d_router_ED,
          .w1_EFD = d_w1_EFD,
          .v1_EFD = d_v1_EFD,
          .w2_EFD = d_w2_EFD,
          .b1_EF = d_b1_EF,
          .bv1_EF = d_bv1_EF,
          .b2_ED = d_b2_ED,
          .shared_w1_SD = d_shared_w1_SD,
          .shared_v1_SD = d_shared_v1_SD,
          .shared_w2_SD = d_shared_w2_SD,
          .shared_b1_S = d_shared_b1_S,
          .shared_bv1_S = d_shared_bv1_S,
          .shared_b2_D = d_shared_b2_D};
}

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

void make_logits_exact(MoECase& c) {
  for (std::int64_t i = 0; i < c.x_TD.numel(); ++i) {
    c.x_TD.set(i, std::round(c.x_TD.get(i) * 4) / 4);
  }
  for (std::int64_t i = 0; i < c.router_ED.numel(); ++i) {
    c.router_ED.set(i, std::round(c.router_ED.get(i) * 1024) / 1024);
  }
}

NaiveResult naive_forward(const MoECase& c) {
  const std::int64_t T = c.tokens, D = c.config.d_model, F = c.config.d_ffn,
                     E = c.config.num_experts, K = c.config.top_k;
  const RouteConfig& route = c.config.route;
  NaiveResult result{Tensor(DType::kFloat64, {T, D}), Tensor(DType::kFloat64, {2}),
                     Tensor(DType::kInt32, {E})};
  std::vector<double> mean_p(E), counts(E);
  const std::int64_t S = c.config.shared_d_ffn;
  const double share = S > 0 && c.config.shared_weighted ? 1.0 / (K + 1) : 1;
  const double experts_share = S > 0 && c.config.shared_weighted ? share * K : 1;
  // Of each expert, the first rows: floor(factor * mean).
  const double factor = c.config.capacity_factor;
  const double capacity =
      factor == 0 ? T * K : std::floor(factor * (static_cast<double>(T * K) / E));
  double z_loss = 0;
  for (std::int64_t t = 0; t < T; ++t) {
    std::vector<double> z(E);
    double total = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      for (std::int64_t d = 0; d < D; ++d)
        z[e] += c.router_ED.get(e * D + d) * c.x_TD.get(t * D + d);
      total += std::exp(z[e]);
    }
    z_loss += std::pow(std::log(total), 2) / T;
    std::vector<double> score(E);
    double sum_of_scores = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      score[e] =
          route.score == RouteScore::kSigmoid ? 1 / (1 + std::exp(-z[e])) : std::exp(z[e]) / total;
      sum_of_scores += score[e];
    }
    for (std::int64_t e = 0; e < E; ++e) mean_p[e] += score[e] / sum_of_scores / T;
    const std::vector<int> order = naive_selection(c, t, score);
    double norm = 0;
    const double q = route.normalize_p;
    for (std::int64_t k = 0; k < K; ++k) norm += std::pow(score[order[k]], q);
    norm = (q == 0 ? 1 : std::pow(norm, 1 / q)) / route.scaling_factor;
    std::vector<double> out(D);
    for (std::int64_t d = 0; c.shared_b2_D && d < D; ++d) out[d] += share * c.shared_b2_D.get(d);
    for (std::int64_t f = 0; f < S; ++f) {
      double gate = c.shared_b1_S ? c.shared_b1_S.get(f) : 0;
      double up = !c.config.glu ? 1 : c.shared_bv1_S ? c.shared_bv1_S.get(f) : 0;
      for (std::int64_t d = 0; d < D; ++d) {
        gate += c.shared_w1_SD.get(f * D + d) * c.x_TD.get(t * D + d);
        if (c.config.glu) up += c.shared_v1_SD.get(f * D + d) * c.x_TD.get(t * D + d);
      }
      const double h = activate(c.config.activation, gate) * up * share;
      for (std::int64_t d = 0; d < D; ++d) out[d] += h * c.shared_w2_SD.get(f * D + d);
    }
    for (std::int64_t k = 0; k < K; ++k) {
      const std::int64_t e = order[k];
      counts[e] += 1;
      if (counts[e] > capacity) continue;
      const double weight = score[e] / norm * experts_share;
      for (std::int64_t d = 0; c.b2_ED && d < D; ++d) out[d] += weight * c.b2_ED.get(e * D + d);
      for (std::int64_t f = 0; f < F; ++f) {
        double gate = c.b1_EF ? c.b1_EF.get(e * F + f) : 0;
        double up = !c.config.glu ? 1 : c.bv1_EF ? c.bv1_EF.get(e * F + f) : 0;
        for (std::int64_t d = 0; d < D; ++d) {
          gate += c.w1_EFD.get((e * F + f) * D + d) * c.x_TD.get(t * D + d);
          if (c.config.glu) up += c.v1_EFD.get((e * F + f) * D + d) * c.x_TD.get(t * D + d);
        }
        const double h = activate(c.config.activation, gate) * up * weight;
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
