// The layer for few tokens: every compiled tile against the layer in double on the CPU; the layer as moe_forward chooses; skewed and empty routings; the same bits on every run.
#include "src/cuda/small_batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <random>

#include "dropless/error.h"
#include "tests/cuda/gpu_layer.h"

namespace dropless::testing {
namespace {

using cuda::SmallBatchPlan;

class SmallBatchCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_is_hopper()) GTEST_SKIP() << "no Hopper GPU";
  }
};

// Forward by this plan into the tensors of `gpu`; whether the workspace's end was left alone.
bool run_plan(const SmallBatchPlan& plan, const MoECase& c, const GpuLayer& gpu) {
  const MoEConfig& config = c.config;
  const std::size_t bytes = cuda::small_batch_workspace_bytes(
      plan, c.tokens, config.top_k, config.d_model, config.d_ffn, config.num_experts);
  const DeviceBuffer space(bytes + kCanaryBytes);
  const MoEWeights weights = gpu.weights();
  const MoESaved saved = gpu.saved();
  cuda::small_batch_forward(plan,
                            {.tokens = c.tokens,
                             .top_k = config.top_k,
                             .d_model = config.d_model,
                             .d_ffn = config.d_ffn,
                             .num_experts = config.num_experts,
                             .glu = config.glu,
                             .activation = config.activation,
                             .normalize = config.route.normalize_p == 1,
                             .x_TD = gpu.x(),
                             .router_ED = weights.router_ED,
                             .w1_EFD = weights.w1_EFD,
                             .v1_EFD = weights.v1_EFD,
                             .w2_EFD = weights.w2_EFD,
                             .gate_RF = saved.gate_RF,
                             .up_RF = saved.up_RF,
                             .weights_TK = static_cast<float*>(saved.weights_TK.data),
                             .indices_TK = static_cast<std::int32_t*>(saved.indices_TK.data),
                             .rows_TK = static_cast<std::int32_t*>(saved.rows_TK.data),
                             .offsets_E1 = static_cast<std::int64_t*>(saved.offsets_E1.data),
                             .losses_2 = static_cast<float*>(gpu.losses().data),
                             .tokens_per_expert_E = static_cast<std::int32_t*>(gpu.counts().data),
                             .out_TD = gpu.out()},
                            space.get(), nullptr);
  synchronize();
  return intact(space, bytes);
}

// By every compiled tile.
void expect_all_plans_match_double(MoECase& c) {
  MoECase reference = c.to(DType::kFloat64);
  ASSERT_TRUE(reference.forward());
  GpuLayer gpu(c);
  for (const int rows : cuda::kSmallBatchRows) {
    SCOPED_TRACE(::testing::Message() << rows << " rows a pass");
    gpu.poison();
    EXPECT_TRUE(run_plan({rows}, c, gpu));
    gpu.download();
    expect_forward_matches(c, reference);
  }
}

MoECase random_case(std::mt19937& random) {
  const auto draw = [&](int low, int high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  const std::int64_t tokens = draw(0, 1) == 0 ? draw(1, 24) : draw(1, 256);
  const std::int64_t experts = draw(1, 64);
  MoEConfig config =
      config_of(experts, draw(1, static_cast<int>(std::min<std::int64_t>(experts, 9))),
                8 * draw(1, 40), 8 * draw(1, 60));
  config.activation = static_cast<Activation>(draw(0, 4));
  config.glu = draw(0, 2) > 0;
  config.route.normalize_p = static_cast<double>(draw(0, 1));
  return {config, tokens, DType::kBFloat16, static_cast<std::uint64_t>(draw(1, 1 << 20))};
}

TEST_F(SmallBatchCuda, RandomLayersMatchDouble) {
  std::mt19937 random(20261128);
  const int cases = std::getenv("DROPLESS_NIGHTLY") != nullptr ? 200 : 16;
  for (int i = 0; i < cases; ++i) {
    MoECase c = random_case(random);
    SCOPED_TRACE(::testing::Message()
                 << "case " << i << ": T " << c.tokens << ", E " << c.config.num_experts << ", K "
                 << c.config.top_k << ", D " << c.config.d_model << ", F " << c.config.d_ffn);
    expect_all_plans_match_double(c);
  }
}

TEST_F(SmallBatchCuda, ManyExpertsAndAllOfThem) {
  MoECase many(config_of(1024, 4, 40, 24), 20, DType::kBFloat16, 5);
  expect_all_plans_match_double(many);
  MoECase all(config_of(12, 12, 72, 136, Activation::kGelu, false, 1), 33, DType::kBFloat16, 6);
  expect_all_plans_match_double(all);
}

// Numbers that no multiplication hides in the weights of experts without rows.
TEST_F(SmallBatchCuda, OneExpertTakesAllAndOthersAreNotUsed) {
  MoECase c(config_of(16, 1, 136, 200), 256, DType::kBFloat16, 3);
  for (std::int64_t t = 0; t < c.tokens; ++t) c.x_TD.set(t * 136, 4);
  c.router_ED.set(11 * 136, 8);
  expect_all_plans_match_double(c);
  EXPECT_EQ(c.counts_E.get(11), 256);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (Tensor* weight : {&c.w1_EFD, &c.v1_EFD, &c.w2_EFD}) {
    for (std::int64_t i = 0; i < weight->numel(); ++i) {
      if (i / (136 * 200) != 11) weight->set(i, nan);
    }
  }
  expect_all_plans_match_double(c);
}

// What is chosen for the layer, with the backward that follows.
TEST_F(SmallBatchCuda, LayerMatchesDouble) {
  for (const std::int64_t tokens : {1, 2, 7, 8, 9, 33, 64, 100, 256}) {
    for (const double norm : {0.0, 1.0, 0.5, 2.0}) {  // the last two go the way of many rows
      SCOPED_TRACE(::testing::Message() << tokens << " tokens, norm " << norm);
      MoEConfig config = config_of(24, 3, 104, 88);
      config.route.normalize_p = norm;
      MoECase c(config, tokens, DType::kBFloat16, 40 + tokens);
      expect_matches_double(c);
    }
  }
}

TEST_F(SmallBatchCuda, EveryRunAndAGraphGiveTheSameBits) {
  for (const std::int64_t tokens : {1, 48}) {
    MoECase c(config_of(32, 4, 512, 520), tokens, DType::kBFloat16, 11);
    GpuLayer gpu(c);
    const auto bits = [&] {
      gpu.download();
      return std::vector<Tensor>{c.out_TD, c.gate_RF, c.up_RF, c.weights_TK, c.losses_2, c.rows_TK};
    };
    const auto expect_same = [&](const std::vector<Tensor>& first) {
      const std::vector<Tensor> now = bits();
      for (std::size_t i = 0; i < now.size(); ++i) EXPECT_TRUE(same_bits(now[i], first[i])) << i;
    };
    gpu.forward();
    const std::vector<Tensor> first = bits();
    for (int run = 0; run < 3; ++run) {
      gpu.poison();
      gpu.forward();
      expect_same(first);
    }
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    // Twice: the second overlaps the first's end.
    gpu.forward(stream);
    gpu.forward(stream);
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    for (int replay = 0; replay < 3; ++replay) {
      gpu.poison();
      synchronize();
      ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
      expect_same(first);
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

TEST_F(SmallBatchCuda, RefusesWhatItHasNoMemoryFor) {
  EXPECT_TRUE(cuda::small_batch_fits(1, 1024, 1024));
  EXPECT_FALSE(cuda::small_batch_fits(0, 8, 1));
  EXPECT_FALSE(cuda::small_batch_fits(257, 8, 1));
  EXPECT_FALSE(cuda::small_batch_fits(256, 1024, 1));
  EXPECT_FALSE(cuda::small_batch_fits(32, 1024, 1024));
  EXPECT_THROW(cuda::small_batch_forward({}, {.tokens = 257, .top_k = 1, .num_experts = 8}, nullptr,
                                         nullptr),
               Error);
}

}  // namespace
}  // namespace dropless::testing
