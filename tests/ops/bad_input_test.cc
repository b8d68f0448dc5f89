// What no op may take, beyond shapes that do not fit: views that lie askew, sizes that overflow or are negative, values that
// an enum has not. All are refused before anything is read. Built once more with sanitizers (sanitized_ops_test).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>

#include "dropless/activation.h"
#include "dropless/block_sparse.h"
#include "dropless/error.h"
#include "dropless/grouped_gemm.h"
#include "dropless/index.h"
#include "dropless/moe.h"
#include "dropless/moe_stages.h"
#include "dropless/permute.h"
#include "dropless/route.h"
#include "tests/ops/moe_case.h"

namespace dropless::testing {
namespace {

using ::testing::HasSubstr;
constexpr std::int64_t kHuge = std::int64_t{1} << 62;

// The error of a call, which must be one, with a hint.
std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument) << error.what();
    EXPECT_NE(error.hint(), "") << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

TEST(BadInput, ViewsThatBeginWithinAnElement) {
  alignas(64) char memory[1024] = {};
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16}) {
    const TensorView askew(memory + 1, dtype, {4, 3}), right(memory + 512, dtype, {4, 3});
    EXPECT_THAT(refusal([&] { activation_forward(Activation::kSilu, askew, {}, right); }),
                HasSubstr("gate_RF [4, 3]"));
    EXPECT_THAT(refusal([&] { activation_forward(Activation::kSilu, right, {}, askew); }),
                HasSubstr("not aligned to its elements"));
  }
  MoECase c(MoEConfig{.num_experts = 4, .top_k = 2, .d_model = 8, .d_ffn = 16}, 5, DType::kFloat32,
            1);
  Workspace space(moe_forward_workspace_bytes(c.config, 5, DType::kFloat32));
  const auto forward = [&](const ConstTensorView& x, const MoEWeights& weights) {
    moe_forward(c.config, x, weights, c.out_TD, {}, {}, c.saved(), space.data(), space.bytes());
  };
  ConstTensorView x = c.x_TD;
  MoEWeights weights = c.weights();
  x.data = static_cast<const char*>(x.data) + 2;
  weights.w1_EFD.data = static_cast<const char*>(weights.w1_EFD.data) + 1;
  EXPECT_THAT(refusal([&] { forward(x, c.weights()); }), HasSubstr("x_TD"));
  EXPECT_THAT(refusal([&] { forward(c.x_TD, weights); }), HasSubstr("w1_EFD"));
}

TEST(BadInput, ViewsOfTooManyOrTooLargeSides) {
  float value = 0;
  EXPECT_THAT(refusal([&] {
                TensorView(&value, DType::kFloat32, {1, 1, 1, 1, 1});
              }),
              HasSubstr("5 dimensions"));
  const TensorView huge(&value, DType::kFloat32, {std::int64_t{1} << 40, std::int64_t{1} << 40, 4});
  EXPECT_EQ(huge.numel(), std::numeric_limits<std::int64_t>::max());
  TensorView wide(&value, DType::kFloat32, {kHuge, 4});
  EXPECT_THAT(refusal([&] { activation_forward(Activation::kSilu, wide, {}, wide); }),
              HasSubstr("larger than any memory"));
  TensorView deep(&value, DType::kFloat32, {1, 1});
  deep.rank = 7;
  EXPECT_THAT(refusal([&] { activation_forward(Activation::kSilu, deep, {}, deep); }),
              HasSubstr("7 dimensions"));
}

TEST(BadInput, AbsentViewsThatPointSomewhere) {
  float values[16] = {};
  const TensorView view(values, DType::kFloat32, {4, 4});
  TensorView nothing;
  nothing.data = values;
  EXPECT_THAT(refusal([&] { activation_forward(Activation::kSilu, view, nothing, view); }),
              HasSubstr("up_RF has memory, but no dimensions"));
  MoECase c(MoEConfig{.num_experts = 4, .top_k = 2, .d_model = 8, .d_ffn = 16}, 5, DType::kFloat32,
            1);
  Workspace space(moe_forward_workspace_bytes(c.config, 5, DType::kFloat32));
  MoEWeights weights = c.weights();
  weights.b1_EF.data = values;
  const auto forward = [&](const TensorView& losses) {
    moe_forward(c.config, c.x_TD, weights, c.out_TD, losses, {}, c.saved(), space.data(),
                space.bytes());
  };
  EXPECT_THAT(refusal([&] { forward({}); }), HasSubstr("b1_EF"));
  weights = c.weights();
  EXPECT_THAT(refusal([&] { forward(nothing); }), HasSubstr("losses_2"));
}

TEST(BadInput, SidesAndDistancesThatCannotBe) {
  float values[64] = {};
  std::int64_t offsets[3] = {0, 2, 5};
  const ConstTensorView offsets_E1(offsets, DType::kInt64, {3});
  alignas(64) static char space[1 << 21];
  for (const std::int64_t bad : {std::int64_t{-7}, std::numeric_limits<std::int64_t>::min()}) {
    EXPECT_NE(refusal([&] {
                grouped_gemm({values, DType::kFloat32, {5, 3}},
                             {values, DType::kFloat32, {2, 3, bad}}, false, offsets_E1,
                             {values, DType::kFloat32, {5, bad}}, space, sizeof(space));
              }),
              "");
  }
  MoECase c(MoEConfig{.num_experts = 4, .top_k = 2, .d_model = 8, .d_ffn = 16}, 5, DType::kFloat32,
            1);
  Workspace workspace(moe_forward_workspace_bytes(c.config, 5, DType::kFloat32));
  MoEWeights weights = c.weights();
  weights.w1_EFD.stride[0] = kHuge;
  EXPECT_THAT(refusal([&] {
                moe_forward(c.config, c.x_TD, weights, c.out_TD, {}, {}, c.saved(),
                            workspace.data(), workspace.bytes());
              }),
              HasSubstr("elements apart"));
}

TEST(BadInput, TopologiesLargerThanMemory) {
  std::int64_t offsets[3] = {0, 128, 256};
  ConstTensorView offsets_E1(offsets, DType::kInt64, {3});
  const TensorView padded(offsets, DType::kInt64, {3});
  BlockTopology topology;
  topology.block_size = 128;
  topology.cols = 1;
  for (const std::int64_t rows : {kHuge, std::int64_t{-128}}) {
    topology.rows = rows;
    for (const DeviceType device : {DeviceType::kCpu, DeviceType::kCuda}) {
      offsets_E1.device.type = device;
      EXPECT_NE(refusal([&] {
                  expert_topology(offsets_E1, (std::int64_t{1} << 40) * 128, padded, topology);
                }),
                "");
    }
  }
}

// The one with no row would read what the workspace held.
TEST(BadInput, RowsNamedTwice) {
  MoECase c(MoEConfig{.num_experts = 4, .top_k = 1, .d_model = 8, .d_ffn = 16}, 6, DType::kFloat32,
            1);
  ASSERT_TRUE(c.forward());
  c.rows_TK.set(2, c.rows_TK.get(0));
  EXPECT_THAT(refusal([&] { c.backward(); }), HasSubstr("names a row twice"));
}

TEST(BadInput, SizeQueriesOfWhatCannotBe) {
  const MoEConfig config{.num_experts = 4, .top_k = 2, .d_model = 8, .d_ffn = 16};
  const BlockTopology none;
  for (const std::int64_t bad : {kHuge, std::int64_t{-5}}) {
    EXPECT_NE(refusal([&] { route_workspace_bytes(bad, bad, DType::kFloat32); }), "");
    EXPECT_NE(refusal([&] { route_workspace_bytes(4, bad, DType::kFloat32); }), "");
    EXPECT_NE(refusal([&] { dispatch_order_workspace_bytes(bad, 4); }), "");
    EXPECT_NE(refusal([&] { dispatch_order_workspace_bytes(4, bad); }), "");
    EXPECT_NE(refusal([&] { sort_workspace_bytes(bad, 4); }), "");
    EXPECT_NE(refusal([&] { sort_workspace_bytes(4, bad); }), "");
    EXPECT_NE(refusal([&] { moe_forward_workspace_bytes(config, bad, DType::kFloat32); }), "");
    EXPECT_NE(refusal([&] { moe_backward_workspace_bytes(config, bad, DType::kFloat32); }), "");
    EXPECT_NE(refusal([&] { moe_stage_workspace_bytes(config, bad, DType::kFloat32); }), "");
  }
  EXPECT_NE(refusal([&] { block_sparse_workspace_bytes(none, -1); }), "");
  EXPECT_THAT(refusal([&] { moe_backward_workspace_bytes(config, 3, DType::kInt32); }),
              HasSubstr("int32"));
  EXPECT_THAT(refusal([&] { route_workspace_bytes(3, 4, DType::kInt64); }), HasSubstr("int64"));
}

TEST(BadInput, ValuesThatAnEnumHasNot) {
  float values[8] = {};
  const TensorView view(values, DType::kFloat32, {2, 4});
  EXPECT_THAT(refusal([&] { activation_forward(static_cast<Activation>(17), view, {}, view); }),
              HasSubstr("activation is 17"));
  EXPECT_THAT(refusal([&] {
                activation_forward(Activation::kSilu, view, {}, view, static_cast<Backend>(40));
              }),
              HasSubstr("backend is 40"));
  MoEConfig config{.num_experts = 4, .top_k = 2, .d_model = 8, .d_ffn = 16};
  config.route.score = static_cast<RouteScore>(9);
  EXPECT_THAT(refusal([&] { moe_forward_workspace_bytes(config, 3, DType::kFloat32); }),
              HasSubstr("score is 9"));
  config.route = {.selection = static_cast<RouteSelection>(9)};
  EXPECT_THAT(refusal([&] { moe_forward_workspace_bytes(config, 3, DType::kFloat32); }),
              HasSubstr("selection 9"));
  config.route = {};
  config.activation = static_cast<Activation>(9);
  EXPECT_THAT(refusal([&] { moe_forward_workspace_bytes(config, 3, DType::kFloat32); }),
              HasSubstr("activation is 9"));
}

}  // namespace
}  // namespace dropless::testing
