// The layer of a GPU (src/ops/moe_cuda.cc: which kernel comes when, on what memory) on kernels in plain loops, against the layer in
// double: needs no GPU. Everything starts as NaN; gathers beside products run before them and after them; what is only read keeps
// its bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

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

// Where an expert's rows of w1 (from `first` of `pitch` rows) and of v1 lie in one tensor, and their gradients in another.
struct Shared {
  std::int64_t w1, v1, pitch;  // in matrices of d_ffn rows
};
constexpr Shared kApart = {0, 0, 0};     // two tensors
constexpr Shared kHalves = {0, 1, 2};    // gate before up
constexpr Shared kUpFirst = {1, 0, 2};   // as halves, but in the other order
constexpr Shared kWithGaps = {0, 2, 4};  // somebody else's matrices between them
constexpr Shared kGapBehind = {0, 1, 3};

struct Layout {
  Shared shared = kApart;
  bool fp32 = false;   // gradients of w1, v1 and w2, to which is added
  bool losses = true;  // and their gradients
};

// A case's tensors in another layout and as if on a GPU.
class HostLayer {
 public:
  HostLayer(MoECase& c, const Layout& layout) : case_(c), layout_(layout) {
    const std::int64_t E = c.config.num_experts, F = c.config.d_ffn, D = c.config.d_model;
    if (layout.fp32) {
      for (Tensor* gradient : {&c.d_w1_EFD, &c.d_v1_EFD, &c.d_w2_EFD}) {
        if (!*gradient) continue;
        *gradient = Tensor(DType::kFloat32, {E, F, D});
        for (std::int64_t i = 0; i < gradient->numel(); ++i) gradient->set(i, 1);
      }
    }
    if (is_shared()) {
      shared_ = Tensor(c.dtype, {E, layout.shared.pitch * F, D});
      d_shared_ = Tensor(c.d_w1_EFD.dtype(), {E, layout.shared.pitch * F, D});
      for (std::int64_t i = 0; i < d_shared_.numel(); ++i) d_shared_.set(i, kUntouched);
      copy(shared_, c.w1_EFD, layout.shared.w1, true),
          copy(shared_, c.v1_EFD, layout.shared.v1, true);
      if (layout.fp32) {
        copy(d_shared_, c.d_w1_EFD, layout.shared.w1, true);
        copy(d_shared_, c.d_v1_EFD, layout.shared.v1, true);
      }
    }
  }

  void run() { run(/*compare=*/true); }
  void run_only() { run(/*compare=*/false); }

 private:
  void run(bool compare) {
    MoECase& c = case_;
    const Device gpu{DeviceType::kCuda, 0};
    int stream = 0;
    plain_kernels().stream = &stream;
    const MoEWeights weights = {.router_ED = on_gpu(c.router_ED),
                                .w1_EFD = part(shared_, c.w1_EFD, layout_.shared.w1),
                                .v1_EFD = part(shared_, c.v1_EFD, layout_.shared.v1),
                                .w2_EFD = on_gpu(c.w2_EFD),
                                .selection_bias_E = on_gpu(c.bias_E),
                                .b1_EF = on_gpu(c.b1_EF),
                                .bv1_EF = on_gpu(c.bv1_EF),
                                .b2_ED = on_gpu(c.b2_ED)};
    const MoESaved saved = {on_gpu(c.gate_RF),    on_gpu(c.up_RF),   on_gpu(c.weights_TK),
                            on_gpu(c.indices_TK), on_gpu(c.rows_TK), on_gpu(c.offsets_E1)};
    const MoEGradients gradients = {.x_TD = on_gpu(c.d_x_TD),
                                    .router_ED = on_gpu(c.d_router_ED),
                                    .w1_EFD = part(d_shared_, c.d_w1_EFD, layout_.shared.w1),
                                    .v1_EFD = part(d_shared_, c.d_v1_EFD, layout_.shared.v1),
                                    .w2_EFD = on_gpu(c.d_w2_EFD),
                                    .b1_EF = on_gpu(c.d_b1_EF),
                                    .bv1_EF = on_gpu(c.d_bv1_EF),
                                    .b2_ED = on_gpu(c.d_b2_ED)};
    const auto if_wanted = [&](Tensor& tensor) {
      return layout_.losses ? on_gpu(tensor) : TensorView();
    };
    {
      Workspace space(moe_forward_workspace_bytes(c.config, c.tokens, c.dtype, gpu));
      std::memset(space.data(), 0xff, space.bytes());
      const std::vector<Tensor> read = only_read(/*backward=*/false);
      moe_forward(c.config, on_gpu(c.x_TD), weights, on_gpu(c.out_TD), if_wanted(c.losses_2),
                  if_wanted(c.counts_E), saved, space.data(), space.bytes(), &stream);
      EXPECT_TRUE(space.intact());
      expect_unchanged(read, only_read(/*backward=*/false));
    }
    MoECase reference = c.to(DType::kFloat64);
    for (int i = 0; i < 2 && !layout_.losses; ++i) reference.d_losses_2.set(i, 0);
    if (compare) ASSERT_TRUE(reference.forward());
    if (!layout_.losses) c.losses_2 = reference.losses_2.to(DType::kFloat32);
    if (!layout_.losses) c.counts_E = reference.counts_E;
    if (compare) expect_forward_matches(c, reference);

    Workspace space(moe_backward_workspace_bytes(c.config, c.tokens, c.dtype, gpu));
    std::memset(space.data(), 0xff, space.bytes());
    const std::vector<Tensor> read = only_read(/*backward=*/true);
    moe_backward(c.config, on_gpu(c.x_TD), weights, saved, on_gpu(c.d_out_TD),
                 if_wanted(c.d_losses_2), gradients, space.data(), space.bytes(), &stream);
    EXPECT_TRUE(space.intact());
    expect_unchanged(read, only_read(/*backward=*/true));
    if (!compare) return;
    ASSERT_TRUE(reference.backward());
    if (is_shared()) {
      copy(d_shared_, c.d_w1_EFD, layout_.shared.w1, false);
      copy(d_shared_, c.d_v1_EFD, layout_.shared.v1, false);
      expect_gaps_untouched();
    }
    if (layout_.fp32) {
      for (Tensor* gradient : {&c.d_w1_EFD, &c.d_v1_EFD, &c.d_w2_EFD}) {
        for (std::int64_t i = 0; i < gradient->numel(); ++i) {
          gradient->set(i, gradient->get(i) - 1);
        }
      }
    }
    expect_backward_matches(c, reference);
  }

  static constexpr double kUntouched = 1.25;

  bool is_shared() const { return layout_.shared.pitch > 0 && case_.config.glu; }
  // Backward reads what forward kept too, but for gate and up, which it replaces.
  std::vector<Tensor> only_read(bool backward) const {
    const MoECase& c = case_;
    std::vector<Tensor> tensors = {c.x_TD,   c.router_ED, c.w1_EFD,     c.v1_EFD,
                                   c.w2_EFD, c.d_out_TD,  c.d_losses_2, c.b1_EF,
                                   c.bv1_EF, c.b2_ED,     c.bias_E,     shared_};
    if (backward) {
      tensors.insert(tensors.end(), {c.weights_TK, c.indices_TK, c.rows_TK, c.offsets_E1});
    }
    return tensors;
  }
  static void expect_unchanged(const std::vector<Tensor>& before,
                               const std::vector<Tensor>& after) {
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_TRUE(!before[i] || same_bits(before[i], after[i])) << "input " << i;
    }
  }
  TensorView part(Tensor& whole, Tensor& own, std::int64_t which) {
    if (!is_shared()) return on_gpu(own);
    TensorView view = on_gpu(whole);
    view.shape[1] = own.dim(1);
    view.data =
        static_cast<char*>(view.data) +
        which * view.shape[1] * view.stride[1] * static_cast<std::int64_t>(dtype_bytes(view.dtype));
    return view;
  }
  void copy(Tensor& whole, Tensor& own, std::int64_t which, bool to_whole) const {
    const std::int64_t size = own.dim(1) * own.dim(2);
    for (std::int64_t i = 0; i < own.numel(); ++i) {
      const std::int64_t at = (i / size * layout_.shared.pitch + which) * size + i % size;
      if (to_whole) {
        whole.set(at, own.get(i));
      } else {
        own.set(i, whole.get(at));
      }
    }
  }
  void expect_gaps_untouched() const {
    const std::int64_t size = case_.d_w1_EFD.dim(1) * case_.d_w1_EFD.dim(2);
    for (std::int64_t i = 0; i < d_shared_.numel(); ++i) {
      const std::int64_t matrix = i / size % layout_.shared.pitch;
      if (matrix == layout_.shared.w1 || matrix == layout_.shared.v1) continue;
      ASSERT_EQ(d_shared_.get(i), kUntouched);
    }
  }

  MoECase& case_;
  Layout layout_;
  Tensor shared_, d_shared_;
};

void expect_matches_double(const MoEConfig& config, std::int64_t tokens, const Layout& layout = {},
                           DType dtype = DType::kBFloat16, std::uint64_t seed = 5) {
  for (const bool after : {false, true}) {
    SCOPED_TRACE(::testing::Message()
                 << "T " << tokens << ", D " << config.d_model << ", F " << config.d_ffn << ", E "
                 << config.num_experts << ", K " << config.top_k << ", activation "
                 << static_cast<int>(config.activation) << ", glu " << config.glu
                 << ", normalize_p " << config.route.normalize_p << ", bias " << config.expert_bias
                 << ", capacity " << config.capacity_factor << ", " << dtype_name(dtype) << ", w1 "
                 << layout.shared.w1 << " and v1 " << layout.shared.v1 << " of "
                 << layout.shared.pitch << ", fp32 gradients " << layout.fp32 << ", seed " << seed
                 << ", gathers " << (after ? "after" : "before") << " products");
    plain_kernels().gather_after_products = after;
    MoECase c(config, tokens, dtype, seed);
    make_logits_exact(c);
    // As large beside the experts' part of the router's gradient as one of them.
    for (int i = 0; i < 2; ++i) {
      c.d_losses_2.set(i, c.d_losses_2.get(i) * static_cast<double>(tokens));
    }
    HostLayer(c, layout).run();
  }
  plain_kernels().gather_after_products = false;
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
  expect_matches_double(config_of(2, 1, 1032, 1032), 8);  // three slabs
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

TEST(MoEComposition, GateAndUpMayShareATensor) {
  for (const Shared& shared : {kHalves, kUpFirst, kWithGaps, kGapBehind}) {
    for (const bool fp32 : {false, true}) {
      expect_matches_double(config_of(6, 2, 776, 40), 60, {.shared = shared, .fp32 = fp32});
      expect_matches_double(config_of(2, 2, 776, 40), 100, {.shared = shared, .fp32 = fp32});
    }
    expect_matches_double(config_of(3, 2, 264, 2056), 10, {.shared = shared});
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

// The way of few tokens forward, where kernels.h has one, and what it leaves for backward; not with biases.
TEST(MoEComposition, SmallBatches) {
  plain_kernels().small_batches = true;
  for (const MoEConfig& config :
       {config_of(16, 2, 72, 24), config_of(16, 3, 264, 40, Activation::kRelu, false, 1),
        with_bias(config_of(16, 2, 72, 24))}) {
    for (const std::int64_t tokens : {5, 40}) {
      expect_matches_double(config, tokens);
      expect_matches_double(config, tokens, {.shared = kHalves});
    }
  }
  plain_kernels().small_batches = false;
}

// Nobody looks at given indices before they are used.
TEST(MoEComposition, GivenIndicesOfNoExpertHaveNoRow) {
  MoEConfig config = config_of(8, 2, 264, 24);
  config.route.selection = RouteSelection::kGiven;
  MoECase c(config, 30, DType::kBFloat16, 5);
  c.indices_TK.set(14, -1), c.indices_TK.set(15, 8);
  HostLayer(c, {}).run_only();
  for (std::int64_t i = 0; i < c.rows_TK.numel(); ++i) {
    EXPECT_EQ(c.rows_TK.get(i) == -1, i == 14 || i == 15);
  }
  for (std::int64_t d = 0; d < config.d_model; ++d) EXPECT_EQ(c.out_TD.get(7 * 264 + d), 0);
  for (std::int64_t i = 0; i < c.d_x_TD.numel(); ++i) EXPECT_TRUE(std::isfinite(c.d_x_TD.get(i)));
}

// What observe.h hears: all of the layer's operations, whatever slabs they are cut into.
TEST(MoEComposition, TellsItsParts) {
  for (const auto& [glu, d_ffn] :
       {std::pair{true, 40}, std::pair{false, 40}, std::pair{true, 2056}}) {
    MoEConfig config = config_of(3, 2, 520, d_ffn);
    config.glu = glu;
    MoECase c(config, 4, DType::kBFloat16, 3);
    const auto [names, flops] = parts_told([&] { HostLayer(c, {}).run_only(); });
    for (const char* name :
         {"router", "route", "order", "up", "down", "combine", "prepare", "d_activation",
          "d_scores", "d_router", "d_w2", "d_w1", "d_x", "add d_x"}) {
      EXPECT_TRUE(names.contains(name)) << name;
    }
    EXPECT_EQ(names.contains("d_v1"), glu);
    if (d_ffn > 2048) EXPECT_TRUE(names.contains("gather"));
    const double layer = (glu ? 18.0 : 12.0) * 8 * 520 * d_ffn, router = 8.0 * 4 * 520 * 3;
    EXPECT_DOUBLE_EQ(flops, layer + router);
  }
}

TEST(MoEComposition, LossesMayBeAbsent) {
  expect_matches_double(config_of(6, 2, 264, 40), 60, {.losses = false});
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
    const Layout layout = {.shared = draw(0, 1) == 1 ? kHalves : kApart, .fp32 = draw(0, 2) == 0};
    expect_matches_double(config, draw(1, 120), layout,
                          draw(0, 1) == 0 ? DType::kBFloat16 : DType::kFloat16, random());
  }
}

}  // namespace
}  // namespace dropless::testing
