// One forward pass of a dropless mixture-of-experts layer: 8 SwiGLU experts, 2 of them for each
// token. Prints how many tokens each expert got and the router's losses, and computes one token by
// hand to show what the layer computes.
#include <cstdio>

#include "examples/tensor.h"

namespace {

using namespace dropless;
using examples::Tensor;

// out = sum_k s_k (silu(W1 x) * (V1 x)) W2, of expert e_k, written out.
std::vector<float> by_hand(const examples::Layer& layer, const Tensor<float>& x_TD,
                           const examples::Saved& saved, std::int64_t t) {
  const std::int64_t D = layer.config.d_model, F = layer.config.d_ffn, K = layer.config.top_k;
  std::vector<float> out(static_cast<std::size_t>(D));
  for (std::int64_t k = 0; k < K; ++k) {
    const std::int64_t expert = saved.indices_TK[t * K + k];
    for (std::int64_t f = 0; f < F; ++f) {
      const std::int64_t row = (expert * F + f) * D;
      float gate = 0, up = 0;
      for (std::int64_t d = 0; d < D; ++d) {
        gate += layer.w1_EFD[row + d] * x_TD[t * D + d];
        up += layer.v1_EFD[row + d] * x_TD[t * D + d];
      }
      const float h = gate / (1 + std::exp(-gate)) * up * saved.weights_TK[t * K + k];
      for (std::int64_t d = 0; d < D; ++d)
        out[static_cast<std::size_t>(d)] += h * layer.w2_EFD[row + d];
    }
  }
  return out;
}

}  // namespace

int main() {
  const std::int64_t tokens = 256;
  const MoEConfig config{.num_experts = 8,
                         .top_k = 2,
                         .d_model = 64,
                         .d_ffn = 96,
                         .activation = Activation::kSilu,
                         .glu = true,
                         .route = {.normalize_p = 1}};  // a token's weights sum to 1
  std::mt19937 random(1);
  const examples::Layer layer(config, random);
  Tensor<float> x_TD{tokens, config.d_model}, out_TD{tokens, config.d_model}, losses_2{2};
  x_TD.fill_normal(random, 1);
  Tensor<std::int32_t> tokens_per_expert_E{config.num_experts};
  examples::Saved saved(config, tokens);

  examples::Workspace workspace(moe_forward_workspace_bytes(config, tokens, DType::kFloat32));
  moe_forward(config, x_TD, layer.weights(), out_TD, losses_2, tokens_per_expert_E, saved.views(),
              workspace.data(), workspace.bytes());

  std::printf("tokens per expert:");
  for (std::int32_t count : tokens_per_expert_E.values()) std::printf(" %d", count);
  std::printf("\nload-balancing loss %.4f (1 is perfect), z-loss %.4f\n", losses_2[0], losses_2[1]);

  const std::int64_t t = 17;
  const std::vector<float> hand = by_hand(layer, x_TD, saved, t);
  const auto first = out_TD.values().begin() + t * config.d_model;
  const std::vector<float> row(first, first + config.d_model);
  const double difference = examples::relative_difference(row, hand);
  std::printf("token %lld by hand differs by %.1e\n", static_cast<long long>(t), difference);
  return difference < 1e-5 ? 0 : 1;
}
