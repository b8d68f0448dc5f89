// The whole layer: against a naive layer in double, against finite differences, against its own
// reference backend, over storage types, for any number of threads, and with bad arguments.
#include "dropless/moe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <cstdlib>

#include "dropless/error.h"
#include "tests/ops/levels.h"
#include "tests/ops/moe_case.h"

// Counts every allocation of the process (operator new ends here too), where malloc can be
// replaced.
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define DROPLESS_COUNTS_ALLOCATIONS
static std::atomic<long> allocations{0};
extern "C" void* __libc_malloc(std::size_t size);  // NOLINT(bugprone-reserved-identifier)
extern "C" void* malloc(std::size_t size) {
  ++allocations;
  return __libc_malloc(size);
}
#endif

namespace dropless::testing {
namespace {

using ::testing::HasSubstr;

struct Shape {
  std::int64_t tokens;
  MoEConfig config;
};

MoEConfig routed(MoEConfig config, const RouteConfig& route, bool selection_bias = false) {
  config.route = route;
  config.selection_bias = selection_bias;
  return config;
}

struct Extras {
  bool expert_bias = false;
  double capacity_factor = 0;
  std::int64_t shared_d_ffn = 0;
  bool shared_weighted = false;
  bool shared_bias = false;
};

MoEConfig with(MoEConfig config, const Extras& extras) {
  config.expert_bias = extras.expert_bias;
  config.capacity_factor = extras.capacity_factor;
  config.shared_d_ffn = extras.shared_d_ffn;
  config.shared_weighted = extras.shared_weighted;
  config.shared_bias = extras.shared_bias;
  return config;
}

constexpr RouteScore kSigmoid = RouteScore::kSigmoid;
constexpr RouteSelection kTopK = RouteSelection::kTopK, kUniform = RouteSelection::kUniform,
                         kGiven = RouteSelection::kGiven;

// Odd sizes, one token, no token, K = E, one expert, more experts than tokens, larger than one
// block.
std::vector<Shape> shapes() {
  return {
      {7, config_of(4, 2, 5, 3)},
      {0, config_of(3, 2, 4, 6)},
      {1, config_of(5, 3, 9, 17, Activation::kGelu, false, 1)},
      {23, config_of(3, 3, 33, 31, Activation::kGeluTanh, true, 2)},
      {40, config_of(1, 1, 16, 8, Activation::kRelu, true, 1)},
      {9, config_of(32, 4, 15, 14, Activation::kQuickGelu, false)},
      {300, config_of(8, 2, 48, 70, Activation::kSilu, true, 1)},
      {130, config_of(2, 1, 290, 41, Activation::kSilu, false)},
      // DeepSeek-V3's router; its softmax with a bias; indices the layer does not choose.
      {60, routed(config_of(12, 3, 24, 10), {kSigmoid, kTopK, 4, 2, 1, 2.5}, true)},
      {31, routed(config_of(6, 2, 14, 9), {.normalize_p = 1}, true)},
      {29, routed(config_of(5, 2, 12, 7), {.selection = kUniform, .normalize_p = 1})},
      // Biases, capacity (some dropped, all dropped, none), a shared expert, all of them.
      {33, with(config_of(5, 2, 14, 11, Activation::kSilu, true, 1), {.expert_bias = true})},
      {21, with(config_of(4, 2, 9, 6, Activation::kGelu, false), {.expert_bias = true})},
      {90, with(config_of(6, 2, 16, 10), {.capacity_factor = 0.7})},
      {20, with(config_of(6, 2, 16, 10), {.capacity_factor = 0.01})},
      {20, with(config_of(6, 2, 16, 10), {.capacity_factor = 100})},
      {25, with(config_of(4, 2, 12, 9), {.shared_d_ffn = 19})},
      {25, with(config_of(4, 3, 12, 9, Activation::kGeluTanh, false, 1),
                {.shared_d_ffn = 7, .shared_weighted = true})},
      {25, with(config_of(4, 2, 12, 9), {.shared_d_ffn = 19, .shared_bias = true})},
      {25, with(config_of(4, 3, 12, 9, Activation::kGelu, false),
                {.shared_d_ffn = 7, .shared_weighted = true, .shared_bias = true})},
      {0, with(config_of(4, 2, 12, 9), {true, 1, 8, true, true})},
      {300, with(config_of(5, 3, 40, 70, Activation::kSilu, true, 1), {true, 0.8, 90, true, true})},
      {27, routed(config_of(6, 3, 10, 8), {.score = kSigmoid, .selection = kGiven})},
  };
}

TEST(MoE, ForwardEqualsNaiveLayer) {
  for (const Shape& shape : shapes()) {
    for (Backend backend : {Backend::kReference, Backend::kAuto}) {
      MoECase c(shape.config, shape.tokens, DType::kFloat64, 11);
      c.config.backend = backend;
      EXPECT_TRUE(c.forward());
      const NaiveResult naive = naive_forward(c);
      EXPECT_LT(relative_error(c.out_TD, naive.out_TD), 1e-13);
      EXPECT_LT(relative_error(c.losses_2, naive.losses_2), 1e-13);
      EXPECT_EQ(relative_error(c.counts_E, naive.counts_E), 0);
    }
  }
}

// Central differences of the objective in single elements of `input` against `gradient`. Routing
// must not flip within the step: cases with a near tie are skipped by their counts.
void check_gradient(MoECase& c, Tensor& input, const Tensor& gradient, const char* name,
                    std::mt19937_64& rng) {
  const double step = 1e-5;
  for (int sample = 0; sample < 8 && input.numel() > 0; ++sample) {
    const auto i = static_cast<std::int64_t>(rng() % input.numel());
    const double value = input.get(i);
    const Tensor indices = c.indices_TK;
    input.set(i, value + step);
    c.forward();
    const double above = c.objective();
    bool same_route = same_bits(indices, c.indices_TK);
    input.set(i, value - step);
    c.forward();
    const double below = c.objective();
    same_route &= same_bits(indices, c.indices_TK);
    input.set(i, value);
    c.forward();
    if (!same_route) continue;
    const double expected = (above - below) / (2 * step);
    EXPECT_NEAR(gradient.get(i), expected, 2e-7 * (1 + std::abs(expected)))
        << name << "[" << i << "]";
  }
}

TEST(MoE, GradientsEqualFiniteDifferences) {
  std::mt19937_64 rng(5);
  for (Shape shape : shapes()) {
    if (shape.config.activation == Activation::kRelu) continue;  // a kink may lie within the step
    for (Backend backend : {Backend::kReference, Backend::kAuto}) {
      shape.config.backend = backend;
      MoECase c(shape.config, shape.tokens, DType::kFloat64, 12);
      EXPECT_TRUE(c.forward());
      EXPECT_TRUE(c.backward());
      check_gradient(c, c.x_TD, c.d_x_TD, "x", rng);
      check_gradient(c, c.router_ED, c.d_router_ED, "router", rng);
      check_gradient(c, c.w1_EFD, c.d_w1_EFD, "w1", rng);
      if (shape.config.glu) check_gradient(c, c.v1_EFD, c.d_v1_EFD, "v1", rng);
      check_gradient(c, c.w2_EFD, c.d_w2_EFD, "w2", rng);
      check_gradient(c, c.b1_EF, c.d_b1_EF, "b1", rng);
      check_gradient(c, c.bv1_EF, c.d_bv1_EF, "bv1", rng);
      check_gradient(c, c.b2_ED, c.d_b2_ED, "b2", rng);
      check_gradient(c, c.shared_w1_SD, c.d_shared_w1_SD, "shared_w1", rng);
      check_gradient(c, c.shared_v1_SD, c.d_shared_v1_SD, "shared_v1", rng);
      check_gradient(c, c.shared_w2_SD, c.d_shared_w2_SD, "shared_w2", rng);
      check_gradient(c, c.shared_b1_S, c.d_shared_b1_S, "shared_b1", rng);
      check_gradient(c, c.shared_bv1_S, c.d_shared_bv1_S, "shared_bv1", rng);
      check_gradient(c, c.shared_b2_D, c.d_shared_b2_D, "shared_b2", rng);
    }
  }
}

const DType kDTypes[] = {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// The double layer is given the inputs as rounded to the narrow type, so both must route alike.
TEST(MoE, EveryTypeAndInstructionSetEqualsReferenceInDouble) {
  for (const Shape& shape : shapes()) {
    for (DType dtype : kDTypes) {
      MoECase narrow(shape.config, shape.tokens, dtype, 13);
      MoECase wide = narrow.to(DType::kFloat64);
      wide.config.backend = Backend::kReference;
      wide.forward();
      wide.backward();
      for_each_implementation([&](Backend backend) {
        MoECase c = narrow;
        c.config.backend = backend;
        EXPECT_TRUE(c.forward());
        EXPECT_TRUE(c.backward());
        ASSERT_TRUE(same_bits(c.indices_TK, wide.indices_TK));
        // Intermediates are rounded to the storage type a few times on the way.
        const double tolerance = (dtype == DType::kFloat64 ? 60 : 8) * unit_roundoff(dtype) +
                                 60 * unit_roundoff(accumulator_dtype(dtype));
        EXPECT_LT(relative_error(c.out_TD, wide.out_TD), tolerance);
        EXPECT_LT(relative_error(c.losses_2, wide.losses_2),
                  60 * unit_roundoff(accumulator_dtype(dtype)));
        EXPECT_LT(relative_error(c.d_x_TD, wide.d_x_TD), tolerance);
        EXPECT_LT(relative_error(c.d_w1_EFD, wide.d_w1_EFD), tolerance);
        EXPECT_LT(relative_error(c.d_w2_EFD, wide.d_w2_EFD), tolerance);
        EXPECT_LT(relative_error(c.d_b1_EF, wide.d_b1_EF), tolerance);
        EXPECT_LT(relative_error(c.d_bv1_EF, wide.d_bv1_EF), tolerance);
        EXPECT_LT(relative_error(c.d_b2_ED, wide.d_b2_ED), tolerance);
        EXPECT_LT(relative_error(c.d_shared_w1_SD, wide.d_shared_w1_SD), tolerance);
        EXPECT_LT(relative_error(c.d_shared_v1_SD, wide.d_shared_v1_SD), tolerance);
        EXPECT_LT(relative_error(c.d_shared_w2_SD, wide.d_shared_w2_SD), tolerance);
        EXPECT_LT(relative_error(c.d_shared_b1_S, wide.d_shared_b1_S), tolerance);
        EXPECT_LT(relative_error(c.d_shared_bv1_S, wide.d_shared_bv1_S), tolerance);
        EXPECT_LT(relative_error(c.d_shared_b2_D, wide.d_shared_b2_D), tolerance);
        if (c.config.glu) {
          EXPECT_LT(relative_error(c.d_v1_EFD, wide.d_v1_EFD), tolerance);
        }
        // Normalised weights of K = 1 are constant: their router gradient is rounding noise of the
        // losses'.
        if (c.config.num_experts > 1) {
          EXPECT_LT(relative_error(c.d_router_ED, wide.d_router_ED), 4 * tolerance);
        }
      });
    }
  }
}

TEST(MoE, AllTokensToOneExpertAndEmptyExpertsGetZeroGradients) {
  MoECase c(config_of(6, 1, 20, 12), 50, DType::kFloat32, 14);
  for (std::int64_t i = 0; i < c.x_TD.numel(); ++i) c.x_TD.set(i, std::abs(c.x_TD.get(i)));
  for (std::int64_t i = 0; i < c.router_ED.numel(); ++i) c.router_ED.set(i, i / 20 == 3 ? 1 : -0.1);
  for_each_implementation([&](Backend backend) {
    c.config.backend = backend;
    EXPECT_TRUE(c.forward());
    EXPECT_TRUE(c.backward());
    for (int e = 0; e < 6; ++e) EXPECT_EQ(c.counts_E.get(e), e == 3 ? 50 : 0);
    for (std::int64_t i = 0; i < c.d_w1_EFD.numel(); ++i) {
      EXPECT_EQ(c.d_w1_EFD.get(i) == 0, i / 240 != 3) << i;
      EXPECT_EQ(c.d_v1_EFD.get(i) == 0, i / 240 != 3) << i;
      EXPECT_EQ(c.d_w2_EFD.get(i) == 0, i / 240 != 3) << i;
    }
  });
}

// Everything written by one forward and backward, for a given number of threads.
MoECase run_with_threads(MoECase c, int threads) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  EXPECT_TRUE(c.forward());
  EXPECT_TRUE(c.backward());
  omp_set_num_threads(before);
  return c;
}

TEST(MoE, ThreadsDoNotChangeABit) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    const MoECase input(config_of(8, 2, 96, 160, Activation::kSilu, true, 1), 1100, dtype, 15);
    const MoECase one = run_with_threads(input, 1);
    for (int threads : {2, 3, 4}) {
      const MoECase many = run_with_threads(input, threads);
      EXPECT_TRUE(same_bits(many.out_TD, one.out_TD));
      EXPECT_TRUE(same_bits(many.losses_2, one.losses_2));
      EXPECT_TRUE(same_bits(many.rows_TK, one.rows_TK));
      EXPECT_TRUE(same_bits(many.d_x_TD, one.d_x_TD));
      EXPECT_TRUE(same_bits(many.d_router_ED, one.d_router_ED));
      EXPECT_TRUE(same_bits(many.d_w1_EFD, one.d_w1_EFD));
      EXPECT_TRUE(same_bits(many.d_v1_EFD, one.d_v1_EFD));
      EXPECT_TRUE(same_bits(many.d_w2_EFD, one.d_w2_EFD));
    }
  }
}

TEST(MoE, ASmallerWorkspaceUsesFewerThreadsForTheSameResult) {
  const int before = omp_get_max_threads();
  MoECase c(config_of(4, 2, 64, 96), 600, DType::kFloat32, 16);
  c.forward();
  const Tensor expected = c.out_TD;
  omp_set_num_threads(1);
  Workspace workspace(moe_forward_workspace_bytes(c.config, c.tokens, c.dtype));
  omp_set_num_threads(4);
  moe_forward(c.config, c.x_TD, c.weights(), c.out_TD, c.losses_2, {}, c.saved(), workspace.data(),
              workspace.bytes());
  omp_set_num_threads(before);
  EXPECT_TRUE(workspace.intact());
  EXPECT_TRUE(same_bits(c.out_TD, expected));
}

// Between forward and backward the layer keeps its pre-activations and at most 12 bytes for each
// routed row (weight, index, row), however the tokens fall; the offsets are E + 1 numbers.
TEST(MoE, KeepsTwelveBytesARowBesideThePreActivations) {
  MoECase c(with(config_of(8, 2, 32, 48), {.shared_d_ffn = 40}), 100, DType::kBFloat16, 21);
  EXPECT_TRUE(c.forward());
  const MoESaved saved = c.saved();
  const auto bytes = [](const TensorView& view) {
    return view.numel() * static_cast<std::int64_t>(dtype_bytes(view.dtype));
  };
  const std::int64_t pre_activations = bytes(saved.gate_RF) + bytes(saved.up_RF) +
                                       bytes(saved.shared_gate_TS) + bytes(saved.shared_up_TS);
  EXPECT_EQ(pre_activations, 2 * (200 * 48 * 2 + 100 * 40 * 2));
  EXPECT_LE(bytes(saved.weights_TK) + bytes(saved.indices_TK) + bytes(saved.rows_TK), 12 * 200);
  EXPECT_EQ(bytes(saved.offsets_E1), 9 * 8);
  // Nothing else is kept: all other memory of forward may be gone and overwritten before backward.
  c.backward();
  const Tensor d_w1 = c.d_w1_EFD, d_x = c.d_x_TD, d_router = c.d_router_ED;
  c.out_TD = Tensor(c.dtype, {100, 32});
  c.losses_2 = Tensor(DType::kFloat32, {2});
  c.counts_E = Tensor(DType::kInt32, {8});
  c.backward();
  EXPECT_TRUE(same_bits(c.d_w1_EFD, d_w1));
  EXPECT_TRUE(same_bits(c.d_x_TD, d_x));
  EXPECT_TRUE(same_bits(c.d_router_ED, d_router));
}

#ifdef DROPLESS_COUNTS_ALLOCATIONS
TEST(MoE, NothingIsAllocatedInside) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    MoECase c(with(config_of(8, 2, 64, 96), {true, 1.1, 80, true, true}), 700, dtype, 17);
    c.forward();  // starts the thread pool
    c.backward();
    Workspace forward(moe_forward_workspace_bytes(c.config, c.tokens, c.dtype));
    Workspace backward(moe_backward_workspace_bytes(c.config, c.tokens, c.dtype));
    const MoEWeights weights = c.weights();
    const MoESaved saved = c.saved();
    const MoEGradients gradients = c.gradients();
    const long before = allocations;
    moe_forward(c.config, c.x_TD, weights, c.out_TD, c.losses_2, c.counts_E, saved, forward.data(),
                forward.bytes());
    moe_backward(c.config, c.x_TD, weights, saved, c.d_out_TD, c.d_losses_2, gradients,
                 backward.data(), backward.bytes());
    EXPECT_EQ(allocations, before);
  }
}
#endif

TEST(MoE, OptionalOutputsMayBeAbsent) {
  MoECase c(config_of(4, 2, 16, 24), 30, DType::kFloat32, 18);
  c.forward();
  const Tensor expected = c.out_TD;
  Workspace workspace(moe_forward_workspace_bytes(c.config, c.tokens, c.dtype));
  moe_forward(c.config, c.x_TD, c.weights(), c.out_TD, {}, {}, c.saved(), workspace.data(),
              workspace.bytes());
  EXPECT_TRUE(same_bits(c.out_TD, expected));
  // No gradient of the losses is a gradient of zero.
  c.d_losses_2.set(0, 0);
  c.d_losses_2.set(1, 0);
  c.backward();
  const Tensor d_router = c.d_router_ED, d_x = c.d_x_TD;
  c.d_losses_2 = Tensor();
  c.backward();
  EXPECT_LT(relative_error(c.d_router_ED, d_router), 1e-6);
  EXPECT_LT(relative_error(c.d_x_TD, d_x), 1e-6);
}

TEST(MoE, SaysWhatHasNoKernel) {
  const Device gpu{DeviceType::kCuda, 0};
  MoECase c(config_of(4, 2, 16, 24), 3, DType::kFloat32, 20);
  EXPECT_EQ(moe_unsupported(c.config, c.dtype, {}), "");
  EXPECT_THAT(moe_unsupported(c.config, c.dtype, gpu), HasSubstr("float32"));
  // That a layer is for the CPU only is said whether or not there is a GPU.
  const MoEConfig shared = with(config_of(4, 2, 16, 24), {.shared_d_ffn = 8});
  EXPECT_EQ(moe_unsupported(shared, DType::kBFloat16, {}), "");
  EXPECT_THAT(moe_unsupported(shared, DType::kBFloat16, gpu), HasSubstr("shared expert"));
  TensorView x_TD = c.x_TD;
  x_TD.device = gpu;
  try {
    moe_forward(c.config, x_TD, c.weights(), c.out_TD, {}, {}, c.saved(), nullptr, 0);
    FAIL() << "did not throw";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_THAT(error.what(), HasSubstr("moe_forward: the GPU kernels take bfloat16"));
  }
}

std::string error_of(MoECase& c) {
  try {
    c.forward();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    return error.what();
  }
  return "no error";
}

TEST(MoE, BadArgumentsAreNamed) {
  const MoECase good(config_of(4, 2, 6, 5), 3, DType::kFloat32, 19);
  const auto error_after = [&](auto&& change) {
    MoECase c = good;
    change(c);
    return error_of(c);
  };
  EXPECT_THAT(error_after([](MoECase& c) { c.config.top_k = 5; }),
              HasSubstr("cannot choose top_k 5 of 4 experts"));
  EXPECT_THAT(error_after([](MoECase& c) { c.config.d_ffn = 0; }), HasSubstr("d_ffn 0"));
  EXPECT_THAT(error_after([](MoECase& c) { c.config.route.normalize_p = -2; }),
              HasSubstr("normalize_p is -2"));
  EXPECT_THAT(error_after([](MoECase& c) {
                c.w2_EFD = Tensor(DType::kFloat32, {4, 6, 5});
              }),
              HasSubstr("moe_forward: w2_EFD is [4, 6, 5] float32, expected [4, 5, 6] float32"));
  EXPECT_THAT(error_after([](MoECase& c) { c.router_ED = c.router_ED.to(DType::kFloat64); }),
              HasSubstr("router_ED is [4, 6] float64, expected [4, 6] float32"));
  EXPECT_THAT(error_after([](MoECase& c) { c.v1_EFD = Tensor(); }), HasSubstr("v1_EFD is absent"));
  EXPECT_THAT(error_after([](MoECase& c) { c.config.glu = false; }),
              HasSubstr("the layer is not gated"));
  EXPECT_THAT(error_after([](MoECase& c) {
                c.rows_TK = Tensor(DType::kInt64, {3, 2});
              }),
              HasSubstr("saved.rows_TK is [3, 2] int64, expected [3, 2] int32"));
  EXPECT_THAT(error_after([](MoECase& c) {
                c.x_TD = Tensor(DType::kInt32, {3, 6});
              }),
              HasSubstr("x_TD is [3, 6] int32"));
  EXPECT_THAT(error_after([](MoECase& c) { c.config.route.num_groups = 3; }),
              HasSubstr("num_groups is 3, but there are 4 experts"));
  EXPECT_THAT(error_after([](MoECase& c) { c.config.shared_bias = true; }),
              HasSubstr("shared_bias is set, but shared_d_ffn is 0"));
  EXPECT_THAT(error_after([](MoECase& c) { c.config.selection_bias = true; }),
              HasSubstr("selection_bias_E is absent, expected [4] float32"));
  EXPECT_THAT(error_after([](MoECase& c) { c.bias_E = Tensor(DType::kFloat32, {4}); }),
              HasSubstr("but the layer has none"));
  EXPECT_THAT(error_after([](MoECase& c) {
                c.config.route.selection = kGiven;
                for (int i = 0; i < 6; ++i) c.indices_TK.set(i, i == 3 ? 4 : 0);
              }),
              HasSubstr("saved.indices_TK[1, 1] is 4, but there are 4 experts"));
  EXPECT_EQ(error_after([](MoECase&) {}), "no error");
}

// w1 and v1, and their gradients, as the halves of one [E, 2 F, D] tensor: the same bits as apart.
TEST(MoE, GateAndUpMayBeHalvesOfOneTensor) {
  MoEConfig config = with(config_of(5, 2, 40, 24), {.expert_bias = true});
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const Backend backend : {Backend::kAuto, Backend::kReference}) {
      config.backend = backend;
      MoECase apart(config, 70, dtype, 3), halves(config, 70, dtype, 3);
      ASSERT_TRUE(apart.forward() && apart.backward());
      constexpr std::int64_t E = 5, F = 24, D = 40;
      const std::int64_t half = F * D;
      Tensor both(dtype, {E, 2 * F, D}), d_both(dtype, {E, 2 * F, D});
      const auto half_of = [&](Tensor& tensor, std::int64_t i) {
        TensorView view(
            tensor.as<char>() + i * half * static_cast<std::int64_t>(dtype_bytes(dtype)), dtype,
            {E, F, D});
        view.stride[0] = 2 * half;
        return view;
      };
      for (std::int64_t i = 0; i < E * half; ++i) {
        both.set(i / half * 2 * half + i % half, apart.w1_EFD.get(i));
        both.set(i / half * 2 * half + half + i % half, apart.v1_EFD.get(i));
      }
      MoEWeights weights = halves.weights();
      weights.w1_EFD = half_of(both, 0);
      weights.v1_EFD = half_of(both, 1);
      MoEGradients gradients = halves.gradients();
      gradients.w1_EFD = half_of(d_both, 0);
      gradients.v1_EFD = half_of(d_both, 1);
      Workspace space(std::max(moe_forward_workspace_bytes(config, 70, dtype),
                               moe_backward_workspace_bytes(config, 70, dtype)));
      moe_forward(config, halves.x_TD, weights, halves.out_TD, halves.losses_2, {}, halves.saved(),
                  space.data(), space.bytes());
      moe_backward(config, halves.x_TD, weights, halves.saved(), halves.d_out_TD, halves.d_losses_2,
                   gradients, space.data(), space.bytes());
      EXPECT_TRUE(space.intact());
      EXPECT_TRUE(same_bits(halves.out_TD, apart.out_TD));
      EXPECT_TRUE(same_bits(halves.d_x_TD, apart.d_x_TD));
      EXPECT_TRUE(same_bits(halves.d_w2_EFD, apart.d_w2_EFD));
      for (std::int64_t i = 0; i < E * half; ++i) {
        ASSERT_EQ(d_both.get(i / half * 2 * half + i % half), apart.d_w1_EFD.get(i));
        ASSERT_EQ(d_both.get(i / half * 2 * half + half + i % half), apart.d_v1_EFD.get(i));
      }
      weights.w1_EFD.stride[0] = half - 1;
      EXPECT_THROW(moe_forward(config, halves.x_TD, weights, halves.out_TD, {}, {}, halves.saved(),
                               space.data(), space.bytes()),
                   Error);
    }
  }
}

// fp32 gradients of a 16-bit layer's weights: two calls add up to twice one call's, which rounds to the 16-bit one.
TEST(MoE, AddsToFp32GradientsOfWeights) {
  MoEConfig config = config_of(6, 2, 40, 24);
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const Backend backend : {Backend::kAuto, Backend::kReference}) {
      config.backend = backend;
      MoECase c(config, 9, dtype, 4);  // some experts without a row
      ASSERT_TRUE(c.forward() && c.backward());
      Workspace space(moe_backward_workspace_bytes(config, 9, dtype));
      Tensor sums[3] = {Tensor(DType::kFloat32, {6, 24, 40}), Tensor(DType::kFloat32, {6, 24, 40}),
                        Tensor(DType::kFloat32, {6, 24, 40})};
      MoEGradients gradients = c.gradients();
      TensorView* const views[3] = {&gradients.w1_EFD, &gradients.v1_EFD, &gradients.w2_EFD};
      for (int i = 0; i < 3; ++i) {
        for (std::int64_t j = 0; j < sums[i].numel(); ++j) sums[i].set(j, 0);
        *views[i] = sums[i];
      }
      Tensor once[3];
      for (int call = 0; call < 2; ++call) {
        ASSERT_TRUE(c.forward());  // backward writes over the pre-activations
        moe_backward(config, c.x_TD, c.weights(), c.saved(), c.d_out_TD, c.d_losses_2, gradients,
                     space.data(), space.bytes());
        for (int i = 0; call == 0 && i < 3; ++i) once[i] = sums[i];
      }
      EXPECT_TRUE(space.intact());
      const Tensor* rounded[3] = {&c.d_w1_EFD, &c.d_v1_EFD, &c.d_w2_EFD};
      for (int i = 0; i < 3; ++i) {
        EXPECT_TRUE(same_bits(once[i].to(dtype), *rounded[i]));
        for (std::int64_t j = 0; j < sums[i].numel(); ++j) {
          ASSERT_FLOAT_EQ(static_cast<float>(sums[i].get(j)),
                          static_cast<float>(2 * once[i].get(j)));
        }
      }
    }
  }
}

TEST(MoE, SizesThatOverflowAreRefused) {
  const std::int64_t huge = std::int64_t{1} << 60;
  const auto query = [&](const MoEConfig& config, std::int64_t tokens) {
    const std::string forward =
        message_of([&] { moe_forward_workspace_bytes(config, tokens, DType::kFloat32); });
    const std::string backward =
        message_of([&] { moe_backward_workspace_bytes(config, tokens, DType::kFloat32); });
    EXPECT_EQ(forward == "no error", backward == "no error");
    return forward;
  };
  const std::string too_large = "more bytes than there are addresses";
  EXPECT_EQ(query(config_of(4, 2, 6, 5), 3), "no error");
  EXPECT_THAT(query(config_of(4, 2, 6, 5), huge), HasSubstr("reach 2^31 rows"));
  EXPECT_THAT(query(config_of(4, 2, 6, 5), -1), HasSubstr("there are -1 tokens"));
  EXPECT_THAT(query(config_of(4, 2, 6, huge), 3), HasSubstr(too_large));
  EXPECT_THAT(query(config_of(huge, 2, 6, 5), 0), HasSubstr(too_large));
  MoECase c(config_of(4, 2, 6, 5), 3, DType::kFloat32, 19);
  c.config.d_model = huge;
  EXPECT_THAT(error_of(c), HasSubstr(too_large));
  // A view of more elements than its config speaks of.
  ConstTensorView x = c.x_TD;
  x.shape[1] = x.stride[0] = huge;
  EXPECT_THAT(message_of([&] { activation_forward(Activation::kRelu, x, {}, c.out_TD); }),
              HasSubstr("is larger than any memory"));
}

TEST(MoE, ViewsThatAreNotContiguousAreRefused) {
  MoECase c(config_of(4, 2, 6, 5), 3, DType::kFloat32, 20);
  Workspace workspace(moe_forward_workspace_bytes(c.config, c.tokens, c.dtype));
  ConstTensorView x = c.x_TD;
  x.stride[0] = 12;
  try {
    moe_forward(c.config, x, c.weights(), c.out_TD, c.losses_2, c.counts_E, c.saved(),
                workspace.data(), workspace.bytes());
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("x_TD [3, 6] float32 is not contiguous"));
    EXPECT_THAT(error.what(), HasSubstr("src/ops/expect.cc:"));
    EXPECT_THAT(error.hint(), HasSubstr("contiguous copy"));
  }
}

}  // namespace
}  // namespace dropless::testing
