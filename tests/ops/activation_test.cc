// Activations: every kind, gated or not, every type and instruction set against the reference in
// double; finite differences; extremes; in-place gradients.
#include "dropless/activation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dropless/error.h"
#include "tests/ops/levels.h"
#include "tests/ops/tensor.h"

namespace dropless::testing {
namespace {

const Activation kActivations[] = {Activation::kSilu, Activation::kGeluTanh, Activation::kGelu,
                                   Activation::kRelu, Activation::kQuickGelu};

struct Result {
  Tensor a, d_gate, d_up;
};

Result run(Activation activation, const Tensor& gate, const Tensor& up, const Tensor& d_a,
           Backend backend) {
  const std::int64_t R = gate.dim(0), F = gate.dim(1);
  Result r{Tensor(gate.dtype(), {R, F}), Tensor(gate.dtype(), {R, F}),
           up ? Tensor(gate.dtype(), {R, F}) : Tensor()};
  activation_forward(activation, gate, up, r.a, backend);
  activation_backward(activation, gate, up, d_a, r.d_gate, r.d_up, backend);
  return r;
}

TEST(Activation, EqualsReferenceInDouble) {
  std::mt19937_64 rng(1);
  const DType wide = DType::kFloat64;
  for (Activation activation : kActivations) {
    for (DType dtype : {wide, DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      for (bool gated : {false, true}) {
        for (auto [R, F] : {std::pair{0, 4}, {3, 5}, {7, 129}, {100, 350}}) {
          const Tensor gate = normal(rng, dtype, {R, F}, 2), d_a = normal(rng, dtype, {R, F});
          const Tensor up = gated ? normal(rng, dtype, {R, F}) : Tensor();
          const Result expected =
              run(activation, gate.to(wide), up.to(wide), d_a.to(wide), Backend::kReference);
          for_each_implementation([&](Backend backend) {
            const Result got = run(activation, gate, up, d_a, backend);
            const double tolerance = 8 * unit_roundoff(dtype);
            EXPECT_LT(relative_error(got.a, expected.a), tolerance);
            EXPECT_LT(relative_error(got.d_gate, expected.d_gate), tolerance);
            if (gated) {
              EXPECT_LT(relative_error(got.d_up, expected.d_up), tolerance);
            }
          });
        }
      }
    }
  }
}

// Element by element over the whole range: absolute where the function vanishes, relative
// elsewhere.
TEST(Activation, IsAccurateAtExtremes) {
  const double values[] = {-1e30, -300, -90, -20, -8, -4, -1, -1e-3, -1e-20, 0,
                           1e-20, 1e-3, 1,   4,   8,  20, 90, 300,   1e18};
  const std::int64_t n = std::size(values);
  Tensor x(DType::kFloat32, {1, n}), ones(DType::kFloat32, {1, n});
  for (std::int64_t i = 0; i < n; ++i) {
    x.set(i, values[i]);
    ones.set(i, 1);
  }
  for (Activation activation : kActivations) {
    const Result expected =
        run(activation, x.to(DType::kFloat64), {}, ones.to(DType::kFloat64), Backend::kReference);
    for_each_implementation([&](Backend backend) {
      const Result got = run(activation, x, {}, ones, backend);
      for (std::int64_t i = 1; i < n; ++i) {  // -1e30 squared overflows in float
        EXPECT_NEAR(got.a.get(i), expected.a.get(i), 1e-7 + 2e-6 * std::abs(expected.a.get(i)))
            << values[i];
        EXPECT_NEAR(got.d_gate.get(i), expected.d_gate.get(i), 2e-6) << values[i];
      }
    });
  }
}

TEST(Activation, KeepsNaN) {
  Tensor x(DType::kFloat32, {1, 40}), one(DType::kFloat32, {1, 40});  // NaN throughout
  for (int i = 0; i < 40; ++i) one.set(i, 1);
  for (Activation activation : kActivations) {
    for_each_implementation([&](Backend backend) {
      const Result got = run(activation, x, {}, one, backend);
      for (int i = 0; i < 40; ++i)
        EXPECT_TRUE(std::isnan(got.a.get(i))) << static_cast<int>(activation);
    });
  }
}

TEST(Activation, GradientsEqualFiniteDifferences) {
  std::mt19937_64 rng(2);
  const DType wide = DType::kFloat64;
  for (Activation activation : kActivations) {
    for (bool gated : {false, true}) {
      Tensor gate = normal(rng, wide, {3, 7}), up = gated ? normal(rng, wide, {3, 7}) : Tensor();
      const Tensor d_a = normal(rng, wide, {3, 7});
      for_each_implementation([&](Backend backend) {
        const Result got = run(activation, gate, up, d_a, backend);
        const auto objective = [&] {
          const Result r = run(activation, gate, up, d_a, backend);
          double sum = 0;
          for (int i = 0; i < 21; ++i) sum += r.a.get(i) * d_a.get(i);
          return sum;
        };
        for (int i = 0; i < 21; ++i) {
          EXPECT_NEAR(got.d_gate.get(i), central_difference(gate, i, objective), 1e-8);
          if (gated) {
            EXPECT_NEAR(got.d_up.get(i), central_difference(up, i, objective), 1e-8);
          }
        }
      });
    }
  }
}

TEST(Activation, GradientsMayOverwriteTheirInputs) {
  std::mt19937_64 rng(3);
  const Tensor gate = normal(rng, DType::kFloat32, {5, 77}),
               up = normal(rng, DType::kFloat32, {5, 77}),
               d_a = normal(rng, DType::kFloat32, {5, 77});
  for_each_implementation([&](Backend backend) {
    const Result apart = run(Activation::kSilu, gate, up, d_a, backend);
    Tensor d_gate = d_a, d_up = up;
    activation_backward(Activation::kSilu, gate, d_up, d_gate, d_gate, d_up, backend);
    EXPECT_TRUE(same_bits(d_gate, apart.d_gate));
    EXPECT_TRUE(same_bits(d_up, apart.d_up));
  });
}

TEST(Activation, GatedAndPlainMustNotBeMixed) {
  Tensor x(DType::kFloat32, {2, 3});
  try {
    activation_backward(Activation::kSilu, x, x, x, x, {});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(),
                ::testing::HasSubstr("up_RF is [2, 3] float32 but d_up_RF is absent"));
    EXPECT_THAT(error.hint(), ::testing::HasSubstr("both"));
  }
}

}  // namespace
}  // namespace dropless::testing
