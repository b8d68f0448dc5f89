// The router: selection and ties, weights and losses against the reference in double, gradients
// against finite differences, and bad arguments.
#include "dropless/route.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "dropless/error.h"
#include "tests/ops/levels.h"
#include "tests/ops/tensor.h"

namespace dropless::testing {
namespace {

using ::testing::HasSubstr;

struct Routed {
  Tensor weights_TK, indices_TK, losses_2, counts_E;
};

Routed route(const Tensor& logits_TE, std::int64_t top_k, double normalize_p, Backend backend) {
  const std::int64_t T = logits_TE.dim(0), E = logits_TE.dim(1);
  const DType dtype = logits_TE.dtype();
  Routed r{Tensor(dtype, {T, top_k}), Tensor(DType::kInt32, {T, top_k}), Tensor(dtype, {2}),
           Tensor(DType::kInt32, {E})};
  Workspace workspace(route_workspace_bytes(T, E, dtype));
  route_forward(logits_TE, normalize_p, r.weights_TK, r.indices_TK, r.losses_2, r.counts_E,
                workspace.data(), workspace.bytes(), backend);
  EXPECT_TRUE(workspace.intact());
  return r;
}

struct Shape {
  std::int64_t tokens, experts, top_k;
  double normalize_p;
};

const Shape kShapes[] = {{0, 3, 2, 1},   {1, 1, 1, 0},    {5, 4, 4, 2},      {37, 8, 2, 1},
                         {130, 7, 3, 0}, {700, 64, 6, 2}, {41, 100, 8, 0.5}, {3000, 16, 4, 1}};

TEST(Route, EqualsReferenceInDouble) {
  std::mt19937_64 rng(1);
  for (const Shape& s : kShapes) {
    for (DType dtype : {DType::kFloat64, DType::kFloat32}) {
      const Tensor logits = normal(rng, dtype, {s.tokens, s.experts}, 3);
      const Routed expected =
          route(logits.to(DType::kFloat64), s.top_k, s.normalize_p, Backend::kReference);
      for_each_implementation([&](Backend backend) {
        const Routed got = route(logits, s.top_k, s.normalize_p, backend);
        const double tolerance = 60 * unit_roundoff(dtype);
        EXPECT_TRUE(same_bits(got.indices_TK, expected.indices_TK));
        EXPECT_TRUE(same_bits(got.counts_E, expected.counts_E));
        EXPECT_LT(relative_error(got.weights_TK, expected.weights_TK), tolerance);
        EXPECT_LT(relative_error(got.losses_2, expected.losses_2), tolerance);
      });
    }
  }
}

TEST(Route, EqualLogitsGoToTheLowestIndexFirst) {
  const float rows[3][6] = {{1, 1, 1, 1, 1, 1}, {0, 2, 1, 2, 2, 1}, {-1, -5, 3, -1, 3, -1}};
  const int expected[3][4] = {{0, 1, 2, 3}, {1, 3, 4, 2}, {2, 4, 0, 3}};
  Tensor logits(DType::kFloat32, {3, 6});
  for (int i = 0; i < 18; ++i) logits.set(i, rows[i / 6][i % 6]);
  for_each_implementation([&](Backend backend) {
    const Routed got = route(logits, 4, 0, backend);
    for (int i = 0; i < 12; ++i) EXPECT_EQ(got.indices_TK.get(i), expected[i / 4][i % 4]) << i;
  });
}

TEST(Route, BalancedRoutingHasLossOneAndWeightsSumToOne) {
  // Token t prefers expert t mod E by far and is otherwise indifferent.
  const std::int64_t T = 64, E = 8;
  Tensor logits(DType::kFloat64, {T, E});
  for (std::int64_t i = 0; i < T * E; ++i) logits.set(i, i / E % E == i % E ? 5 : 0);
  for_each_implementation([&](Backend backend) {
    const Routed got = route(logits, 1, 1, backend);
    EXPECT_NEAR(got.losses_2.get(0), 1, 1e-12);
    for (std::int64_t t = 0; t < T; ++t) EXPECT_NEAR(got.weights_TK.get(t), 1, 1e-12);
  });
}

TEST(Route, ExtremeAndNonFiniteRowsSelectDistinctValidExperts) {
  const double nan = std::numeric_limits<double>::quiet_NaN(),
               inf = std::numeric_limits<double>::infinity();
  const double rows[6][5] = {{nan, nan, nan, nan, nan},   {1, nan, 2, 3, nan},
                             {-inf, -inf, 0, -inf, -inf}, {3e4, -3e4, 1e4, 0, 0},
                             {inf, inf, 0, 1, -inf},      {-1e30, 1e30, 0, 0, 0}};
  Tensor logits(DType::kFloat32, {6, 5});
  for (int i = 0; i < 30; ++i) logits.as<float>()[i] = static_cast<float>(rows[i / 5][i % 5]);
  for_each_implementation([&](Backend backend) {
    const Routed got = route(logits, 3, 1, backend);
    for (int t = 0; t < 6; ++t) {
      std::set<double> chosen;
      for (int k = 0; k < 3; ++k) chosen.insert(got.indices_TK.get(t * 3 + k));
      EXPECT_EQ(chosen.size(), 3u) << t;
      EXPECT_GE(*chosen.begin(), 0);
      EXPECT_LT(*chosen.rbegin(), 5);
    }
    EXPECT_TRUE(std::isnan(got.weights_TK.get(0)));
    EXPECT_NEAR(got.weights_TK.get(3 * 3), 1, 1e-6);
  });
}

Tensor route_gradient(const Tensor& logits, const Routed& routed, double normalize_p,
                      const Tensor& d_weights, const Tensor& d_losses, Backend backend) {
  Tensor d_logits(logits.dtype(), {logits.dim(0), logits.dim(1)});
  route_backward(logits, normalize_p, routed.indices_TK, routed.counts_E, d_weights, d_losses,
                 d_logits, backend);
  return d_logits;
}

TEST(Route, GradientEqualsFiniteDifferences) {
  std::mt19937_64 rng(2);
  for (const Shape& s : kShapes) {
    if (s.tokens == 0 || s.tokens > 100) continue;
    Tensor logits = normal(rng, DType::kFloat64, {s.tokens, s.experts});
    const Tensor d_weights = normal(rng, DType::kFloat64, {s.tokens, s.top_k});
    const Tensor d_losses = normal(rng, DType::kFloat64, {2});
    const Routed routed = route(logits, s.top_k, s.normalize_p, Backend::kReference);
    const auto objective = [&] {
      const Routed r = route(logits, s.top_k, s.normalize_p, Backend::kReference);
      EXPECT_TRUE(same_bits(r.indices_TK, routed.indices_TK)) << "choose another seed";
      double sum = 0;
      for (std::int64_t i = 0; i < d_weights.numel(); ++i)
        sum += r.weights_TK.get(i) * d_weights.get(i);
      for (int i = 0; i < 2; ++i) sum += r.losses_2.get(i) * d_losses.get(i);
      return sum;
    };
    Tensor expected(DType::kFloat64, {s.tokens, s.experts});
    for (std::int64_t i = 0; i < logits.numel(); ++i) {
      expected.set(i, central_difference(logits, i, objective, 1e-6));
    }
    for_each_implementation([&](Backend backend) {
      const Tensor got =
          route_gradient(logits, routed, s.normalize_p, d_weights, d_losses, backend);
      for (std::int64_t i = 0; i < got.numel(); ++i)
        EXPECT_NEAR(got.get(i), expected.get(i), 2e-8) << i;
    });
  }
}

TEST(Route, GradientInFloatEqualsReferenceInDouble) {
  std::mt19937_64 rng(3);
  for (const Shape& s : kShapes) {
    const Tensor logits = normal(rng, DType::kFloat32, {s.tokens, s.experts});
    const Tensor d_weights = normal(rng, DType::kFloat32, {s.tokens, s.top_k});
    for (const Tensor& d_losses : {normal(rng, DType::kFloat32, {2}), Tensor()}) {
      const Routed routed = route(logits, s.top_k, s.normalize_p, Backend::kReference);
      const Tensor expected = route_gradient(logits.to(DType::kFloat64), routed, s.normalize_p,
                                             d_weights.to(DType::kFloat64),
                                             d_losses.to(DType::kFloat64), Backend::kReference);
      for_each_implementation([&](Backend backend) {
        const Tensor got =
            route_gradient(logits, routed, s.normalize_p, d_weights, d_losses, backend);
        EXPECT_LT(relative_error(got, expected), 2e-6);
      });
    }
  }
}

template <class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    return error.what();
  }
  return "no error";
}

TEST(Route, BadArgumentsAreNamed) {
  std::mt19937_64 rng(4);
  const Tensor logits = normal(rng, DType::kFloat32, {4, 3});
  Tensor weights(DType::kFloat32, {4, 2}), indices(DType::kInt32, {4, 2}),
      losses(DType::kFloat32, {2});
  Workspace workspace(route_workspace_bytes(4, 3, DType::kFloat32));
  const auto run = [&](const Tensor& z, double p, TensorView w, TensorView i, TensorView l,
                       std::size_t bytes) {
    return message_of([&] { route_forward(z, p, w, i, l, {}, workspace.data(), bytes); });
  };
  Tensor five(DType::kInt32, {4, 5}), wide(DType::kFloat64, {4, 2});
  EXPECT_THAT(run(logits, 0, weights, five, losses, workspace.bytes()),
              HasSubstr("cannot choose 5 of 3"));
  EXPECT_THAT(run(logits, -1, weights, indices, losses, workspace.bytes()),
              HasSubstr("normalize_p is -1"));
  EXPECT_THAT(run(logits, 0, wide, indices, losses, workspace.bytes()),
              HasSubstr("weights_TK is [4, 2] float64, expected [4, 2] float32"));
  EXPECT_THAT(run(logits, 0, weights, indices, weights, workspace.bytes()),
              HasSubstr("losses_2 is [4, 2] float32, expected [2] float32"));
  EXPECT_THAT(run(logits, 0, weights, indices, losses, 64),
              HasSubstr("the workspace has 64 bytes"));
  EXPECT_THAT(run(logits.to(DType::kBFloat16), 0, weights, indices, losses, workspace.bytes()),
              HasSubstr("logits_TE is [4, 3] bfloat16, expected [4, 3] float32"));
  TensorView cuda = weights.view();
  cuda.device = {DeviceType::kCuda, 1};
  EXPECT_THAT(run(logits, 0, cuda, indices, losses, workspace.bytes()), HasSubstr("on cuda:1"));
  ConstTensorView cuda_logits = logits;
  cuda_logits.device = {DeviceType::kCuda, 0};
  EXPECT_THAT(message_of([&] {
                route_forward(cuda_logits, 0, weights, indices, losses, {}, workspace.data(),
                              1 << 20);
              }),
              HasSubstr("no CUDA kernel for route_forward"));
  EXPECT_EQ(run(logits, 0, weights, indices, losses, workspace.bytes()), "no error");
}

}  // namespace
}  // namespace dropless::testing
