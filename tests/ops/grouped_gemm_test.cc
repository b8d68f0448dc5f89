// Grouped matrix products over random groups against the reference in double, for every storage
// type and instruction set; gradients by finite differences; threads and workspace change nothing.
#include "dropless/grouped_gemm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include "dropless/error.h"
#include "tests/ops/levels.h"
#include "tests/ops/tensor.h"

namespace dropless::testing {
namespace {

using ::testing::HasSubstr;

Tensor product(const Tensor& a, const Tensor& b, bool transpose_b, const Tensor& offsets,
               Backend backend = Backend::kAuto, std::size_t slots = 0) {
  Tensor out(a.dtype(), {a.dim(0), b.dim(transpose_b ? 1 : 2)});
  const std::size_t all = grouped_gemm_workspace_bytes();
  Workspace workspace(slots == 0 ? all : slots * (all / omp_get_max_threads()));
  grouped_gemm(a, b, transpose_b, offsets, out, workspace.data(), workspace.bytes(), backend);
  EXPECT_TRUE(workspace.intact());
  return out;
}

Tensor weight_grad(const Tensor& a, const Tensor& b, const Tensor& offsets,
                   Backend backend = Backend::kAuto) {
  Tensor out(a.dtype(), {offsets.dim(0) - 1, a.dim(1), b.dim(1)});
  Workspace workspace(grouped_gemm_workspace_bytes());
  grouped_gemm_weight_grad(a, b, offsets, out, workspace.data(), workspace.bytes(), backend);
  EXPECT_TRUE(workspace.intact());
  return out;
}

struct Shape {
  std::vector<std::int64_t> sizes;
  std::int64_t n, k;
};

// No rows, empty groups at either end and between, one row, sizes around every block and step
// limit.
const Shape kShapes[] = {{{0}, 5, 7},
                         {{0, 0, 0}, 3, 2},
                         {{1}, 1, 1},
                         {{0, 14, 0, 1}, 32, 256},
                         {{13, 15, 27}, 33, 31},
                         {{5, 0, 100}, 17, 257},
                         {{673}, 70, 40},
                         {{28, 29}, 513, 12},
                         {{1, 2, 3, 4, 5, 6, 7}, 16, 600},
                         {{340, 3}, 258, 129},
                         {{100, 0, 20, 0}, 48, 1025},
                         // Few rows: every number of them, columns and depth beyond a block's.
                         {{8, 1, 9, 2}, 2051, 37},
                         {{3, 0, 6}, 40, 2087},
                         {{1}, 65, 4099}};

TEST(GroupedGemm, EqualsReferenceInDouble) {
  std::mt19937_64 rng(1);
  for (const Shape& s : kShapes) {
    const auto E = static_cast<std::int64_t>(s.sizes.size());
    const Tensor offsets = offsets_of(s.sizes);
    const auto R = static_cast<std::int64_t>(offsets.get(E));
    for (DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      const Tensor a = normal(rng, dtype, {R, s.k}), b = normal(rng, dtype, {E, s.k, s.n}),
                   bt = normal(rng, dtype, {E, s.n, s.k}), c = normal(rng, dtype, {R, s.n});
      const DType wide = DType::kFloat64;
      const Tensor nn = product(a.to(wide), b.to(wide), false, offsets, Backend::kReference);
      const Tensor nt = product(a.to(wide), bt.to(wide), true, offsets, Backend::kReference);
      const Tensor tn = weight_grad(a.to(wide), c.to(wide), offsets, Backend::kReference);
      for_each_implementation([&](Backend backend) {
        // Rounding of the result, and of sums whose error grows like the root of their length.
        const double tolerance =
            2 * unit_roundoff(dtype) + 40 * unit_roundoff(accumulator_dtype(dtype));
        EXPECT_LT(relative_error(product(a, b, false, offsets, backend), nn), tolerance);
        EXPECT_LT(relative_error(product(a, bt, true, offsets, backend), nt), tolerance);
        EXPECT_LT(relative_error(weight_grad(a, c, offsets, backend), tn), tolerance);
      });
    }
  }
}

TEST(GroupedGemm, EmptyGroupsHaveExactlyZeroWeightGradients) {
  std::mt19937_64 rng(2);
  const Tensor offsets = offsets_of({0, 9, 0});
  for_each_implementation([&](Backend backend) {
    const Tensor out = weight_grad(normal(rng, DType::kFloat32, {9, 20}),
                                   normal(rng, DType::kFloat32, {9, 35}), offsets, backend);
    for (std::int64_t i = 0; i < out.numel(); ++i) {
      EXPECT_EQ(out.get(i) == 0, i / 700 != 1) << i;
    }
  });
}

TEST(GroupedGemm, NonFiniteRowsStayInTheirRows) {
  std::mt19937_64 rng(3);
  Tensor a = normal(rng, DType::kFloat32, {40, 33});
  a.set(17 * 33 + 4, std::numeric_limits<double>::quiet_NaN());
  const Tensor b = normal(rng, DType::kFloat32, {2, 50, 33});
  for_each_implementation([&](Backend backend) {
    const Tensor out = product(a, b, true, offsets_of({20, 20}), backend);
    for (std::int64_t i = 0; i < out.numel(); ++i)
      EXPECT_EQ(std::isnan(out.get(i)), i / 50 == 17) << i;
  });
}

TEST(GroupedGemm, InfinitiesOfFewRowsStayInfinite) {
  std::mt19937_64 rng(6);
  Tensor a = normal(rng, DType::kBFloat16, {3, 10});
  a.set(10 + 9, std::numeric_limits<double>::infinity());  // beside a step that is multiplied alone
  const Tensor b = normal(rng, DType::kBFloat16, {1, 10, 40});
  for_each_implementation([&](Backend backend) {
    const Tensor out = product(a, b, false, offsets_of({3}), backend);
    for (std::int64_t i = 0; i < out.numel(); ++i) {
      EXPECT_EQ(std::isinf(out.get(i)), i / 40 == 1) << i;
      EXPECT_FALSE(std::isnan(out.get(i))) << i;
    }
  });
}

TEST(GroupedGemm, ThreadsDoNotChangeFewRows) {
  std::mt19937_64 rng(7);
  const Tensor offsets = offsets_of({1, 8, 0, 3});
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Tensor a = normal(rng, dtype, {12, 300}), bt = normal(rng, dtype, {4, 2100, 300}),
                 b = normal(rng, dtype, {4, 300, 2100});
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    const Tensor along = product(a, bt, true, offsets), across = product(a, b, false, offsets);
    for (int n : {2, 3, 5}) {
      omp_set_num_threads(n);
      EXPECT_TRUE(same_bits(product(a, bt, true, offsets), along)) << n;
      EXPECT_TRUE(same_bits(product(a, b, false, offsets), across)) << n;
    }
    omp_set_num_threads(threads);
  }
}

TEST(GroupedGemm, GradientsEqualFiniteDifferences) {
  std::mt19937_64 rng(4);
  const DType wide = DType::kFloat64;
  const Tensor offsets = offsets_of({3, 0, 4});
  for (bool transpose_b : {false, true}) {
    Tensor a = normal(rng, wide, {7, 5}),
           b = transpose_b ? normal(rng, wide, {3, 6, 5}) : normal(rng, wide, {3, 5, 6});
    const Tensor d = normal(rng, wide, {7, 6});
    for_each_implementation([&](Backend backend) {
      const Tensor d_a = product(d, b, !transpose_b, offsets, backend);
      const Tensor d_b =
          transpose_b ? weight_grad(d, a, offsets, backend) : weight_grad(a, d, offsets, backend);
      const auto objective = [&] {
        const Tensor out = product(a, b, transpose_b, offsets, backend);
        double sum = 0;
        for (std::int64_t i = 0; i < out.numel(); ++i) sum += out.get(i) * d.get(i);
        return sum;
      };
      for (std::int64_t i = 0; i < a.numel(); i += 2) {
        EXPECT_NEAR(d_a.get(i), central_difference(a, i, objective), 1e-8);
      }
      for (std::int64_t i = 0; i < b.numel(); i += 3) {
        EXPECT_NEAR(d_b.get(i), central_difference(b, i, objective), 1e-8);
      }
    });
  }
}

TEST(GroupedGemm, ThreadsAndWorkspaceDoNotChangeABit) {
  std::mt19937_64 rng(5);
  const Tensor offsets = offsets_of({700, 3, 0, 200});
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Tensor a = normal(rng, dtype, {903, 300}), b = normal(rng, dtype, {4, 140, 300}),
                 c = normal(rng, dtype, {903, 140});
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    const Tensor out = product(a, b, true, offsets), grad = weight_grad(a, c, offsets);
    for (int n : {2, 3, 5}) {
      omp_set_num_threads(n);
      EXPECT_TRUE(same_bits(product(a, b, true, offsets), out)) << n;
      EXPECT_TRUE(same_bits(product(a, b, true, offsets, Backend::kAuto, 1), out)) << n;
      EXPECT_TRUE(same_bits(weight_grad(a, c, offsets), grad)) << n;
    }
    omp_set_num_threads(threads);
  }
}

TEST(GroupedGemm, BadArgumentsAreNamed) {
  std::mt19937_64 rng(6);
  const Tensor a = normal(rng, DType::kFloat32, {6, 4}),
               b = normal(rng, DType::kFloat32, {2, 4, 3});
  Workspace workspace(grouped_gemm_workspace_bytes());
  const auto run = [&](const Tensor& a, const Tensor& b, const Tensor& offsets,
                       std::size_t bytes) -> std::string {
    Tensor out(DType::kFloat32, {6, 3});
    try {
      grouped_gemm(a, b, false, offsets, out, workspace.data(), bytes);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  const std::size_t bytes = workspace.bytes();
  EXPECT_THAT(run(a, normal(rng, DType::kFloat32, {2, 5, 3}), offsets_of({2, 4}), bytes),
              HasSubstr("b_EKN is [2, 5, 3] float32, expected [2, 4, 3] float32"));
  EXPECT_THAT(run(a, b, offsets_of({2, 4, 0}), bytes), HasSubstr("expected [3, 4, 3]"));
  EXPECT_THAT(run(a, b, offsets_of({2, 5}), bytes),
              HasSubstr("from 0 to 7, expected from 0 to the 6 rows"));
  EXPECT_THAT(run(a, b, offsets_of({7, -1}), bytes), HasSubstr("decrease from 7 to 6 at group 1"));
  EXPECT_THAT(run(a, b.to(DType::kFloat64), offsets_of({2, 4}), bytes),
              HasSubstr("float64, expected"));
  EXPECT_THAT(run(a, b, offsets_of({2, 4}), 100), HasSubstr("the workspace has 100 bytes"));
  EXPECT_EQ(run(a, b, offsets_of({2, 4}), bytes), "no error");
}

}  // namespace
}  // namespace dropless::testing
