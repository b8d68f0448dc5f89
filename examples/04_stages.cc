// The layer stage by stage, with something of the program's own between the stages: here the experts
// lie on two "machines", as in expert parallelism. Each gets the rows of its experts, runs them and
// sends them back; the copies stand for the exchange. Then the same with a capacity: each expert keeps
// its first rows, the others are dropped.
#include <cstdio>

#include "examples/tensor.h"

namespace {

using namespace dropless;
using examples::Tensor;

constexpr std::int64_t kTokens = 200, kMachines = 2;

// Stages 4 to 6 of moe_stages.h for the experts that one machine owns.
std::vector<float> run_experts(const examples::Layer& layer, std::int64_t first_expert,
                               std::int64_t experts, const std::vector<float>& rows_in,
                               const std::vector<std::int64_t>& sizes) {
  MoEConfig config = layer.config;
  config.num_experts = experts;
  const std::int64_t D = config.d_model, F = config.d_ffn;
  const std::int64_t rows = static_cast<std::int64_t>(rows_in.size()) / D;
  Tensor<std::int64_t> offsets_E1{experts + 1};
  for (std::int64_t e = 0; e < experts; ++e)
    offsets_E1[e + 1] = offsets_E1[e] + sizes[static_cast<std::size_t>(e)];
  Tensor<float> x_RD{rows, D}, gate_RF{rows, F}, up_RF{rows, F}, h_RF{rows, F}, y_RD{rows, D};
  x_RD.values() = rows_in;
  const auto owned = [&](const Tensor<float>& w_EFD) {
    return ConstTensorView(w_EFD.values().data() + first_expert * F * D, DType::kFloat32,
                           {experts, F, D});
  };
  const MoEWeights weights{.router_ED = {},
                           .w1_EFD = owned(layer.w1_EFD),
                           .v1_EFD = owned(layer.v1_EFD),
                           .w2_EFD = owned(layer.w2_EFD)};
  examples::Workspace workspace(moe_stage_workspace_bytes(config, rows, DType::kFloat32));
  moe_up(config, x_RD, {}, offsets_E1, weights, gate_RF, up_RF, workspace.data(),
         workspace.bytes());
  activation_forward(config.activation, gate_RF, up_RF, h_RF);
  moe_down(config, h_RF, offsets_E1, weights, y_RD, workspace.data(), workspace.bytes());
  return y_RD.values();
}

// Returns the number of dropped rows.
std::int64_t run_in_stages(const examples::Layer& layer, const Tensor<float>& x_TD,
                           std::int64_t capacity, Tensor<float>& out_TD) {
  const MoEConfig& config = layer.config;
  const std::int64_t E = config.num_experts, K = config.top_k, D = config.d_model;
  Tensor<float> logits_TE{kTokens, E}, weights_TK{kTokens, K}, x_RD{kTokens * K, D},
      y_RD{kTokens * K, D};
  Tensor<std::int32_t> indices_TK{kTokens, K}, rows_TK{kTokens, K};
  Tensor<std::int64_t> offsets_E1{E + 1};
  examples::Workspace workspace(
      std::max({moe_stage_workspace_bytes(config, kTokens, DType::kFloat32),
                route_workspace_bytes(kTokens, E, DType::kFloat32),
                dispatch_order_workspace_bytes(kTokens, E)}));
  void* space = workspace.data();
  const std::size_t bytes = workspace.bytes();
  moe_logits(config, x_TD, layer.router_ED, logits_TE, space, bytes);
  route_forward(config.route, logits_TE, {}, weights_TK, indices_TK, {}, {}, space, bytes);
  dispatch_order(indices_TK, rows_TK, offsets_E1, {}, space, bytes, Backend::kAuto, capacity);
  gather(x_TD, rows_TK, x_RD);

  // Send each machine its rows, and put what comes back in their place.
  const std::int64_t owned = E / kMachines;
  for (std::int64_t machine = 0; machine < kMachines; ++machine) {
    const std::int64_t first = machine * owned;
    std::vector<std::int64_t> sizes;
    for (std::int64_t e = first; e < first + owned; ++e)
      sizes.push_back(offsets_E1[e + 1] - offsets_E1[e]);
    const auto begin = offsets_E1[first] * D, end = offsets_E1[first + owned] * D;
    const std::vector<float> sent(x_RD.values().begin() + begin, x_RD.values().begin() + end);
    const std::vector<float> back = run_experts(layer, first, owned, sent, sizes);
    std::copy(back.begin(), back.end(), y_RD.values().begin() + begin);
  }
  combine(y_RD, weights_TK, rows_TK, out_TD);
  return kTokens * K - offsets_E1[E];
}

// The same by the whole layer.
void run_whole(const examples::Layer& layer, double capacity_factor, const Tensor<float>& x_TD,
               Tensor<float>& out_TD) {
  MoEConfig config = layer.config;
  config.capacity_factor = capacity_factor;
  examples::Saved saved(config, kTokens);
  examples::Workspace workspace(moe_forward_workspace_bytes(config, kTokens, DType::kFloat32));
  moe_forward(config, x_TD, layer.weights(), out_TD, {}, {}, saved.views(), workspace.data(),
              workspace.bytes());
}

}  // namespace

int main() {
  std::mt19937 random(4);
  const examples::Layer layer(
      {.num_experts = 6, .top_k = 2, .d_model = 32, .d_ffn = 48, .route = {.normalize_p = 1}},
      random);
  Tensor<float> x_TD{kTokens, layer.config.d_model};
  x_TD.fill_normal(random, 1);
  bool same = true;
  for (const double factor : {0.0, 0.9}) {  // 0: dropless
    const std::int64_t capacity =
        expert_capacity(factor, kTokens, layer.config.top_k, layer.config.num_experts);
    Tensor<float> staged{kTokens, layer.config.d_model}, whole{kTokens, layer.config.d_model};
    const std::int64_t dropped = run_in_stages(layer, x_TD, capacity, staged);
    run_whole(layer, factor, x_TD, whole);
    const double difference = examples::relative_difference(staged.values(), whole.values());
    std::printf("capacity factor %.1f: %lld rows dropped, stages and whole layer differ by %.1e\n",
                factor, static_cast<long long>(dropped), difference);
    same &= difference < 1e-6 && (dropped > 0) == (factor > 0);
  }
  return same ? 0 : 1;
}
