// The router: selection and ties, weights and losses against the reference in double, gradients
// against finite differences, jitter and its generator, threads, and bad arguments.
#include "dropless/route.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <array>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "dropless/error.h"
#include "src/common/philox.h"
#include "tests/ops/levels.h"
#include "tests/ops/tensor.h"

namespace dropless::testing {
namespace {

using ::testing::HasSubstr;

constexpr RouteScore kSoftmax = RouteScore::kSoftmax, kSigmoid = RouteScore::kSigmoid;
constexpr RouteSelection kTopK = RouteSelection::kTopK, kUniform = RouteSelection::kUniform,
                         kGiven = RouteSelection::kGiven;

struct Case {
  std::int64_t tokens, experts, top_k;
  RouteConfig config;
  bool biased = false;
};

// RouteConfig without names: score, selection, num_groups, group_top_k, normalize_p,
// scaling_factor.
const Case kCases[] = {
    {0, 3, 2, {.normalize_p = 1}},
    {1, 1, 1, {}},
    {5, 4, 4, {.normalize_p = 2}},
    {37, 8, 2, {.normalize_p = 1}},
    {130, 7, 3, {}},
    {700, 64, 6, {.normalize_p = 2}},
    {41, 100, 8, {.normalize_p = 0.5}},
    {3000, 16, 4, {.normalize_p = 1}},
    // Softmax with a bias, with groups, with both.
    {29, 8, 3, {.normalize_p = 1, .scaling_factor = 1.5}, true},
    {50, 12, 3, {kSoftmax, kTopK, 6, 2}},
    {33, 9, 2, {kSoftmax, kTopK, 3, 1, 2, 0.5}, true},
    // Sigmoid; groups of one expert, all groups allowed, one group of all.
    {0, 4, 2, {.score = kSigmoid}, true},
    {1, 1, 1, {.score = kSigmoid, .normalize_p = 1}, true},
    {37, 8, 2, {.score = kSigmoid}},
    {130, 7, 3, {.score = kSigmoid, .normalize_p = 1}, true},
    {33, 6, 2, {kSigmoid, kTopK, 6, 3, 0.5, 3}},
    {21, 6, 4, {kSigmoid, kTopK, 3, 3, 1, 1}},
    {60, 16, 4, {kSigmoid, kTopK, 4, 2, 1, 2.5}, true},
    {300, 256, 8, {kSigmoid, kTopK, 8, 4, 1, 2.5}, true},  // DeepSeek-V3
    // Indices that logits do not decide.
    {29, 8, 3, {.selection = kUniform, .normalize_p = 1}},
    {23, 5, 5, {.score = kSigmoid, .selection = kUniform, .normalize_p = 2}},
    {29, 8, 3, {.selection = kGiven, .normalize_p = 1}},
    {31, 6, 3, {.score = kSigmoid, .selection = kGiven, .normalize_p = 2, .scaling_factor = 2}},
};

struct Routed {
  Tensor weights_TK, indices_TK, losses_2, counts_E;
};

// `given_TK`: what RouteSelection::kGiven reads.
Routed route(const RouteConfig& config, const Tensor& logits_TE, const Tensor& bias_E,
             const Tensor& given_TK, std::int64_t top_k, Backend backend) {
  const std::int64_t T = logits_TE.dim(0), E = logits_TE.dim(1);
  const DType dtype = logits_TE.dtype();
  Routed r{Tensor(dtype, {T, top_k}),
           config.selection == kGiven ? given_TK : Tensor(DType::kInt32, {T, top_k}),
           Tensor(dtype, {2}), Tensor(DType::kInt32, {E})};
  Workspace workspace(route_workspace_bytes(T, E, dtype));
  route_forward(config, logits_TE, bias_E ? ConstTensorView(bias_E) : ConstTensorView(),
                r.weights_TK, r.indices_TK, r.losses_2, r.counts_E, workspace.data(),
                workspace.bytes(), backend);
  EXPECT_TRUE(workspace.intact());
  return r;
}

Routed route(const Tensor& logits_TE, std::int64_t top_k, double normalize_p, Backend backend) {
  return route({.normalize_p = normalize_p}, logits_TE, {}, {}, top_k, backend);
}

Tensor route_gradient(const RouteConfig& config, const Tensor& logits, const Routed& routed,
                      const Tensor& d_weights, const Tensor& d_losses, Backend backend) {
  Tensor d_logits(logits.dtype(), {logits.dim(0), logits.dim(1)});
  route_backward(config, logits, routed.indices_TK, routed.counts_E, d_weights, d_losses, d_logits,
                 backend);
  return d_logits;
}

struct Inputs {
  Tensor logits_TE, bias_E, given_TK;

  // Given indices repeat experts within a row.
  Inputs(const Case& c, DType dtype, std::mt19937_64& rng, double scale = 1)
      : logits_TE(normal(rng, dtype, {c.tokens, c.experts}, scale)),
        bias_E(c.biased ? normal(rng, dtype, {c.experts}, 0.1) : Tensor()),
        given_TK(DType::kInt32, {c.tokens, c.top_k}) {
    for (std::int64_t i = 0; i < given_TK.numel(); ++i) {
      given_TK.set(i, static_cast<double>(rng() % c.experts));
    }
  }

  Routed route(const Case& c, Backend backend) const {
    return testing::route(c.config, logits_TE, bias_E, given_TK, c.top_k, backend);
  }
  Inputs in_double() const {
    Inputs wide = *this;
    wide.logits_TE = logits_TE.to(DType::kFloat64);
    wide.bias_E = bias_E.to(DType::kFloat64);
    return wide;
  }
};

template <class Check>
void for_each_case(Check&& check) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(::testing::Message() << "case " << &c - kCases);
    check(c);
  }
}

// Where scores decide (bias, groups), two that differ by less than rounding may go either way: the
// seed has none.
TEST(Route, EqualsReferenceInDouble) {
  std::mt19937_64 rng(1);
  for_each_case([&](const Case& c) {
    for (DType dtype : {DType::kFloat64, DType::kFloat32}) {
      const Inputs inputs(c, dtype, rng, 3);
      const Routed expected = inputs.in_double().route(c, Backend::kReference);
      for_each_implementation([&](Backend backend) {
        const Routed got = inputs.route(c, backend);
        const double tolerance = 60 * unit_roundoff(dtype);
        EXPECT_TRUE(same_bits(got.indices_TK, expected.indices_TK));
        EXPECT_TRUE(same_bits(got.counts_E, expected.counts_E));
        EXPECT_LT(relative_error(got.weights_TK, expected.weights_TK), tolerance);
        EXPECT_LT(relative_error(got.losses_2, expected.losses_2), tolerance);
      });
    }
  });
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
  Tensor bias(DType::kFloat32, {5});
  for (int e = 0; e < 5; ++e) bias.set(e, e == 2 ? inf : 0);
  for_each_implementation([&](Backend backend) {
    for (const RouteConfig& config :
         {RouteConfig{.normalize_p = 1}, RouteConfig{kSigmoid, kTopK, 1, 1, 1, 1},
          RouteConfig{kSoftmax, kTopK, 5, 4, 1, 1}, RouteConfig{kSigmoid, kTopK, 5, 3, 1, 1}}) {
      for (const Tensor& b : {Tensor(), bias, Tensor(DType::kFloat32, {5}) /* NaN */}) {
        const Routed got = route(config, logits, b, {}, 3, backend);
        for (int t = 0; t < 6; ++t) {
          std::set<double> chosen;
          for (int k = 0; k < 3; ++k) chosen.insert(got.indices_TK.get(t * 3 + k));
          EXPECT_EQ(chosen.size(), 3u) << t;
          EXPECT_GE(*chosen.begin(), 0);
          EXPECT_LT(*chosen.rbegin(), 5);
        }
        EXPECT_TRUE(std::isnan(got.weights_TK.get(0)));
      }
    }
    EXPECT_NEAR(route(logits, 3, 1, backend).weights_TK.get(3 * 3), 1, 1e-6);
  });
}

// In fp64, where no two scores of random logits are equal up to rounding.
TEST(Route, EqualsReferenceOnRandomShapesAndConfigs) {
  std::mt19937_64 rng(12);
  const auto up_to = [&](std::int64_t n) { return 1 + static_cast<std::int64_t>(rng() % n); };
  for (int trial = 0; trial < 150; ++trial) {
    const double norms[] = {0, 0.5, 1, 2, 3};
    Case c{static_cast<std::int64_t>(rng() % 150), 0, 0, {}, rng() % 2 == 0};
    c.config.score = rng() % 2 == 0 ? kSoftmax : kSigmoid;
    c.config.selection = static_cast<RouteSelection>(rng() % 8 < 6 ? 0 : 1 + rng() % 2);
    c.config.num_groups = up_to(8);
    c.config.group_top_k = up_to(c.config.num_groups);
    c.config.normalize_p = norms[rng() % 5];
    c.config.scaling_factor = 0.5 * static_cast<double>(up_to(5));
    c.experts = c.config.num_groups * up_to(20);
    c.top_k = up_to(c.config.group_top_k * (c.experts / c.config.num_groups));
    SCOPED_TRACE(::testing::Message()
                 << "trial " << trial << ": T " << c.tokens << " E " << c.experts << " K "
                 << c.top_k << " score " << static_cast<int>(c.config.score) << " selection "
                 << static_cast<int>(c.config.selection) << " groups " << c.config.group_top_k
                 << " of " << c.config.num_groups << " q " << c.config.normalize_p);
    const Inputs inputs(c, DType::kFloat64, rng, 2);
    const Tensor d_weights = normal(rng, DType::kFloat64, {c.tokens, c.top_k});
    const Tensor d_losses = rng() % 2 == 0 ? normal(rng, DType::kFloat64, {2}) : Tensor();
    const auto gradient = [&](const Routed& routed, Backend backend) {
      return route_gradient(c.config, inputs.logits_TE, routed, d_weights, d_losses, backend);
    };
    const Routed expected = inputs.route(c, Backend::kReference);
    const Tensor expected_gradient = gradient(expected, Backend::kReference);
    for_each_implementation([&](Backend backend) {
      const Routed got = inputs.route(c, backend);
      EXPECT_TRUE(same_bits(got.indices_TK, expected.indices_TK));
      EXPECT_TRUE(same_bits(got.counts_E, expected.counts_E));
      EXPECT_LT(relative_error(got.weights_TK, expected.weights_TK), 1e-13);
      EXPECT_LT(relative_error(got.losses_2, expected.losses_2), 1e-13);
      EXPECT_LT(relative_error(gradient(got, backend), expected_gradient), 1e-12);
    });
  }
}

TEST(Route, GradientEqualsFiniteDifferences) {
  std::mt19937_64 rng(2);
  for_each_case([&](const Case& c) {
    if (c.tokens == 0 || c.tokens > 100) return;
    Inputs inputs(c, DType::kFloat64, rng);
    const Tensor d_weights = normal(rng, DType::kFloat64, {c.tokens, c.top_k});
    const Tensor d_losses = normal(rng, DType::kFloat64, {2});
    const Routed routed = inputs.route(c, Backend::kReference);
    const auto objective = [&] {
      const Routed r = inputs.route(c, Backend::kReference);
      EXPECT_TRUE(same_bits(r.indices_TK, routed.indices_TK)) << "choose another seed";
      double sum = 0;
      for (std::int64_t i = 0; i < d_weights.numel(); ++i)
        sum += r.weights_TK.get(i) * d_weights.get(i);
      for (int i = 0; i < 2; ++i) sum += r.losses_2.get(i) * d_losses.get(i);
      return sum;
    };
    Tensor& logits = inputs.logits_TE;
    Tensor expected(DType::kFloat64, {c.tokens, c.experts});
    for (std::int64_t i = 0; i < logits.numel(); ++i) {
      expected.set(i, central_difference(logits, i, objective, 1e-6));
    }
    for_each_implementation([&](Backend backend) {
      const Tensor got = route_gradient(c.config, logits, routed, d_weights, d_losses, backend);
      for (std::int64_t i = 0; i < got.numel(); ++i)
        EXPECT_NEAR(got.get(i), expected.get(i), 2e-8) << i;
    });
  });
}

TEST(Route, GradientInFloatEqualsReferenceInDouble) {
  std::mt19937_64 rng(3);
  for_each_case([&](const Case& c) {
    const Inputs inputs(c, DType::kFloat32, rng);
    const Tensor d_weights = normal(rng, DType::kFloat32, {c.tokens, c.top_k});
    for (const Tensor& d_losses : {normal(rng, DType::kFloat32, {2}), Tensor()}) {
      const Routed routed = inputs.route(c, Backend::kReference);
      const Tensor expected = route_gradient(c.config, inputs.logits_TE.to(DType::kFloat64), routed,
                                             d_weights.to(DType::kFloat64),
                                             d_losses.to(DType::kFloat64), Backend::kReference);
      for_each_implementation([&](Backend backend) {
        const Tensor got =
            route_gradient(c.config, inputs.logits_TE, routed, d_weights, d_losses, backend);
        EXPECT_LT(relative_error(got, expected), 2e-6);
      });
    }
  });
}

// Logits whose sigmoids are `scores`.
Tensor logits_of(std::initializer_list<double> scores) {
  Tensor logits(DType::kFloat64, {1, static_cast<std::int64_t>(scores.size())});
  std::int64_t i = 0;
  for (double s : scores) logits.set(i++, std::log(s / (1 - s)));
  return logits;
}

Tensor bias_of(std::initializer_list<double> values) {
  Tensor bias(DType::kFloat64, {static_cast<std::int64_t>(values.size())});
  std::int64_t i = 0;
  for (double v : values) bias.set(i++, v);
  return bias;
}

void expect_values(const Tensor& got, std::initializer_list<double> expected) {
  std::int64_t i = 0;
  for (double value : expected) EXPECT_NEAR(got.get(i++), value, 1e-14) << "at " << i - 1;
  EXPECT_EQ(got.numel(), i);
}

TEST(Route, AGroupCountsByItsTwoBest) {
  // Sums of two: 1.0, 1.1, 0.85. The best expert is not in the best group.
  const Tensor logits = logits_of({0.9, 0.1, 0.5, 0.6, 0.55, 0.3});
  for_each_implementation([&](Backend backend) {
    const Routed one = route({kSigmoid, kTopK, 3, 1, 0, 1}, logits, {}, {}, 2, backend);
    expect_values(one.indices_TK, {3, 2});
    expect_values(one.weights_TK, {0.6, 0.5});
    expect_values(one.counts_E, {0, 0, 1, 1, 0, 0});
    const Routed two = route({kSigmoid, kTopK, 3, 2, 0, 1}, logits, {}, {}, 3, backend);
    expect_values(two.indices_TK, {0, 3, 2});
    // Of two groups of three: sums 1.5 and 1.15.
    const Routed halves = route({kSigmoid, kTopK, 2, 1, 0, 1}, logits, {}, {}, 3, backend);
    expect_values(halves.indices_TK, {0, 2, 1});
  });
}

TEST(Route, EqualGroupsGoToTheLowestFirst) {
  const Tensor logits = logits_of({0.2, 0.7, 0.7, 0.2, 0.7, 0.2});
  for_each_implementation([&](Backend backend) {
    const Routed got = route({kSigmoid, kTopK, 3, 2, 0, 1}, logits, {}, {}, 3, backend);
    expect_values(got.indices_TK, {1, 2, 0});
  });
}

TEST(Route, TheBiasSelectsAndDoesNotWeigh) {
  const Tensor logits = logits_of({0.9, 0.1, 0.5, 0.6, 0.55, 0.3});
  const Tensor bias = bias_of({0, 0, 0, 0, 0.2, 0.4});
  for_each_implementation([&](Backend backend) {
    // c = 0.9, 0.1, 0.5, 0.6, 0.75, 0.7
    const Routed flat = route({.score = kSigmoid}, logits, bias, {}, 3, backend);
    expect_values(flat.indices_TK, {0, 4, 5});
    expect_values(flat.weights_TK, {0.9, 0.55, 0.3});
    // Groups' sums 1.0, 1.1, 1.45.
    const Routed grouped = route({kSigmoid, kTopK, 3, 1, 1, 2}, logits, bias, {}, 2, backend);
    expect_values(grouped.indices_TK, {4, 5});
    expect_values(grouped.weights_TK, {2 * 0.55 / 0.85, 2 * 0.3 / 0.85});
  });
}

TEST(Route, UniformSelectionDealsExpertsInTurn) {
  std::mt19937_64 rng(5);
  const Tensor logits = normal(rng, DType::kFloat32, {4, 3});
  for_each_implementation([&](Backend backend) {
    const Routed got = route({.selection = kUniform, .normalize_p = 1}, logits, {}, {}, 2, backend);
    expect_values(got.indices_TK, {0, 1, 2, 0, 1, 2, 0, 1});
    expect_values(got.counts_E, {3, 3, 2});
    for (int t = 0; t < 4; ++t) {
      EXPECT_NEAR(got.weights_TK.get(2 * t) / got.weights_TK.get(2 * t + 1),
                  std::exp(logits.get(3 * t + 2 * t % 3) - logits.get(3 * t + (2 * t + 1) % 3)),
                  1e-5);
    }
  });
}

// Replaying a routing gives the bits of that routing.
TEST(Route, GivenIndicesReplayARouting) {
  std::mt19937_64 rng(6);
  for_each_case([&](const Case& c) {
    const Inputs inputs(c, DType::kFloat32, rng);
    for_each_implementation([&](Backend backend) {
      const Routed first = inputs.route(c, backend);
      RouteConfig replay = c.config;
      replay.selection = kGiven;
      const Routed again =
          route(replay, inputs.logits_TE, inputs.bias_E, first.indices_TK, c.top_k, backend);
      EXPECT_TRUE(same_bits(again.indices_TK, first.indices_TK));
      EXPECT_TRUE(same_bits(again.weights_TK, first.weights_TK));
      EXPECT_TRUE(same_bits(again.losses_2, first.losses_2));
      EXPECT_TRUE(same_bits(again.counts_E, first.counts_E));
    });
  });
}

TEST(Route, ScoresThatUnderflowGiveFiniteWeightsAndGradients) {
  for (RouteScore score : {kSoftmax, kSigmoid}) {
    for (double q : {0.0, 0.5, 1.0, 2.0}) {
      for (DType dtype : {DType::kFloat32, DType::kFloat64}) {
        // The token's experts are the hopeless ones.
        Tensor logits(dtype, {1, 4}), given(DType::kInt32, {1, 2}), ones(dtype, {1, 2}),
            d_losses(dtype, {2});
        for (int e = 0; e < 4; ++e) logits.set(e, score == kSoftmax && e == 0 ? 0 : -800);
        for (int i = 0; i < 2; ++i) {
          given.set(i, i + 2);
          ones.set(i, i + 1);
          d_losses.set(i, 1);
        }
        const RouteConfig config{.score = score, .selection = kGiven, .normalize_p = q};
        for_each_implementation([&](Backend backend) {
          const Routed got = route(config, logits, {}, given, 2, backend);
          expect_values(got.weights_TK, {0, 0});
          EXPECT_TRUE(std::isfinite(got.losses_2.get(0)));
          const Tensor d_logits = route_gradient(config, logits, got, ones, d_losses, backend);
          for (int e = 0; e < 4; ++e) EXPECT_TRUE(std::isfinite(d_logits.get(e))) << e;
        });
      }
    }
  }
}

struct ThreadCount {
  explicit ThreadCount(int threads) : before(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ThreadCount() { omp_set_num_threads(before); }
  int before;
};

TEST(Route, BitsDoNotDependOnTheNumberOfThreads) {
  std::mt19937_64 rng(7);
  const Case c{3000, 16, 4, {kSigmoid, kTopK, 4, 2, 1, 2.5}, true};
  const Inputs inputs(c, DType::kFloat32, rng);
  const Tensor d_weights = normal(rng, DType::kFloat32, {c.tokens, c.top_k});
  const Tensor d_losses = normal(rng, DType::kFloat32, {2});
  const auto run = [&](int threads) {
    const ThreadCount count(threads);
    const Routed r = inputs.route(c, Backend::kAuto);
    Tensor noisy(DType::kFloat32, {c.tokens, c.experts});
    route_jitter(inputs.logits_TE, 0.1, 3, 4, noisy);
    return std::vector<Tensor>{
        r.weights_TK,
        r.indices_TK,
        r.losses_2,
        r.counts_E,
        noisy,
        route_gradient(c.config, inputs.logits_TE, r, d_weights, d_losses, Backend::kAuto)};
  };
  const std::vector<Tensor> one = run(1);
  for (int threads : {2, 3}) {
    const std::vector<Tensor> more = run(threads);
    for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(same_bits(more[i], one[i])) << i;
  }
}

// The published vectors of Random123 (kat_vectors, philox4x32 10).
TEST(Philox, EqualsThePublishedVectors) {
  using Words = std::array<std::uint32_t, 4>;
  EXPECT_EQ(philox(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~0ull, ~0ull, ~0ull), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// With x = 1 and epsilon = 1/2 the output is 1/2 + u: the generator's words can be read off.
TEST(RouteJitter, ElementsTakeTheWordsOfTheirPosition) {
  Tensor ones(DType::kFloat64, {3, 7});
  for (std::int64_t i = 0; i < ones.numel(); ++i) ones.set(i, 1);
  for (Backend backend : {Backend::kReference, Backend::kAuto}) {
    Tensor out(DType::kFloat64, {3, 7});
    route_jitter(ones, 0.5, 11, 12, out, backend);
    for (std::int64_t i = 0; i < out.numel(); ++i) {
      EXPECT_EQ((out.get(i) - 0.5) * 0x1p32 - 0.5,
                static_cast<double>(philox(static_cast<std::uint64_t>(i / 4), 12, 11)[i % 4]));
    }
  }
}

TEST(RouteJitter, NoiseIsUniformAroundOneAndOfItsSeedAndStream) {
  const std::int64_t n = 40000;
  Tensor ones(DType::kFloat32, {n / 10, 10});
  for (std::int64_t i = 0; i < n; ++i) ones.set(i, 1);
  const auto noise = [&](std::uint64_t seed, std::uint64_t stream) {
    Tensor out(DType::kFloat32, {n / 10, 10});
    route_jitter(ones, 0.2, seed, stream, out);
    return out;
  };
  const Tensor a = noise(1, 1), b = noise(1, 2), c = noise(2, 1);
  double mean = 0, square = 0, with_b = 0, with_c = 0, with_next = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double u = (a.get(i) - 1) / 0.2;
    EXPECT_LE(std::abs(u), 1 + 1e-6);
    mean += u / n;
    square += u * u / n;
    with_b += u * (b.get(i) - 1) / 0.2 / n;
    with_c += u * (c.get(i) - 1) / 0.2 / n;
    with_next += u * (a.get((i + 1) % n) - 1) / 0.2 / n;
  }
  // Five standard deviations: of u 1 / sqrt 3, of u^2 sqrt(4 / 45), of a product of two 1 / 3.
  const double sigmas = 5 / std::sqrt(static_cast<double>(n));
  EXPECT_NEAR(mean, 0, sigmas * std::sqrt(1.0 / 3));
  EXPECT_NEAR(square, 1.0 / 3, sigmas * std::sqrt(4.0 / 45));
  EXPECT_NEAR(with_b, 0, sigmas / 3);
  EXPECT_NEAR(with_c, 0, sigmas / 3);
  EXPECT_NEAR(with_next, 0, sigmas / 3);
}

// out = x * factor, rounded once, whatever the type: in place, and the same from both
// implementations. As the gradient of sum_i d_i out_i is d_i factor_i, the op is its own backward.
TEST(RouteJitter, ScalesEveryTypeByTheSameFactors) {
  std::mt19937_64 rng(8);
  Tensor ones(DType::kFloat32, {37, 9}), factors(DType::kFloat32, {37, 9});
  for (std::int64_t i = 0; i < ones.numel(); ++i) ones.set(i, 1);
  route_jitter(ones, 0.3, 5, 6, factors, Backend::kReference);
  for (DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const Tensor x = normal(rng, dtype, {37, 9});
    Tensor expected(dtype, {37, 9});
    route_jitter(x, 0.3, 5, 6, expected, Backend::kReference);
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      EXPECT_NEAR(expected.get(i), x.get(i) * factors.get(i),
                  2 * std::max(unit_roundoff(dtype), 0x1p-24) * std::abs(x.get(i)) + 1e-7);
    }
    Tensor in_place = x, off = x;
    route_jitter(in_place, 0.3, 5, 6, in_place);
    EXPECT_TRUE(same_bits(in_place, expected)) << dtype_name(dtype);
    route_jitter(off, 0, 5, 6, off);
    EXPECT_TRUE(same_bits(off, x));
  }
}

TEST(Route, BadArgumentsAreNamed) {
  std::mt19937_64 rng(4);
  const Tensor logits = normal(rng, DType::kFloat32, {4, 3});
  Tensor weights(DType::kFloat32, {4, 2}), indices(DType::kInt32, {4, 2}),
      losses(DType::kFloat32, {2});
  Workspace workspace(route_workspace_bytes(4, 3, DType::kFloat32));
  const auto run = [&](const Tensor& z, double p, TensorView w, TensorView i, TensorView l,
                       std::size_t bytes) {
    return message_of(
        [&] { route_forward({.normalize_p = p}, z, {}, w, i, l, {}, workspace.data(), bytes); });
  };
  Tensor five(DType::kInt32, {4, 5}), wide(DType::kFloat64, {4, 2});
  EXPECT_THAT(run(logits, 0, weights, five, losses, workspace.bytes()),
              HasSubstr("cannot choose top_k 5 of 3"));
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
                route_forward({}, cuda_logits, {}, weights, indices, losses, {}, workspace.data(),
                              1 << 20);
              }),
              HasSubstr("route_forward: runs on the CPU only"));
  EXPECT_EQ(run(logits, 0, weights, indices, losses, workspace.bytes()), "no error");
}

TEST(Route, BadConfigsNameTheField) {
  std::mt19937_64 rng(9);
  const Tensor logits = normal(rng, DType::kFloat32, {2, 6}), bias = bias_of({1, 2, 3, 4, 5, 6});
  Tensor weights(DType::kFloat32, {2, 3}), indices(DType::kInt32, {2, 3});
  Workspace workspace(route_workspace_bytes(2, 6, DType::kFloat32));
  const auto run = [&](const RouteConfig& config, ConstTensorView b) {
    return message_of([&] {
      route_forward(config, logits, b, weights, indices, {}, {}, workspace.data(),
                    workspace.bytes());
    });
  };
  EXPECT_THAT(run({.num_groups = 4}, {}), HasSubstr("num_groups is 4, but there are 6 experts"));
  EXPECT_THAT(run({.num_groups = 0}, {}), HasSubstr("num_groups is 0"));
  EXPECT_THAT(run({.num_groups = 3, .group_top_k = 4}, {}),
              HasSubstr("group_top_k is 4 of num_groups 3"));
  EXPECT_THAT(run({.num_groups = 3, .group_top_k = 0}, {}), HasSubstr("group_top_k is 0"));
  EXPECT_THAT(run({.num_groups = 3, .group_top_k = 1}, {}),
              HasSubstr("group_top_k 1 leaves 2 experts per token, but top_k is 3"));
  EXPECT_THAT(run({.scaling_factor = 0}, {}), HasSubstr("scaling_factor is 0"));
  EXPECT_THAT(run({}, bias), HasSubstr("bias_E is [6] float64, expected [6] float32"));
  EXPECT_EQ(run({.num_groups = 3, .group_top_k = 2}, bias.to(DType::kFloat32)), "no error");
}

TEST(Route, IndicesThatAreAnInputAreChecked) {
  std::mt19937_64 rng(10);
  const Tensor logits = normal(rng, DType::kFloat32, {2, 6}),
               d_weights = normal(rng, DType::kFloat32, {2, 3});
  Tensor weights(DType::kFloat32, {2, 3}), indices(DType::kInt32, {2, 3}),
      d_logits(DType::kFloat32, {2, 6});
  Workspace workspace(route_workspace_bytes(2, 6, DType::kFloat32));
  const auto forward = [&] {
    return message_of([&] {
      route_forward({.selection = kGiven}, logits, {}, weights, indices, {}, {}, workspace.data(),
                    workspace.bytes());
    });
  };
  const auto backward = [&](TensorView out) {
    return message_of([&] { route_backward({}, logits, indices, {}, d_weights, {}, out); });
  };
  for (int i = 0; i < 6; ++i) indices.set(i, i);
  EXPECT_EQ(forward(), "no error");
  EXPECT_EQ(backward(d_logits), "no error");
  TensorView same = d_logits;
  same.data = const_cast<void*>(ConstTensorView(logits).data);
  EXPECT_THAT(backward(same), HasSubstr("d_logits_TE is the memory of logits_TE"));
  for (int bad : {-1, 6}) {
    indices.set(4, bad);
    EXPECT_THAT(forward(), HasSubstr("indices_TK[1, 1] is " + std::to_string(bad) +
                                     ", but there are 6 experts"));
    EXPECT_THAT(backward(d_logits), HasSubstr("indices_TK[1, 1] is " + std::to_string(bad)));
  }
}

TEST(RouteJitter, BadArgumentsAreNamed) {
  std::mt19937_64 rng(11);
  const Tensor x = normal(rng, DType::kFloat32, {4, 3});
  Tensor out(DType::kFloat32, {4, 3}), wide(DType::kFloat64, {4, 3});
  const auto run = [&](double epsilon, TensorView y) {
    return message_of([&] { route_jitter(x, epsilon, 0, 0, y); });
  };
  EXPECT_THAT(run(1, out), HasSubstr("epsilon is 1"));
  EXPECT_THAT(run(-0.1, out), HasSubstr("epsilon is -0.1"));
  EXPECT_THAT(run(std::nan(""), out), HasSubstr("epsilon is nan"));
  EXPECT_THAT(run(0.1, wide), HasSubstr("out_TD is [4, 3] float64, expected [4, 3] float32"));
  EXPECT_EQ(run(0.1, out), "no error");
}

}  // namespace
}  // namespace dropless::testing
