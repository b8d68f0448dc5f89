// Router, dispatch order, permute and combine on the GPU against the library's CPU ops.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "dropless/permute.h"
#include "dropless/route.h"
#include "src/cuda/kernels.h"
#include "tests/cuda/gpu_support.h"
#include "tests/ops/random_floats.h"

namespace dropless::cuda {
namespace {

using dropless::testing::DeviceBuffer;
using dropless::testing::random_floats;
const Device kGpu{DeviceType::kCuda, 0};

struct RoutingCase {
  std::int64_t tokens, experts, top_k;
  double normalize_p;

  friend void PrintTo(const RoutingCase& c, std::ostream* out) {
    *out << "T " << c.tokens << ", E " << c.experts << ", K " << c.top_k << ", normalize_p "
         << c.normalize_p;
  }
};

class RoutingCuda : public ::testing::TestWithParam<RoutingCase> {
 protected:
  void SetUp() override {
    if (!dropless::testing::gpu_available()) GTEST_SKIP() << "no GPU";
  }
};

// The CPU ops' workspaces are 64-byte aligned.
struct alignas(64) Line {
  char bytes[64];
};

template <class T>
DeviceBuffer on_device(const std::vector<T>& values) {
  DeviceBuffer buffer(values.size() * sizeof(T));
  buffer.upload(values);
  return buffer;
}

double relative(const std::vector<float>& actual, const std::vector<float>& expected) {
  double difference = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    difference += (double(actual[i]) - expected[i]) * (double(actual[i]) - expected[i]);
    norm += double(expected[i]) * expected[i];
  }
  return std::sqrt(difference / (norm > 0.0 ? norm : 1.0));
}

// Both directions of a router beside the CPU's.
void expect_router_matches(const RoutingCase& sizes, const RouteConfig& config,
                           const std::vector<float>& logits, const std::vector<float>& bias) {
  const std::int64_t T = sizes.tokens, E = sizes.experts, K = sizes.top_k;
  std::vector<float> weights(T * K), losses(2);
  std::vector<std::int32_t> indices(T * K), counts(E);
  std::vector<Line> workspace(dropless::route_workspace_bytes(T, E, DType::kFloat32) / 64 + 1);
  dropless::route_forward(
      config, {logits.data(), DType::kFloat32, {T, E}},
      bias.empty() ? ConstTensorView() : ConstTensorView(bias.data(), DType::kFloat32, {E}),
      {weights.data(), DType::kFloat32, {T, K}}, {indices.data(), DType::kInt32, {T, K}},
      {losses.data(), DType::kFloat32, {2}}, {counts.data(), DType::kInt32, {E}}, workspace.data(),
      64 * workspace.size());

  const DeviceBuffer g_logits = on_device(logits), g_bias = on_device(bias);
  DeviceBuffer g_weights(T * K * 4), g_indices(T * K * 4), g_losses(8), g_counts(E * 4),
      g_workspace(route_workspace_bytes(T, E));
  route_forward(config, bias.empty() ? nullptr : g_bias.as<float>(), g_logits.as<float>(), E, T, E,
                K, g_weights.as<float>(), g_indices.as<std::int32_t>(), g_losses.as<float>(),
                g_counts.as<std::int32_t>(), g_workspace.get(), nullptr);
  dropless::testing::synchronize();
  EXPECT_EQ(g_indices.download<std::int32_t>(T * K), indices);
  EXPECT_EQ(g_counts.download<std::int32_t>(E), counts);
  EXPECT_LE(relative(g_weights.download<float>(T * K), weights), 1e-5);
  EXPECT_LE(relative(g_losses.download<float>(2), losses), 1e-5);

  const std::vector<float> d_weights = random_floats(T * K, 2), d_losses{0.7f, -0.3f};
  std::vector<float> d_logits(T * E);
  dropless::route_backward(
      config, {logits.data(), DType::kFloat32, {T, E}}, {indices.data(), DType::kInt32, {T, K}},
      {counts.data(), DType::kInt32, {E}}, {d_weights.data(), DType::kFloat32, {T, K}},
      {d_losses.data(), DType::kFloat32, {2}}, {d_logits.data(), DType::kFloat32, {T, E}});
  const DeviceBuffer g_d_weights = on_device(d_weights), g_d_losses = on_device(d_losses);
  DeviceBuffer g_d_logits(T * E * 4);
  route_backward(config, g_logits.as<float>(), E, T, E, K, g_indices.as<std::int32_t>(),
                 g_counts.as<std::int32_t>(), g_d_weights.as<float>(), g_d_losses.as<float>(),
                 g_d_logits.as<float>(), nullptr);
  dropless::testing::synchronize();
  EXPECT_LE(relative(g_d_logits.download<float>(T * E), d_logits), 1e-4);
}

TEST_P(RoutingCuda, RouterMatchesTheCpu) {
  const auto [T, E, K, q] = GetParam();
  std::vector<float> logits = random_floats(T * E, 1);
  // Ties: the lowest expert wins.
  for (std::int64_t t = 0; t + 1 < T; t += 3) {
    for (std::int64_t e = 0; e < E; ++e) logits[t * E + e] = std::floor(logits[t * E + e]);
  }
  expect_router_matches(GetParam(), {.normalize_p = q}, logits, {});
}

// Sigmoid scores, a bias, groups and a factor; ties where the logits alone decide.
TEST_P(RoutingCuda, GeneralRoutersMatchTheCpu) {
  const auto [T, E, K, q] = GetParam();
  const std::vector<float> bias = random_floats(E, 7);
  std::vector<float> logits = random_floats(T * E, 1);
  // Ties: the lowest expert wins.
  for (std::int64_t t = 0; t + 1 < T; t += 3) {
    for (std::int64_t e = 0; e < E; ++e) logits[t * E + e] = std::floor(logits[t * E + e]);
  }
  for (const RouteScore score : {RouteScore::kSoftmax, RouteScore::kSigmoid}) {
    RouteConfig config{.score = score, .normalize_p = q, .scaling_factor = 2.5};
    expect_router_matches(GetParam(), config, logits, {});
    config.selection = RouteSelection::kUniform;
    expect_router_matches(GetParam(), config, logits, {});
    config.selection = RouteSelection::kTopK;
    const std::vector<float> distinct = random_floats(T * E, 3);
    expect_router_matches(GetParam(), config, distinct, bias);
    for (const std::int64_t groups : {2, 4, 8}) {
      if (E % groups != 0 || E / groups * (groups / 2) < K) continue;
      config.num_groups = groups;
      config.group_top_k = groups / 2;
      expect_router_matches(GetParam(), config, distinct, {});
      expect_router_matches(GetParam(), config, distinct, bias);
    }
  }
}

// Scores that underflow, and powers of scores that would.
TEST_P(RoutingCuda, PeakedRoutersMatchTheCpu) {
  const auto [T, E, K, q] = GetParam();
  for (const float scale : {1.0f, 40.0f}) {
    std::vector<float> logits = random_floats(T * E, 11);
    for (float& logit : logits) logit *= scale;
    for (const double norm : {0.5, 1.0, 3.0, 40.0}) {
      SCOPED_TRACE(::testing::Message() << "logits x " << scale << ", norm " << norm);
      expect_router_matches(GetParam(), {.normalize_p = norm}, logits, {});
    }
  }
}

TEST_P(RoutingCuda, NanRowsStillGetDistinctExperts) {
  const auto [T, E, K, q] = GetParam();
  const std::vector<float> logits(T * E, std::numeric_limits<float>::quiet_NaN());
  const DeviceBuffer g_logits = on_device(logits);
  DeviceBuffer g_weights(T * K * 4), g_indices(T * K * 4), g_workspace(route_workspace_bytes(T, E));
  RouteConfig grouped{.score = RouteScore::kSigmoid, .normalize_p = q};
  if (E % 2 == 0 && K <= E / 2) grouped.num_groups = 2;
  for (const RouteConfig& config : {RouteConfig{.normalize_p = q}, grouped}) {
    g_indices.poison();
    route_forward(config, nullptr, g_logits.as<float>(), E, T, E, K, g_weights.as<float>(),
                  g_indices.as<std::int32_t>(), nullptr, nullptr, g_workspace.get(), nullptr);
    dropless::testing::synchronize();
    const auto indices = g_indices.download<std::int32_t>(T * K);
    for (std::int64_t t = 0; t < T; ++t) {
      std::vector<bool> seen(E, false);
      for (std::int64_t k = 0; k < K; ++k) {
        const auto e = indices[t * K + k];
        ASSERT_TRUE(e >= 0 && e < E);
        ASSERT_FALSE(seen[e]);
        seen[e] = true;
      }
    }
  }
}

TEST_P(RoutingCuda, PermuteAndCombineMatchTheCpu) {
  const auto [T, E, K, q] = GetParam();
  const std::int64_t R = T * K, D = 72;
  std::mt19937 random(5);
  std::vector<std::int32_t> indices(R), rows(R), tokens(R);
  for (auto& index : indices) index = (random() % 4 == 0) ? 0 : random() % E;
  std::vector<std::int64_t> offsets(E + 1);
  std::vector<Line> workspace(dropless::dispatch_order_workspace_bytes(T, E) / 64 + 1);
  dropless::dispatch_order(
      {indices.data(), DType::kInt32, {T, K}}, {rows.data(), DType::kInt32, {T, K}},
      {offsets.data(), DType::kInt64, {E + 1}}, {tokens.data(), DType::kInt32, {R}},
      workspace.data(), 64 * workspace.size());
  const std::vector<float> weights = random_floats(R, 3);
  const DeviceBuffer g_indices = on_device(indices), g_weights = on_device(weights);
  DeviceBuffer g_rows(R * 4), g_offsets((E + 1) * 8), g_tokens(R * 4), g_weights_R(R * 4),
      g_workspace(dispatch_order_workspace_bytes(T, K, E));
  dispatch_order(g_indices.as<std::int32_t>(), g_weights.as<float>(), T, K, E,
                 g_rows.as<std::int32_t>(), g_offsets.as<std::int64_t>(),
                 g_tokens.as<std::int32_t>(), g_weights_R.as<float>(), g_workspace.get(), nullptr);
  dropless::testing::synchronize();
  EXPECT_EQ(g_rows.download<std::int32_t>(R), rows);
  EXPECT_EQ(g_offsets.download<std::int64_t>(E + 1), offsets);
  EXPECT_EQ(g_tokens.download<std::int32_t>(R), tokens);
  const auto weights_R = g_weights_R.download<float>(R);
  for (std::int64_t i = 0; i < R; ++i) ASSERT_EQ(weights_R[rows[i]], weights[i]);

  const std::vector<float> x = random_floats(T * D, 4), y = random_floats(R * D, 6);
  std::vector<float> x_RD(R * D), out(T * D), d_y(R * D), d_weights(R);
  const ConstTensorView rows_TK(rows.data(), DType::kInt32, {T, K});
  dropless::gather({x.data(), DType::kFloat32, {T, D}}, rows_TK,
                   {x_RD.data(), DType::kFloat32, {R, D}});
  dropless::combine({y.data(), DType::kFloat32, {R, D}}, {weights.data(), DType::kFloat32, {T, K}},
                    rows_TK, {out.data(), DType::kFloat32, {T, D}});
  dropless::combine_backward(
      {y.data(), DType::kFloat32, {R, D}}, {weights.data(), DType::kFloat32, {T, K}}, rows_TK,
      {x.data(), DType::kFloat32, {T, D}}, {d_y.data(), DType::kFloat32, {R, D}},
      {d_weights.data(), DType::kFloat32, {T, K}});
  const DeviceBuffer g_x = on_device(x), g_y = on_device(y);
  DeviceBuffer g_x_RD(R * D * 4), g_out(T * D * 4), g_d_y(R * D * 4), g_d_weights(R * 4);
  gather({g_x.get(), DType::kFloat32, {T, D}, kGpu}, g_rows.as<std::int32_t>(), K,
         {g_x_RD.get(), DType::kFloat32, {R, D}, kGpu}, nullptr);
  combine({g_y.get(), DType::kFloat32, {R, D}, kGpu}, g_weights.as<float>(),
          g_rows.as<std::int32_t>(), K, false, {g_out.get(), DType::kFloat32, {T, D}, kGpu},
          nullptr);
  combine_backward({g_y.get(), DType::kFloat32, {R, D}, kGpu}, g_weights.as<float>(),
                   g_rows.as<std::int32_t>(), K, {g_x.get(), DType::kFloat32, {T, D}, kGpu},
                   {g_d_y.get(), DType::kFloat32, {R, D}, kGpu}, g_d_weights.as<float>(), nullptr);
  dropless::testing::synchronize();
  EXPECT_EQ(g_x_RD.download<float>(R * D), x_RD);
  EXPECT_LE(relative(g_out.download<float>(T * D), out), 1e-6);
  EXPECT_LE(relative(g_d_y.download<float>(R * D), d_y), 1e-6);
  EXPECT_LE(relative(g_d_weights.download<float>(R), d_weights), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, RoutingCuda,
    ::testing::Values(RoutingCase{1, 1, 1, 0.0}, RoutingCase{7, 8, 2, 1.0},
                      RoutingCase{1000, 64, 8, 0.0}, RoutingCase{777, 100, 10, 2.0},
                      RoutingCase{30000, 2, 1, 0.0},  // many CTAs an expert
                      RoutingCase{9000, 700, 4, 1.0}, RoutingCase{9001, 128, 8, 1.0},
                      RoutingCase{300, 257, 3, 1.0}, RoutingCase{100, 1024, 40, 0.0}),
    [](const auto& info) {
      const RoutingCase& c = info.param;
      return "T" + std::to_string(c.tokens) + "_E" + std::to_string(c.experts) + "_K" +
             std::to_string(c.top_k);
    });

}  // namespace
}  // namespace dropless::cuda
