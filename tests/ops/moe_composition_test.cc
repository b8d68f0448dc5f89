// The layer of a GPU (src/ops/moe_cuda.cc: which kernel comes when, on what memory) on kernels in plain loops, against the layer in
// double: needs no GPU. Everything starts as NaN; gathers beside products run before them and after them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "dropless/moe.h"
#include "tests/ops/moe_case.h"
#include "tests/ops/plain_kernels.h"

namespace dropless::testing {
namespace {

TensorView on_gpu(Tensor& tensor) {
  TensorView view = tensor;
  view.device = {DeviceType::kCuda, 0};
  return view;
}

struct Layout {
  bool halves = false;  // w1 and v1 as the halves of one tensor, and their gradients
  bool fp32 = false;    // gradients of w1, v1 and w2, to which is added
};

// A case's tensors in another layout and as if on a GPU.
class HostLayer {
 public:
  HostLayer(MoECase& c, const Layout& layout) : case_(c), layout_(layout) {
    const std::int64_t E = c.config.num_experts, F = c.config.d_ffn, D = c.config.d_model;
    if (layout.halves) {
      w13_E2FD_ = Tensor(c.dtype, {E, 2 * F, D});
      d_w13_E2FD_ = Tensor(layout.fp32 ? DType::kFloat32 : c.dtype, {E, 2 * F, D});
      copy_halves(c.w1_EFD, c.v1_EFD, /*to_whole=*/true);
    }
    if (layout.fp32) {
      for (Tensor* gradient : {&c.d_w1_EFD, &c.d_v1_EFD, &c.d_w2_EFD}) {
        if (*gradient) *gradient = Tensor(DType::kFloat32, {E, F, D});
      }
      for (Tensor* gradient : {&c.d_w1_EFD, &c.d_v1_EFD, &c.d_w2_EFD, &d_w13_E2FD_}) {
        for (std::int64_t i = 0; i < gradient->numel(); ++i) gradient->set(i, 1);
      }
    }
  }

  void run() {
    MoECase& c = case_;
    const Device gpu{DeviceType::kCuda, 0};
    MoEWeights weights = {.router_ED = on_gpu(c.router_ED),
                          .w1_EFD = half(w13_E2FD_, c.w1_EFD, 0),
                          .v1_EFD = half(w13_E2FD_, c.v1_EFD, 1),
                          .w2_EFD = on_gpu(c.w2_EFD),
                          .selection_bias_E = on_gpu(c.bias_E),
                          .b1_EF = on_gpu(c.b1_EF),
                          .bv1_EF = on_gpu(c.bv1_EF),
                          .b2_ED = on_gpu(c.b2_ED)};
    const MoESaved saved = {on_gpu(c.gate_RF),    on_gpu(c.up_RF),   on_gpu(c.weights_TK),
                            on_gpu(c.indices_TK), on_gpu(c.rows_TK), on_gpu(c.offsets_E1)};
    const MoEGradients gradients = {.x_TD = on_gpu(c.d_x_TD),
                                    .router_ED = on_gpu(c.d_router_ED),
                                    .w1_EFD = half(d_w13_E2FD_, c.d_w1_EFD, 0),
                                    .v1_EFD = half(d_w13_E2FD_, c.d_v1_EFD, 1),
                                    .w2_EFD = on_gpu(c.d_w2_EFD),
                                    .b1_EF = on_gpu(c.d_b1_EF),
                                    .bv1_EF = on_gpu(c.d_bv1_EF),
                                    .b2_ED = on_gpu(c.d_b2_ED)};
    {
      Workspace space(moe_forward_workspace_bytes(c.config, c.tokens, c.dtype, gpu));
      std::memset(space.data(), 0xff, space.bytes());
      moe_forward(c.config, on_gpu(c.x_TD), weights, on_gpu(c.out_TD), on_gpu(c.losses_2),
                  on_gpu(c.counts_E), saved, space.data(), space.bytes());
      EXPECT_TRUE(space.intact());
      reference_ = c.to(DType::kFloat64);
      ASSERT_TRUE(reference_.forward());
      expect_forward_matches(c, reference_);
    }
    Workspace space(moe_backward_workspace_bytes(c.config, c.tokens, c.dtype, gpu));
    std::memset(space.data(), 0xff, space.bytes());
    moe_backward(c.config, on_gpu(c.x_TD), weights, saved, on_gpu(c.d_out_TD), on_gpu(c.d_losses_2),
                 gradients, space.data(), space.bytes());
    EXPECT_TRUE(space.intact());
    ASSERT_TRUE(reference_.backward());
    if (layout_.halves) copy_halves(c.d_w1_EFD, c.d_v1_EFD, /*to_whole=*/false);
    if (layout_.fp32) {
      for (Tensor* gradient : {&c.d_w1_EFD, &c.d_v1_EFD, &c.d_w2_EFD}) {
        for (std::int64_t i = 0; i < gradient->numel(); ++i) {
          gradient->set(i, gradient->get(i) - 1);
        }
      }
    }
    expect_backward_matches(c, reference_);
  }

 private:
  TensorView half(Tensor& whole, Tensor& own, int which) {
    if (!layout_.halves || !own) return on_gpu(own);
    TensorView view = on_gpu(whole);
    view.shape[1] /= 2;
    view.data = static_cast<char*>(view.data) +
                which * view.shape[1] * view.stride[1] * static_cast<int>(dtype_bytes(view.dtype));
    return view;
  }
  void copy_halves(Tensor& first, Tensor& second, bool to_whole) {
    Tensor& whole = to_whole ? w13_E2FD_ : d_w13_E2FD_;
    const std::int64_t size = first.dim(1) * first.dim(2);
    for (std::int64_t i = 0; i < first.numel(); ++i) {
      const std::int64_t at = i / size * 2 * size + i % size;
      if (to_whole) {
        whole.set(at, first.get(i)), whole.set(at + size, second.get(i));
      } else {
        first.set(i, whole.get(at)), second.set(i, whole.get(at + size));
      }
    }
  }

  MoECase& case_;
  Layout layout_;
  MoECase reference_{config_of(1, 1, 8, 8), 0, DType::kFloat64, 0};
  Tensor w13_E2FD_, d_w13_E2FD_;
};

void expect_matches_double(const MoEConfig& config, std::int64_t tokens, const Layout& layout = {},
                           DType dtype = DType::kBFloat16, std::uint64_t seed = 5) {
  for (const bool after : {false, true}) {
    SCOPED_TRACE(::testing::Message()
                 << "T " << tokens << ", D " << config.d_model << ", F " << config.d_ffn << ", E "
                 << config.num_experts << ", K " << config.top_k << ", gathers "
                 << (after ? "after" : "before") << " products");
    gather_after_products(after);
    MoECase c(config, tokens, dtype, seed);
    make_logits_exact(c);
    HostLayer(c, layout).run();
  }
  gather_after_products(false);
}

MoEConfig with_bias(MoEConfig config) {
  config.expert_bias = true;
  return config;
}

// Narrow experts, several slabs: all of d_out's rows in dW1; some columns there, some in dV1; none, for want of room; x's in
// scaled_h too; no dV1.
TEST(MoEComposition, NarrowExperts) {
  expect_matches_double(config_of(6, 2, 1032, 40), 60);
  expect_matches_double(config_of(2, 2, 1032, 40), 100);
  expect_matches_double(config_of(2, 2, 776, 24), 150);
  expect_matches_double(config_of(3, 2, 1032, 304, Activation::kGeluTanh), 50);
  expect_matches_double(config_of(2, 2, 1544, 264), 20);
  expect_matches_double(config_of(4, 2, 1032, 40, Activation::kRelu, false), 60);
}

// Rows are gathered before the up projection, products of d_x come last.
TEST(MoEComposition, WideExperts) {
  expect_matches_double(config_of(3, 2, 264, 2056), 20);
  expect_matches_double(config_of(1, 1, 520, 2056, Activation::kGelu, false), 20);
}

TEST(MoEComposition, Biases) {
  expect_matches_double(with_bias(config_of(6, 2, 776, 40, Activation::kSilu, true, 1)), 70);
  expect_matches_double(with_bias(config_of(4, 3, 520, 24, Activation::kQuickGelu, false)), 50, {},
                        DType::kFloat16);
  expect_matches_double(with_bias(config_of(2, 1, 264, 2056)), 10);
}

TEST(MoEComposition, GateAndUpMayBeHalves) {
  for (const bool fp32 : {false, true}) {
    expect_matches_double(config_of(6, 2, 1032, 40), 60, {.halves = true, .fp32 = fp32});
    expect_matches_double(config_of(2, 2, 1032, 40), 100, {.halves = true, .fp32 = fp32});
    expect_matches_double(config_of(3, 2, 264, 2056), 10, {.halves = true, .fp32 = fp32});
  }
}

TEST(MoEComposition, AddsToFp32Gradients) {
  expect_matches_double(with_bias(config_of(6, 2, 776, 40)), 60, {.fp32 = true});
  expect_matches_double(config_of(4, 2, 520, 40, Activation::kSilu, false), 60, {.fp32 = true});
}

TEST(MoEComposition, Routers) {
  const auto routed = [](const RouteConfig& route, double capacity = 0, bool bias = false) {
    MoEConfig config = with_bias(config_of(8, 3, 520, 24));
    config.route = route;
    config.capacity_factor = capacity;
    config.selection_bias = bias;
    return config;
  };
  expect_matches_double(routed({.score = RouteScore::kSigmoid, .normalize_p = 1}), 60);
  expect_matches_double(
      routed({.num_groups = 4, .group_top_k = 2, .normalize_p = 2, .scaling_factor = 2.5}, 0, true),
      60);
  expect_matches_double(routed({.selection = RouteSelection::kUniform}), 60);
  expect_matches_double(routed({.selection = RouteSelection::kGiven}), 60);
  expect_matches_double(routed({}, 0.5), 60);
  expect_matches_double(routed({.normalize_p = 1}, 1.0), 61);
}

TEST(MoEComposition, FewTokens) {
  for (const std::int64_t tokens : {0, 1, 3}) {
    expect_matches_double(with_bias(config_of(5, 2, 72, 24)), tokens, {}, DType::kFloat16);
  }
  expect_matches_double(config_of(3, 3, 8, 8), 40);
}

TEST(MoEComposition, RandomLayers) {
  std::mt19937_64 random(20261201);
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
  };
  for (int i = 0; i < 12; ++i) {
    const std::int64_t experts = draw(1, 9), top_k = draw(1, std::min<std::int64_t>(experts, 4));
    MoEConfig config =
        config_of(experts, top_k, 8 * draw(1, 140), 8 * draw(1, 8), static_cast<Activation>(i % 5),
                  draw(0, 2) > 0, static_cast<double>(i % 3));
    config.expert_bias = draw(0, 1) == 1;
    if (draw(0, 2) == 0) config.capacity_factor = static_cast<double>(draw(4, 12)) / 8;
    const Layout layout = {.halves = config.glu && draw(0, 1) == 1, .fp32 = draw(0, 2) == 0};
    expect_matches_double(config, draw(1, 120), layout,
                          draw(0, 1) == 0 ? DType::kBFloat16 : DType::kFloat16, random());
  }
}

}  // namespace
}  // namespace dropless::testing
