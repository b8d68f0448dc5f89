// The whole layer on a GPU: output, losses and every gradient against the layer in double on the
// CPU; skewed, empty and absent routings; the same bits on every run and out of a CUDA graph.
#include "dropless/moe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "dropless/error.h"
#include "dropless/observe.h"
#include "src/cuda/kernels.h"
#include "tests/cuda/gpu_layer.h"

namespace dropless::testing {
namespace {

struct LayerCase {
  std::int64_t tokens;
  MoEConfig config;
  std::string name = "";  // what is unusual

  friend void PrintTo(const LayerCase& c, std::ostream* out) {
    const MoEConfig& m = c.config;
    *out << "T " << c.tokens << ", D " << m.d_model << ", F " << m.d_ffn << ", E " << m.num_experts
         << ", K " << m.top_k << ", " << ::testing::PrintToString(m.activation)
         << (m.glu ? " GLU" : "") << ", normalize_p " << m.route.normalize_p << " " << c.name;
  }
};

MoEConfig with_bias(MoEConfig config) {
  config.expert_bias = true;
  return config;
}

class MoECuda : public ::testing::TestWithParam<std::tuple<LayerCase, DType, bool>> {
 protected:
  void SetUp() override {
    if (!gpu_supported()) GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  }
};

TEST_P(MoECuda, MatchesDouble) {
  const auto& [layer, dtype, bias] = GetParam();
  MoECase c(bias ? with_bias(layer.config) : layer.config, layer.tokens, dtype, 7 + layer.tokens);
  expect_matches_double(c);
}

std::string case_name(const ::testing::TestParamInfo<MoECuda::ParamType>& info) {
  const auto& [layer, dtype, bias] = info.param;
  const MoEConfig& c = layer.config;
  std::string name = "T" + std::to_string(layer.tokens);
  name += "_D" + std::to_string(c.d_model) + "_F" + std::to_string(c.d_ffn);
  name += "_E" + std::to_string(c.num_experts) + "_K" + std::to_string(c.top_k);
  return name + "_" + dtype_name(dtype) + (bias ? "_bias" : "") + layer.name;
}

// Partial row tiles, partial column tiles, partial slices of k, one token, one expert, K = E, more
// experts than tokens, numbers of experts that are no multiple of 4; d_model in several slabs; experts
// so wide that rows are gathered before the up projection; so few rows that all of d_out's lie in dW1, and so many that
// they take turns there, in dV1 and in the workspace.
const LayerCase kShapes[] = {
    {300, config_of(8, 2, 64, 40)},
    {517, config_of(6, 4, 192, 328, Activation::kGelu, false, 1)},
    {130, config_of(5, 1, 136, 72, Activation::kGeluTanh, true, 2)},
    {1, config_of(7, 3, 72, 16, Activation::kRelu)},
    {200, config_of(1, 1, 128, 256)},
    {96, config_of(3, 3, 8, 8, Activation::kQuickGelu, true, 1)},
    {64, config_of(200, 8, 64, 64)},
    {40, config_of(1024, 4, 40, 24, Activation::kQuickGelu, false)},
    {1000, config_of(64, 8, 512, 520)},
    {90, config_of(4, 2, 264, 2056)},
    {600, config_of(16, 2, 1032, 304, Activation::kSilu, true, 1)},
    {2048, config_of(16, 2, 1536, 256)},
    {1400, config_of(2, 2, 1536, 264)},
    {1300, config_of(3, 2, 1288, 264, Activation::kRelu, false)},
    {2100, config_of(1, 1, 264, 2056)},
};
INSTANTIATE_TEST_SUITE_P(, MoECuda,
                         ::testing::Combine(::testing::ValuesIn(kShapes),
                                            ::testing::Values(DType::kBFloat16, DType::kFloat16),
                                            ::testing::Bool()),
                         case_name);

MoEConfig routed(MoEConfig config, const RouteConfig& route, double capacity_factor = 0,
                 bool selection_bias = false) {
  config.route = route;
  config.capacity_factor = capacity_factor;
  config.selection_bias = selection_bias;
  return config;
}

// Scores, selections and capacities; experts too many for a warp's first registers, groups of one.
const LayerCase kRouters[] = {
    {300, routed(config_of(16, 4, 64, 40), {.score = RouteScore::kSigmoid}), "_sigmoid"},
    {200,
     routed(config_of(256, 8, 64, 40),
            {.score = RouteScore::kSigmoid,
             .num_groups = 8,
             .group_top_k = 4,
             .normalize_p = 1,
             .scaling_factor = 2.5},
            0, true),
     "_deepseek"},
    {150, routed(config_of(300, 5, 64, 24), {.num_groups = 300, .group_top_k = 7}),
     "_groups_of_one"},
    {257, routed(config_of(6, 2, 64, 40), {.normalize_p = 2, .scaling_factor = 0.5}, 0, true),
     "_selection_bias"},
    {300, routed(config_of(7, 3, 64, 40), {.selection = RouteSelection::kUniform}), "_uniform"},
    {300,
     routed(config_of(9, 3, 64, 40),
            {.selection = RouteSelection::kGiven, .normalize_p = 0.5, .scaling_factor = 3}),
     "_given"},
    {513, routed(config_of(8, 2, 72, 40), {.normalize_p = 1}, 1.0), "_capacity_1"},
    {513, routed(config_of(8, 4, 264, 2056), {}, 0.3), "_capacity_0_3"},
    {90, routed(config_of(64, 1, 64, 40), {}, 0.01), "_capacity_none"},
};
INSTANTIATE_TEST_SUITE_P(Routers, MoECuda,
                         ::testing::Combine(::testing::ValuesIn(kRouters),
                                            ::testing::Values(DType::kBFloat16),
                                            ::testing::Values(true)),
                         case_name);

class MoECudaLayer : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gpu_supported()) GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  }
};

struct RandomLayer {
  LayerCase layer;
  DType dtype;
  std::uint64_t seed;
};

// Every activation with every normalisation in 15 of them; the rest is drawn. At most 4096 rows, for the CPU's sake.
RandomLayer random_layer(std::int64_t i, std::mt19937_64& random) {
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
  };
  const std::int64_t experts = draw(1, 40), top_k = draw(1, experts);
  const std::int64_t tokens = draw(1, std::min<std::int64_t>(700, 4096 / top_k));
  MoEConfig config =
      config_of(experts, top_k, 8 * draw(1, 75), 8 * draw(1, 75), static_cast<Activation>(i % 5),
                draw(0, 2) > 0, static_cast<double>(i % 3));
  config.expert_bias = draw(0, 1) == 1;
  if (draw(0, 2) == 0) config.capacity_factor = static_cast<double>(draw(4, 12)) / 8;
  const DType dtype = draw(0, 1) == 0 ? DType::kBFloat16 : DType::kFloat16;
  std::string name = dtype_name(dtype);
  if (config.expert_bias) name += ", biases";
  if (config.capacity_factor > 0) name += ", capacity " + std::to_string(config.capacity_factor);
  return {{tokens, config, name}, dtype, random()};
}

TEST_F(MoECudaLayer, RandomLayersMatchDouble) {
  std::mt19937_64 random(20261201);
  const int layers = std::getenv("DROPLESS_NIGHTLY") != nullptr ? 120 : 15;
  int small_batches = 0;
  for (int i = 0; i < layers; ++i) {
    const RandomLayer drawn = random_layer(i, random);
    SCOPED_TRACE(::testing::Message()
                 << "layer " << i << ": " << ::testing::PrintToString(drawn.layer));
    MoECase c(drawn.layer.config, drawn.layer.tokens, drawn.dtype, drawn.seed);
    make_logits_exact(c);
    const PartObserver before = observe_parts([&](const QueuedPart& part) {
      if (std::string(part.name) == "small batch") ++small_batches;
    });
    expect_matches_double(c);
    observe_parts(before);
  }
  EXPECT_LE(small_batches, layers / 3);  // those have tests of their own
}

// Of d_out's rows, which lie in dW1 where that has room for all columns, or with wide experts in the workspace: needs no GPU.
TEST(MoECudaWorkspace, HoldsTheBiasSumsOfTheWidestSlab) {
  const struct {
    std::int64_t tokens;
    MoEConfig config;
  } layers[] = {{4096, config_of(64, 8, 2048, 1024)},
                {2048, config_of(16, 2, 1536, 256)},
                {5000, config_of(1, 1, 3072, 2056)}};
  for (const auto& [tokens, config] : layers) {
    const auto bytes = [&, tokens = tokens](const MoEConfig& c) {
      return moe_backward_workspace_bytes(c, tokens, DType::kBFloat16, kGpu);
    };
    EXPECT_GE(bytes(with_bias(config)) - bytes(config),
              cuda::column_sums_workspace_bytes(tokens * config.top_k, config.num_experts,
                                                config.d_model));
  }
}

TEST_F(MoECudaLayer, AllTokensToOneExpert) {
  MoECase c(with_bias(config_of(16, 1, 128, 96)), 700, DType::kBFloat16, 3);
  for (std::int64_t t = 0; t < c.tokens; ++t) c.x_TD.set(t * 128, 4);
  c.router_ED.set(11 * 128, 8);
  expect_matches_double(c);
  EXPECT_EQ(c.counts_E.get(11), 700);
}

TEST_F(MoECudaLayer, NoTokens) {
  MoECase c(with_bias(config_of(4, 2, 64, 32)), 0, DType::kBFloat16, 3);
  GpuLayer gpu(c);
  gpu.forward();
  gpu.backward();
  gpu.download();
  for (int i = 0; i < 2; ++i) EXPECT_EQ(c.losses_2.get(i), 0);
  for (int e = 0; e < 4; ++e) EXPECT_EQ(c.counts_E.get(e), 0);
  for (int e = 0; e <= 4; ++e) EXPECT_EQ(c.offsets_E1.get(e), 0);
  for (const Tensor* gradient : {&c.d_router_ED, &c.d_w1_EFD, &c.d_v1_EFD, &c.d_w2_EFD, &c.d_b1_EF,
                                 &c.d_bv1_EF, &c.d_b2_ED}) {
    for (std::int64_t i = 0; i < gradient->numel(); ++i) ASSERT_EQ(gradient->get(i), 0);
  }
}

// What a run writes, as bytes.
std::vector<Tensor> results(const MoECase& c) {
  return {c.out_TD,   c.losses_2, c.counts_E, c.weights_TK, c.indices_TK, c.d_x_TD, c.d_router_ED,
          c.d_w1_EFD, c.d_v1_EFD, c.d_w2_EFD, c.d_b1_EF,    c.d_bv1_EF,   c.d_b2_ED};
}

void expect_same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same_bits(a[i], b[i])) << i;
}

TEST_F(MoECudaLayer, EveryRunAndAGraphGiveTheSameBits) {
  MoECase c(with_bias(config_of(32, 4, 256, 264)), 900, DType::kFloat16, 11);
  GpuLayer gpu(c);
  gpu.forward();
  gpu.backward();
  gpu.download();
  const std::vector<Tensor> first = results(c);

  gpu.poison();
  gpu.forward();
  gpu.backward();
  gpu.download();
  expect_same_bits(results(c), first);

  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  gpu.forward(stream);
  gpu.backward(stream);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (int replay = 0; replay < 2; ++replay) {
    gpu.poison();
    synchronize();
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    gpu.download();
    expect_same_bits(results(c), first);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

// What observe.h hears: all of the layer's operations, whatever slabs they are cut into.
TEST_F(MoECudaLayer, TellsItsParts) {
  MoECase c(config_of(64, 2, 1024, 256), 1000, DType::kBFloat16, 3);
  GpuLayer gpu(c);
  const auto [names, flops] = parts_told([&] {
    gpu.forward();
    gpu.backward();
  });
  synchronize();
  for (const char* name : {"router", "route", "order", "up", "down", "combine", "d_activation",
                           "d_scores", "d_router", "d_w2", "d_w1", "d_v1", "d_x"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
  EXPECT_FALSE(names.contains("gather"));  // all go beside products
  const double layer = 18.0 * 2000 * 1024 * 256, router = 8.0 * 1000 * 1024 * 64;
  EXPECT_DOUBLE_EQ(flops, layer + router);
}

// On a GPU nobody can look at given indices before they are used.
TEST_F(MoECudaLayer, GivenIndicesOfNoExpertHaveNoRow) {
  MoECase c(routed(config_of(8, 2, 64, 48), {.selection = RouteSelection::kGiven}), 300,
            DType::kBFloat16, 5);
  for (const std::int64_t bad : {-1, 8, 1 << 30}) {
    c.indices_TK.set(14, static_cast<double>(bad));
    c.indices_TK.set(15, static_cast<double>(bad));
    GpuLayer gpu(c);
    gpu.forward();
    gpu.backward();
    gpu.download();
    for (std::int64_t i = 0; i < c.rows_TK.numel(); ++i) {
      ASSERT_EQ(c.rows_TK.get(i) == -1, i == 14 || i == 15);
    }
    for (std::int64_t d = 0; d < 64; ++d) EXPECT_EQ(c.out_TD.get(7 * 64 + d), 0);
    for (std::int64_t d = 0; d < 64; ++d) EXPECT_TRUE(std::isfinite(c.d_x_TD.get(7 * 64 + d)));
    EXPECT_EQ(c.offsets_E1.get(8), 598);
    EXPECT_TRUE(gpu.canaries_intact());
  }
}

TEST_F(MoECudaLayer, LossesAndTheirGradientsMayBeAbsent) {
  MoECase c(config_of(8, 2, 64, 48), 300, DType::kBFloat16, 5);
  MoECase reference = c.to(DType::kFloat64);
  for (int i = 0; i < 2; ++i) reference.d_losses_2.set(i, 0);
  ASSERT_TRUE(reference.forward() && reference.backward());
  GpuLayer gpu(c);
  const std::size_t bytes =
      std::max(moe_forward_workspace_bytes(c.config, c.tokens, c.dtype, kGpu),
               moe_backward_workspace_bytes(c.config, c.tokens, c.dtype, kGpu));
  DeviceBuffer space(bytes), d_out(c.tokens * 64 * 2);
  moe_forward(c.config, gpu.x(), gpu.weights(), gpu.out(), {}, {}, gpu.saved(), space.get(), bytes);
  const auto* host = c.d_out_TD.as<char>();
  d_out.upload(std::vector<char>(host, host + d_out.bytes()));
  moe_backward(c.config, gpu.x(), gpu.weights(), gpu.saved(),
               {d_out.get(), DType::kBFloat16, {c.tokens, 64}, kGpu}, {}, gpu.gradients(),
               space.get(), bytes);
  gpu.download();
  EXPECT_LE(relative_error(c.out_TD, reference.out_TD), kTolerance);
  EXPECT_LE(relative_error(c.d_router_ED, reference.d_router_ED), kTolerance);
  EXPECT_LE(relative_error(c.d_x_TD, reference.d_x_TD), kTolerance);
}

// w1 and v1, and their gradients, as the halves of one tensor each.
void expect_halves_match(std::int64_t tokens) {
  SCOPED_TRACE(tokens);
  constexpr std::int64_t E = 8, F = 264, D = 1032;
  MoECase c(config_of(E, 2, D, F), tokens, DType::kBFloat16, 6);
  MoECase reference = c.to(DType::kFloat64);
  ASSERT_TRUE(reference.forward() && reference.backward());
  Tensor both(DType::kBFloat16, {E, 2 * F, D});
  const auto place = [](std::int64_t i, std::int64_t half) {
    return i / (F * D) * 2 * F * D + half * F * D + i % (F * D);
  };
  for (std::int64_t i = 0; i < E * F * D; ++i) {
    both.set(place(i, 0), c.w1_EFD.get(i));
    both.set(place(i, 1), c.v1_EFD.get(i));
  }
  OnGpu on_gpu(both), d_on_gpu(both);
  on_gpu.upload(both);
  const auto half_of = [](const OnGpu& tensor, std::int64_t half) {
    TensorView view = tensor;
    view.data = static_cast<std::uint16_t*>(view.data) + half * F * D;
    view.shape[1] = F;
    return view;
  };
  GpuLayer gpu(c);
  MoEWeights weights = gpu.weights();
  weights.w1_EFD = half_of(on_gpu, 0);
  weights.v1_EFD = half_of(on_gpu, 1);
  MoEGradients gradients = gpu.gradients();
  gradients.w1_EFD = half_of(d_on_gpu, 0);
  gradients.v1_EFD = half_of(d_on_gpu, 1);
  gpu.forward(weights);
  gpu.backward(weights, gradients);
  gpu.download();
  d_on_gpu.download(both);
  for (std::int64_t i = 0; i < E * F * D; ++i) {
    c.d_w1_EFD.set(i, both.get(place(i, 0)));
    c.d_v1_EFD.set(i, both.get(place(i, 1)));
  }
  EXPECT_TRUE(gpu.canaries_intact());
  EXPECT_LE(relative_error(c.out_TD, reference.out_TD), kTolerance);
  EXPECT_LE(relative_error(c.d_x_TD, reference.d_x_TD), kTolerance);
  EXPECT_LE(relative_error(c.d_w1_EFD, reference.d_w1_EFD), kTolerance);
  EXPECT_LE(relative_error(c.d_v1_EFD, reference.d_v1_EFD), kTolerance);
  EXPECT_LE(relative_error(c.d_w2_EFD, reference.d_w2_EFD), kTolerance);
}

TEST_F(MoECudaLayer, GateAndUpMayBeHalvesOfOneTensor) {
  expect_halves_match(900);   // a half has room for all of d_out's rows
  expect_halves_match(2600);  // for a slab: they take turns
}

TEST_F(MoECudaLayer, AddsToFp32GradientsOfWeights) {
  MoECase c(config_of(8, 2, 1032, 264), 900, DType::kBFloat16, 6);
  MoECase reference = c.to(DType::kFloat64);
  ASSERT_TRUE(reference.forward() && reference.backward());
  GpuLayer gpu(c);
  Tensor sums[3];
  std::vector<OnGpu> on_gpu;
  const Tensor* expected[3] = {&reference.d_w1_EFD, &reference.d_v1_EFD, &reference.d_w2_EFD};
  for (int i = 0; i < 3; ++i) {
    sums[i] = expected[i]->to(DType::kFloat32);
    for (std::int64_t j = 0; j < sums[i].numel(); ++j) sums[i].set(j, 0);
    on_gpu.emplace_back(sums[i]);
    on_gpu.back().upload(sums[i]);
  }
  MoEGradients gradients = gpu.gradients();
  gradients.w1_EFD = on_gpu[0];
  gradients.v1_EFD = on_gpu[1];
  gradients.w2_EFD = on_gpu[2];
  for (int call = 0; call < 2; ++call) {
    gpu.forward();
    gpu.backward(gpu.weights(), gradients);
  }
  gpu.download();
  for (int i = 0; i < 3; ++i) {
    on_gpu[static_cast<std::size_t>(i)].download(sums[i]);
    for (std::int64_t j = 0; j < sums[i].numel(); ++j) sums[i].set(j, sums[i].get(j) / 2);
    EXPECT_LE(relative_error(sums[i], *expected[i]), kTolerance);
  }
  EXPECT_LE(relative_error(c.d_x_TD, reference.d_x_TD), kTolerance);
  EXPECT_TRUE(gpu.canaries_intact());
}

TEST_F(MoECudaLayer, SaysWhatItDoesNotSupport) {
  const MoEConfig good = config_of(8, 2, 64, 48);
  EXPECT_EQ(moe_unsupported(good, DType::kBFloat16, kGpu), "");
  MoEConfig odd = good, reference = good;
  odd.d_ffn = 44;
  reference.backend = Backend::kReference;
  EXPECT_THAT(moe_unsupported(good, DType::kFloat32, kGpu), ::testing::HasSubstr("float32"));
  EXPECT_THAT(moe_unsupported(odd, DType::kBFloat16, kGpu), ::testing::HasSubstr("d_ffn 44"));
  EXPECT_THAT(moe_unsupported(reference, DType::kBFloat16, kGpu), ::testing::HasSubstr("CPU"));
  EXPECT_EQ(moe_unsupported(with_bias(good), DType::kFloat16, kGpu), "");
  EXPECT_EQ(moe_unsupported(routed(good, {.score = RouteScore::kSigmoid}, 1, true), DType::kFloat16,
                            kGpu),
            "");
  MoEConfig shared = good;
  shared.shared_d_ffn = 48;
  EXPECT_THAT(moe_unsupported(shared, DType::kBFloat16, kGpu),
              ::testing::HasSubstr("shared expert"));
  EXPECT_NE(moe_unsupported(good, DType::kBFloat16, {DeviceType::kCuda, 99}), "");
  MoECase c(good, 10, DType::kFloat32, 1);
  const OnGpu x(c.x_TD);
  try {
    moe_forward(good, x, {}, {}, {}, {}, {}, nullptr, 0);
    FAIL() << "did not throw";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
  }
}

TEST_F(MoECudaLayer, RefusesTensorsThatAreNotAligned) {
  MoECase c(config_of(8, 2, 64, 48), 16, DType::kBFloat16, 1);
  GpuLayer gpu(c);
  MoEWeights weights = gpu.weights();
  weights.w2_EFD.data = static_cast<const char*>(weights.w2_EFD.data) + 2;
  const std::size_t bytes = moe_forward_workspace_bytes(c.config, c.tokens, c.dtype, kGpu);
  DeviceBuffer space(bytes);
  EXPECT_THROW(
      moe_forward(c.config, gpu.x(), weights, gpu.out(), {}, {}, gpu.saved(), space.get(), bytes),
      Error);
}

}  // namespace
}  // namespace dropless::testing
