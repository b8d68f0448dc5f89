// The whole layer: against a naive layer in double, against finite differences, against its own
// reference backend, over storage types, for any number of threads, and with bad arguments.
#include "dropless/moe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include "dropless/error.h"
#include "tests/ops/moe_case.h"

namespace dropless::testing {
namespace {

using ::testing::HasSubstr;

MoEConfig config_of(std::int64_t experts, std::int64_t top_k, std::int64_t d_model,
                    std::int64_t d_ffn, Activation activation = Activation::kSilu, bool glu = true,
                    double normalize_p = 0) {
  return {.num_experts = experts,
          .top_k = top_k,
          .d_model = d_model,
          .d_ffn = d_ffn,
          .activation = activation,
          .glu = glu,
          .normalize_p = normalize_p};
}

struct Shape {
  std::int64_t tokens;
  MoEConfig config;
};

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
  for (int sample = 0; sample < 12 && input.numel() > 0; ++sample) {
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
    }
  }
}

}  // namespace
}  // namespace dropless::testing
