// What docs/extending.md tells: a router of one's own (sinkhorn_router.h) and a sparsity pattern of
// one's own (banded_topology.h), each in one file, used with the library's layer and products.
#include <cstdio>

#include "examples/banded_topology.h"
#include "examples/sinkhorn_router.h"

namespace {

using namespace dropless;
using examples::Tensor;

std::int64_t most_tokens(const Tensor<std::int32_t>& indices_TK, std::int64_t experts) {
  Tensor<std::int32_t> counts_E{experts};
  histogram({indices_TK.values().data(), DType::kInt32, {indices_TK.size()}}, counts_E);
  return *std::max_element(counts_E.values().begin(), counts_E.values().end());
}

// The layer with Sinkhorn's choice of experts; checks balance, and one gradient of the router by
// finite differences: it flows through the weights although the choice is ours.
bool try_router() {
  const std::int64_t tokens = 128;
  MoEConfig config{.num_experts = 8,
                   .top_k = 2,
                   .d_model = 16,
                   .d_ffn = 24,
                   .route = {.selection = RouteSelection::kGiven, .normalize_p = 1}};
  const std::int64_t D = config.d_model, E = config.num_experts, F = config.d_ffn;
  std::mt19937 random(5);
  examples::Layer layer(config, random);
  Tensor<float> x{tokens, D}, out{tokens, D}, d_out{tokens, D}, logits_TE{tokens, E};
  x.fill_normal(random, 1);
  d_out.fill_normal(random, 1);
  // All tokens have something in common, which one expert likes: plain top-k sends it nearly all.
  for (std::int64_t t = 0; t < tokens; ++t) x[t * D] = 2;
  layer.router_ED[3 * D] = 2;
  examples::Saved saved(config, tokens);
  examples::Workspace workspace(
      std::max({moe_forward_workspace_bytes(config, tokens, DType::kFloat32),
                moe_backward_workspace_bytes(config, tokens, DType::kFloat32),
                moe_stage_workspace_bytes(config, tokens, DType::kFloat32)}));
  void* space = workspace.data();
  const std::size_t bytes = workspace.bytes();
  const auto forward = [&] {
    moe_forward(config, x, layer.weights(), out, {}, {}, saved.views(), space, bytes);
    double objective = 0;
    for (std::int64_t i = 0; i < out.size(); ++i) objective += out[i] * d_out[i];
    return objective;
  };

  config.route.selection = RouteSelection::kTopK;
  forward();
  const std::int64_t plain = most_tokens(saved.indices_TK, E);
  config.route.selection = RouteSelection::kGiven;
  moe_logits(config, x, layer.router_ED, logits_TE, space, bytes);
  examples::sinkhorn_select(logits_TE, E, 20, saved.indices_TK);
  const std::int64_t balanced = most_tokens(saved.indices_TK, E);

  forward();
  Tensor<float> d_x{tokens, D}, d_router{E, D}, d_w1{E, F, D}, d_v1{E, F, D}, d_w2{E, F, D};
  moe_backward(config, x, layer.weights(), saved.views(), d_out, {},
               {.x_TD = d_x, .router_ED = d_router, .w1_EFD = d_w1, .v1_EFD = d_v1, .w2_EFD = d_w2},
               space, bytes);
  float& weight = layer.router_ED[5 * D + 2];
  const float before = weight, step = 1e-2f;
  weight = before + step;
  const double above = forward();
  weight = before - step;
  const double below = forward();
  weight = before;
  const double expected = (above - below) / (2 * step), gradient = d_router[5 * D + 2];
  std::printf("router: the busiest expert has %lld tokens by top-k, %lld by Sinkhorn (mean %lld)\n",
              static_cast<long long>(plain), static_cast<long long>(balanced),
              static_cast<long long>(tokens * config.top_k / E));
  std::printf("        gradient of a router weight %.4f, by finite differences %.4f\n", gradient,
              expected);
  return plain > 3 * tokens * config.top_k / E && 10 * balanced < 15 * tokens * config.top_k / E &&
         std::abs(gradient - expected) < 0.01 * std::abs(expected) + 1e-3;
}

// out = (mask * (a b^T)) c over the band, beside plain loops over all elements.
bool try_pattern() {
  const std::int64_t block_rows = 6, reach = 1, block = 16, depth = 24, width = 20;
  const examples::BandedTopology band(block_rows, reach, block);
  const std::int64_t side = block_rows * block;
  std::mt19937 random(6);
  Tensor<float> a{side, depth}, b{side, depth}, c{side, width};
  a.fill_normal(random, 0.2);
  b.fill_normal(random, 1);
  c.fill_normal(random, 0.1);
  Tensor<float> scores{band.blocks(), block, block}, out{side, width}, d_c{side, width};
  examples::Workspace workspace(block_sparse_workspace_bytes());
  void* space = workspace.data();
  const std::size_t bytes = workspace.bytes();
  sdd(a, false, b, true, band.view(), scores, space, bytes);
  dsd(scores, false, band.view(), c, false, out, space, bytes);
  // The gradient of c for d_out = out: the transposed pattern, by the column walk.
  dsd(scores, true, band.view(), out, false, d_c, space, bytes);

  std::vector<float> plain(static_cast<std::size_t>(side * width)), plain_d_c(plain.size());
  std::vector<float> score(static_cast<std::size_t>(side * side));
  const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
  for (std::int64_t i = 0; i < side; ++i) {
    for (std::int64_t j = 0; j < side; ++j) {
      if (!band.holds(i, j, reach)) continue;
      for (std::int64_t k = 0; k < depth; ++k)
        score[at(i * side + j)] += a[i * depth + k] * b[j * depth + k];
      for (std::int64_t n = 0; n < width; ++n)
        plain[at(i * width + n)] += score[at(i * side + j)] * c[j * width + n];
    }
  }
  for (std::int64_t i = 0; i < side; ++i) {
    for (std::int64_t j = 0; j < side; ++j) {
      for (std::int64_t n = 0; n < width; ++n)
        plain_d_c[at(j * width + n)] += score[at(i * side + j)] * plain[at(i * width + n)];
    }
  }
  const double difference = examples::relative_difference(out.values(), plain);
  const double d_difference = examples::relative_difference(d_c.values(), plain_d_c);
  std::printf(
      "pattern: %lld of %lld blocks; product differs from plain loops by %.1e, gradient %.1e\n",
      static_cast<long long>(band.blocks()), static_cast<long long>(block_rows * block_rows),
      difference, d_difference);
  return difference < 1e-5 && d_difference < 1e-5;
}

}  // namespace

int main() {
  const bool router = try_router();
  return router & try_pattern() ? 0 : 1;
}
