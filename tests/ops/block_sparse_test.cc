// Block-sparse products over random topologies against the reference in double, for every transpose,
// storage type and instruction set; against dense products with a mask, grouped GEMM, and finite
// differences; threads and workspace change nothing.
#include "dropless/block_sparse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <functional>

#include "dropless/error.h"
#include "dropless/grouped_gemm.h"
#include "tests/ops/levels.h"
#include "tests/ops/tensor.h"
#include "tests/ops/topology.h"

namespace dropless::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int> values(const Tensor& tensor) {
  std::vector<int> out(tensor.numel());
  for (std::int64_t i = 0; i < tensor.numel(); ++i) out[i] = static_cast<int>(tensor.get(i));
  return out;
}

// A dense operand as it is stored.
Tensor stored(std::mt19937_64& rng, DType dtype, std::int64_t rows, std::int64_t cols,
              bool transpose) {
  return transpose ? normal(rng, dtype, {cols, rows}) : normal(rng, dtype, {rows, cols});
}

Tensor run(Tensor out, std::size_t slots, const std::function<void(Tensor&, Workspace&)>& product) {
  const std::size_t all = block_sparse_workspace_bytes();
  Workspace workspace(slots == 0 ? all : slots * (all / omp_get_max_threads()));
  product(out, workspace);
  EXPECT_TRUE(workspace.intact());
  return out;
}

Tensor sdd(const Tensor& a, bool ta, const Tensor& b, bool tb, Topology& t,
           Backend backend = Backend::kAuto, std::size_t slots = 0) {
  return run(Tensor(a.dtype(), {t.blocks(), t.block_size, t.block_size}), slots,
             [&](Tensor& out, Workspace& w) {
               dropless::sdd(a, ta, b, tb, t.view(), out, w.data(), w.bytes(), backend);
             });
}

Tensor dsd(const Tensor& a, bool ta, Topology& t, const Tensor& b, bool tb,
           Backend backend = Backend::kAuto, std::size_t slots = 0) {
  return run(Tensor(b.dtype(), {ta ? t.cols() : t.rows(), b.dim(tb ? 0 : 1)}), slots,
             [&](Tensor& out, Workspace& w) {
               dropless::dsd(a, ta, t.view(), b, tb, out, w.data(), w.bytes(), backend);
             });
}

Tensor dds(const Tensor& a, bool ta, const Tensor& b, bool tb, Topology& t,
           Backend backend = Backend::kAuto, std::size_t slots = 0) {
  return run(Tensor(a.dtype(), {a.dim(ta ? 1 : 0), tb ? t.rows() : t.cols()}), slots,
             [&](Tensor& out, Workspace& w) {
               dropless::dds(a, ta, b, tb, t.view(), out, w.data(), w.bytes(), backend);
             });
}

struct Shape {
  std::int64_t rows, cols, block_size;
  double density;
  std::int64_t dense;  // the side of the product that is no side of the sparse matrix
};

// Nothing at all, no blocks, all blocks, blocks below and above every tile, more rows and columns
// than a task takes, dense sides of zero and around the limits of steps and panels.
const Shape kShapes[] = {{0, 0, 128, 0, 5},    {3, 0, 16, 0, 4},     {2, 3, 32, 0, 7},
                         {2, 3, 8, 0.5, 0},    {1, 1, 1, 1, 1},      {4, 5, 16, 1, 33},
                         {9, 8, 5, 0.4, 257},  {3, 4, 128, .5, 70},  {70, 9, 3, 0.3, 20},
                         {8, 90, 4, 0.25, 31}, {6, 7, 31, 0.4, 530}, {2, 2, 100, 0.6, 130}};

TEST(BlockSparse, EqualsReferenceInDouble) {
  std::mt19937_64 rng(1);
  const DType wide = DType::kFloat64;
  for (const Shape& s : kShapes) {
    Topology t = random_topology(rng, s.rows, s.cols, s.block_size, s.density);
    SCOPED_TRACE(::testing::Message()
                 << s.rows << " x " << s.cols << " blocks of " << s.block_size);
    for (DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      // Rounding of the result, and of sums whose error grows like the root of their length.
      const double tolerance =
          2 * unit_roundoff(dtype) + 40 * unit_roundoff(accumulator_dtype(dtype));
      const Tensor data = normal(rng, dtype, {t.blocks(), s.block_size, s.block_size});
      for (bool ta : {false, true}) {
        for (bool tb : {false, true}) {
          SCOPED_TRACE(::testing::Message()
                       << dtype_name(dtype) << " transposes " << ta << " " << tb);
          const Tensor sdd_a = stored(rng, dtype, t.rows(), s.dense, ta),
                       sdd_b = stored(rng, dtype, s.dense, t.cols(), tb);
          const Tensor dsd_b = stored(rng, dtype, ta ? t.rows() : t.cols(), s.dense, tb);
          const Tensor dds_a = stored(rng, dtype, s.dense, tb ? t.cols() : t.rows(), ta);
          const Backend reference = Backend::kReference;
          const Tensor sdd_out = sdd(sdd_a.to(wide), ta, sdd_b.to(wide), tb, t, reference);
          const Tensor dsd_out = dsd(data.to(wide), ta, t, dsd_b.to(wide), tb, reference);
          const Tensor dds_out = dds(dds_a.to(wide), ta, data.to(wide), tb, t, reference);
          for_each_implementation([&](Backend backend) {
            EXPECT_LT(relative_error(sdd(sdd_a, ta, sdd_b, tb, t, backend), sdd_out), tolerance);
            EXPECT_LT(relative_error(dsd(data, ta, t, dsd_b, tb, backend), dsd_out), tolerance);
            EXPECT_LT(relative_error(dds(dds_a, ta, data, tb, t, backend), dds_out), tolerance);
          });
        }
      }
    }
  }
}

// The plain dense product of op(a) and op(b), [m, k] by [k, n].
Tensor dense_product(const Tensor& a, bool ta, const Tensor& b, bool tb) {
  const std::int64_t m = a.dim(ta ? 1 : 0), k = a.dim(ta ? 0 : 1), n = b.dim(tb ? 0 : 1);
  Tensor out(a.dtype(), {m, n});
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (std::int64_t p = 0; p < k; ++p) {
        sum += a.get(ta ? p * m + i : i * k + p) * b.get(tb ? j * k + p : p * n + j);
      }
      out.set(i * n + j, sum);
    }
  }
  return out;
}

// The dense matrix with zeros where no blocks are, and back.
Tensor to_dense(const Tensor& data, const Topology& t) {
  const std::int64_t S = t.block_size;
  Tensor out(data.dtype(), {t.rows(), t.cols()});
  for (std::int64_t i = 0; i < out.numel(); ++i) out.set(i, 0);
  for (std::int64_t e = 0; e < data.numel(); ++e) {
    const std::int64_t n = e / (S * S), i = e / S % S, j = e % S;
    const auto row = static_cast<std::int64_t>(t.row_indices.get(n)) * S + i;
    const auto col = static_cast<std::int64_t>(t.column_indices.get(n)) * S + j;
    out.set(row * t.cols() + col, data.get(e));
  }
  return out;
}

Tensor to_blocks(const Tensor& dense, const Topology& t) {
  const std::int64_t S = t.block_size;
  Tensor out(dense.dtype(), {t.blocks(), S, S});
  for (std::int64_t e = 0; e < out.numel(); ++e) {
    const std::int64_t n = e / (S * S), i = e / S % S, j = e % S;
    const auto row = static_cast<std::int64_t>(t.row_indices.get(n)) * S + i;
    const auto col = static_cast<std::int64_t>(t.column_indices.get(n)) * S + j;
    out.set(e, dense.get(row * t.cols() + col));
  }
  return out;
}

TEST(BlockSparse, ChainEqualsMaskedDenseProducts) {
  std::mt19937_64 rng(2);
  const DType wide = DType::kFloat64;
  Topology t = topology_of({{1, 0, 1, 0}, {0, 0, 0, 0}, {0, 0, 1, 1}}, 4, 12);
  for (bool ta : {false, true}) {
    for (bool tb : {false, true}) {
      const Tensor a = stored(rng, wide, 36, 20, ta), b = stored(rng, wide, 20, 48, tb);
      const Tensor c = stored(rng, wide, ta ? 36 : 48, 9, tb),
                   d = stored(rng, wide, 9, tb ? 48 : 36, ta);
      const Tensor blocks = to_blocks(dense_product(a, ta, b, tb), t);
      const Tensor masked = to_dense(blocks, t);
      for_each_implementation([&](Backend backend) {
        const Tensor s = sdd(a, ta, b, tb, t, backend);
        EXPECT_LT(relative_error(s, blocks), 1e-14);
        EXPECT_LT(relative_error(dsd(s, ta, t, c, tb, backend), dense_product(masked, ta, c, tb)),
                  1e-14);
        EXPECT_LT(relative_error(dds(d, ta, s, tb, t, backend), dense_product(d, ta, masked, tb)),
                  1e-14);
      });
    }
  }
}

TEST(BlockSparse, AbsentBlocksAreNeverRead) {
  std::mt19937_64 rng(3);
  // Block row 1 and block column 1 are empty: what the dense operands have there is of no account.
  Topology t = topology_of({{1, 0, 1}, {0, 0, 0}, {0, 0, 1}}, 3, 16);
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Tensor data = normal(rng, dtype, {3, 16, 16});
    Tensor b = normal(rng, dtype, {48, 40}), a = normal(rng, dtype, {40, 48});
    for (std::int64_t i = 16; i < 32; ++i) {
      for (std::int64_t j = 0; j < 40; ++j) {
        b.set(i * 40 + j, std::numeric_limits<double>::quiet_NaN());
        a.set(j * 48 + i, std::numeric_limits<double>::infinity());
      }
    }
    for_each_implementation([&](Backend backend) {
      const Tensor right = dsd(data, false, t, b, false, backend),
                   left = dds(a, false, data, false, t, backend);
      for (std::int64_t i = 0; i < 48; ++i) {
        for (std::int64_t j = 0; j < 40; ++j) {
          const bool empty = i / 16 == 1;
          EXPECT_TRUE(std::isfinite(right.get(i * 40 + j)));
          EXPECT_TRUE(std::isfinite(left.get(j * 48 + i)));
          EXPECT_EQ(right.get(i * 40 + j) == 0, empty);
          EXPECT_EQ(left.get(j * 48 + i) == 0, empty);
        }
      }
      const Tensor s = sdd(b, false, a, false, t, backend);
      for (std::int64_t i = 0; i < s.numel(); ++i) EXPECT_TRUE(std::isfinite(s.get(i)));
    });
  }
}

TEST(BlockSparse, EmptySumsAreZeroBlocks) {
  std::mt19937_64 rng(4);
  Topology t = topology_of({{1, 1}}, 2, 8);
  for_each_implementation([&](Backend backend) {
    const Tensor out = sdd(Tensor(DType::kBFloat16, {8, 0}), false,
                           Tensor(DType::kBFloat16, {0, 16}), false, t, backend);
    for (std::int64_t i = 0; i < out.numel(); ++i) EXPECT_EQ(out.get(i), 0) << i;
  });
}

// 16-bit outputs keep their sums in the workspace: more blocks and lines than have room in one
// thread's share.
TEST(BlockSparse, MoreSumsThanTheWorkspaceHolds) {
  std::mt19937_64 rng(10);
  const Backend backend = Backend::kAuto;
  Topology t = random_topology(rng, 10, 9, 128, 0.9);
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    const Tensor a = normal(rng, dtype, {t.rows(), 512}), b = normal(rng, dtype, {512, t.cols()}),
                 data = normal(rng, dtype, {t.blocks(), 128, 128});
    const auto all = [&](DType type, std::size_t slots) {
      const Tensor at = a.to(type), bt = b.to(type), dt = data.to(type);
      std::vector<Tensor> out;
      out.push_back(sdd(at, false, bt, false, t, backend, slots));
      out.push_back(dsd(dt, false, t, bt, true, backend, slots));
      out.push_back(dsd(dt, true, t, at, false, backend, slots));
      out.push_back(dds(bt, false, dt, true, t, backend, slots));
      out.push_back(dds(at, true, dt, false, t, backend, slots));
      return out;
    };
    const std::vector<Tensor> rounded = all(dtype, 1), wide = all(DType::kFloat64, 0);
    for (std::size_t i = 0; i < wide.size(); ++i) {
      EXPECT_LT(relative_error(rounded[i], wide[i]), 2 * unit_roundoff(dtype)) << i;
    }
  }
}

TEST(BlockSparse, GradientsEqualFiniteDifferences) {
  std::mt19937_64 rng(5);
  const DType wide = DType::kFloat64;
  Topology t = topology_of({{0, 1}, {1, 1}, {0, 0}}, 2, 3);
  Tensor a = normal(rng, wide, {9, 4}), b = normal(rng, wide, {4, 6}),
         data = normal(rng, wide, {3, 3, 3}), right = normal(rng, wide, {6, 5}),
         left = normal(rng, wide, {5, 9});
  const Tensor d_data = normal(rng, wide, {3, 3, 3}), d_right = normal(rng, wide, {9, 5}),
               d_left = normal(rng, wide, {5, 6});
  for_each_implementation([&](Backend backend) {
    const auto check = [&](Tensor& input, const Tensor& gradient, const Tensor& d,
                           const std::function<Tensor()>& product) {
      const auto objective = [&] {
        const Tensor out = product();
        double sum = 0;
        for (std::int64_t i = 0; i < out.numel(); ++i) sum += out.get(i) * d.get(i);
        return sum;
      };
      for (std::int64_t i = 0; i < input.numel(); ++i) {
        EXPECT_NEAR(gradient.get(i), central_difference(input, i, objective), 1e-8) << i;
      }
    };
    const auto of_sdd = [&] { return sdd(a, false, b, false, t, backend); };
    check(a, dsd(d_data, false, t, b, true, backend), d_data, of_sdd);
    check(b, dds(a, true, d_data, false, t, backend), d_data, of_sdd);
    const auto of_dsd = [&] { return dsd(data, false, t, right, false, backend); };
    check(data, sdd(d_right, false, right, true, t, backend), d_right, of_dsd);
    check(right, dsd(data, true, t, d_right, false, backend), d_right, of_dsd);
    const auto of_dds = [&] { return dds(left, false, data, false, t, backend); };
    check(left, dds(d_left, false, data, true, t, backend), d_left, of_dds);
    check(data, sdd(left, true, d_left, false, t, backend), d_left, of_dds);
  });
}

TEST(BlockSparse, ThreadsAndWorkspaceDoNotChangeABit) {
  std::mt19937_64 rng(6);
  Topology t = random_topology(rng, 40, 30, 32, 0.3);
  const int threads = omp_get_max_threads();
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    const Tensor a = normal(rng, dtype, {t.rows(), 300}), b = normal(rng, dtype, {300, t.cols()}),
                 data = normal(rng, dtype, {t.blocks(), 32, 32});
    const auto all = [&](std::size_t slots) {
      const Backend backend = Backend::kAuto;
      std::vector<Tensor> out;
      out.push_back(sdd(a, false, b, false, t, backend, slots));
      out.push_back(dsd(data, false, t, b, true, backend, slots));
      out.push_back(dsd(data, true, t, a, false, backend, slots));
      out.push_back(dds(b, false, data, true, t, backend, slots));
      out.push_back(dds(a, true, data, false, t, backend, slots));
      return out;
    };
    omp_set_num_threads(1);
    const std::vector<Tensor> one = all(0);
    for (int n : {2, 3}) {
      omp_set_num_threads(n);
      for (std::size_t slots : {0, 1}) {
        const std::vector<Tensor> many = all(slots);
        for (std::size_t i = 0; i < one.size(); ++i) {
          EXPECT_TRUE(same_bits(many[i], one[i])) << i << " with " << n << " threads";
        }
      }
    }
    omp_set_num_threads(threads);
  }
}

struct Experts {
  Tensor padded_offsets;
  Topology topology;
};

Experts experts_of(const std::vector<std::int64_t>& sizes, std::int64_t d_ffn,
                   std::int64_t block_size, Backend backend = Backend::kAuto) {
  const Tensor offsets = offsets_of(sizes);
  const ExpertTopologySize size = expert_topology_size(offsets, d_ffn, block_size);
  Experts experts{
      Tensor(DType::kInt64, {offsets.numel()}),
      Topology(size.rows / block_size, size.cols / block_size, block_size, size.blocks)};
  expert_topology(offsets, d_ffn, experts.padded_offsets, experts.topology.view(), backend);
  transpose_topology(experts.topology.view(), backend);
  return experts;
}

TEST(BlockSparse, ExpertTopologyPadsEachExpertToBlocks) {
  for (Backend backend : {Backend::kAuto, Backend::kReference}) {
    Experts e = experts_of({5, 0, 4, 1}, 8, 4, backend);
    EXPECT_THAT(values(e.padded_offsets), ElementsAre(0, 8, 8, 12, 16));
    EXPECT_EQ(e.topology.rows(), 16);
    EXPECT_EQ(e.topology.cols(), 32);
    EXPECT_THAT(values(e.topology.row_indices), ElementsAre(0, 0, 1, 1, 2, 2, 3, 3));
    EXPECT_THAT(values(e.topology.column_indices), ElementsAre(0, 1, 0, 1, 4, 5, 6, 7));
    EXPECT_THAT(values(e.topology.offsets), ElementsAre(0, 2, 4, 6, 8));
    EXPECT_THAT(values(e.topology.column_indices_t), ElementsAre(0, 1, 0, 1, 2, 2, 3, 3));
    EXPECT_THAT(values(e.topology.offsets_t), ElementsAre(0, 2, 4, 4, 4, 5, 6, 7, 8));
    EXPECT_THAT(values(e.topology.block_offsets_t), ElementsAre(0, 2, 1, 3, 4, 5, 6, 7));
  }
}

TEST(BlockSparse, BlockDiagonalEqualsGroupedGemm) {
  std::mt19937_64 rng(7);
  const std::int64_t D = 72, F = 256, S = 128;
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    Experts e = experts_of({0, 130, 128, 1}, F, S);
    Topology& t = e.topology;
    const std::int64_t R = t.rows(), columns = F / S;
    const Tensor x = normal(rng, dtype, {R, D}), h = normal(rng, dtype, {R, F}),
                 w = normal(rng, dtype, {4, F, D});
    // The same bytes, the experts' rows one below the other.
    ConstTensorView w_CD = w;
    w_CD = ConstTensorView(w_CD.data, dtype, {4 * F, D});
    // An expert's activations [rows, F] as blocks.
    const auto blocks_of = [&](const Tensor& rows_RF) {
      Tensor out(dtype, {t.blocks(), S, S});
      for (std::int64_t i = 0; i < out.numel(); ++i) {
        const std::int64_t n = i / (S * S), row = n / columns * S + i / S % S;
        out.set(i, rows_RF.get(row * F + n % columns * S + i % S));
      }
      return out;
    };
    Workspace workspace(grouped_gemm_workspace_bytes());
    Tensor up(dtype, {R, F}), down(dtype, {R, D}), d_w(dtype, {4, F, D});
    grouped_gemm(x, w, true, e.padded_offsets, up, workspace.data(), workspace.bytes());
    grouped_gemm(h, w, false, e.padded_offsets, down, workspace.data(), workspace.bytes());
    grouped_gemm_weight_grad(h, x, e.padded_offsets, d_w, workspace.data(), workspace.bytes());

    Tensor s(dtype, {t.blocks(), S, S}), y(dtype, {R, D});
    dropless::sdd(x, false, w_CD, true, t.view(), s, workspace.data(), workspace.bytes());
    const Tensor h_blocks = blocks_of(h);
    dropless::dsd(h_blocks, false, t.view(), w_CD, false, y, workspace.data(), workspace.bytes());
    const double tolerance = unit_roundoff(dtype) + 40 * unit_roundoff(DType::kFloat32);
    EXPECT_LT(relative_error(s, blocks_of(up)), tolerance);
    EXPECT_LT(relative_error(y, down), tolerance);
    EXPECT_LT(relative_error(dsd(h_blocks, true, t, x, false), d_w), tolerance);
  }
}

TEST(BlockSparse, BadTopologiesAreNamed) {
  std::mt19937_64 rng(8);
  const Topology good = topology_of({{1, 1, 0}, {0, 0, 1}}, 3, 4);
  const Tensor a = normal(rng, DType::kFloat32, {8, 5}), b = normal(rng, DType::kFloat32, {5, 12}),
               data = normal(rng, DType::kFloat32, {3, 4, 4});
  // What sdd (row walk) and transposed dsd (column walk) say of a topology with one entry changed.
  const auto with = [&](Tensor Topology::*tensor, std::int64_t i, double value) {
    Topology t = good;
    (t.*tensor).set(i, value);
    const std::string row_walk = message_of([&] { sdd(a, false, b, false, t); });
    return row_walk != "no error" ? row_walk : message_of([&] { dsd(data, true, t, a, false); });
  };
  EXPECT_EQ(with(&Topology::offsets, 0, 0), "no error");
  EXPECT_THAT(with(&Topology::column_indices, 2, 3),
              HasSubstr("column_indices[2] is 3, outside of the 3 block columns"));
  EXPECT_THAT(with(&Topology::column_indices, 0, -1),
              HasSubstr("column_indices[0] is -1, outside"));
  EXPECT_THAT(with(&Topology::column_indices, 1, 0),
              HasSubstr("column_indices[1] is 0 after 0 in block row 0"));
  EXPECT_THAT(with(&Topology::row_indices, 2, 7),
              HasSubstr("row_indices[2] is 7, but offsets put block 2 into block row 1"));
  EXPECT_THAT(with(&Topology::offsets, 1, 4), HasSubstr("offsets decrease from 4 to 3 at line 1"));
  EXPECT_THAT(with(&Topology::offsets, 1, -1),
              HasSubstr("offsets decrease from 0 to -1 at line 0"));
  EXPECT_THAT(with(&Topology::offsets, 2, 2),
              HasSubstr("offsets run from 0 to 2, expected from 0 to the 3 blocks"));
  EXPECT_THAT(with(&Topology::offsets_t, 1, 9), HasSubstr("offsets_t decrease from 9 to 2"));
  EXPECT_THAT(with(&Topology::block_offsets_t, 0, 3),
              HasSubstr("block_offsets_t[0] is 3, outside of the 3 blocks"));
  EXPECT_THAT(with(&Topology::block_offsets_t, 0, -1), HasSubstr("block_offsets_t[0] is -1"));
  EXPECT_THAT(
      with(&Topology::block_offsets_t, 1, 0),
      HasSubstr("entry 1 of the column walk puts block 0 at (0, 1), but it stands at (0, 0)"));
  EXPECT_THAT(with(&Topology::column_indices_t, 2, 0),
              HasSubstr("puts block 2 at (0, 2), but it stands at (1, 2)"));

  const auto changed = [&](const std::function<void(BlockTopology&)>& change) {
    Topology t = good;
    BlockTopology view = t.view();
    change(view);
    Tensor out(DType::kFloat32, {3, 4, 4});
    Workspace workspace(block_sparse_workspace_bytes());
    return message_of(
        [&] { dropless::sdd(a, false, b, false, view, out, workspace.data(), workspace.bytes()); });
  };
  EXPECT_THAT(changed([](BlockTopology& t) { t.block_size = 0; }),
              HasSubstr("block_size is 0, expected 1 to 128"));
  EXPECT_THAT(changed([](BlockTopology& t) { t.block_size = 129; }),
              HasSubstr("block_size is 129"));
  EXPECT_THAT(changed([](BlockTopology& t) { t.rows = 9; }),
              HasSubstr("9 x 12 elements, expected multiples of block_size 4"));
  EXPECT_THAT(changed([](BlockTopology& t) { t.cols = -4; }), HasSubstr("8 x -4 elements"));
  EXPECT_THAT(changed([](BlockTopology& t) { t.rows = 12; }),
              HasSubstr("offsets is [3] int32, expected [4] int32"));
  EXPECT_THAT(changed([](BlockTopology& t) { t.row_indices = {}; }),
              HasSubstr("row_indices is absent"));
  EXPECT_THAT(changed([](BlockTopology& t) { t.column_indices.dtype = DType::kInt64; }),
              HasSubstr("column_indices is [3] int64, expected [3] int32"));
}

TEST(BlockSparse, BadArgumentsAreNamed) {
  std::mt19937_64 rng(9);
  Topology t = topology_of({{1, 1, 0}, {0, 0, 1}}, 3, 4);
  const DType type = DType::kFloat32;
  const Tensor a = normal(rng, type, {8, 5}), b = normal(rng, type, {5, 12}),
               data = normal(rng, type, {3, 4, 4}), right = normal(rng, type, {12, 6}),
               left = normal(rng, type, {6, 8});
  const auto sdd_error = [&](const Tensor& a, bool ta, const Tensor& b, bool tb) {
    return message_of([&] { sdd(a, ta, b, tb, t); });
  };
  EXPECT_THAT(sdd_error(a, true, b, false), HasSubstr("sdd: a is [8, 5] float32, expected [8, 8]"));
  EXPECT_THAT(sdd_error(a, false, b, true),
              HasSubstr("sdd: b is [5, 12] float32, expected [12, 5]"));
  EXPECT_THAT(sdd_error(a, false, b.to(DType::kBFloat16), false),
              HasSubstr("expected [5, 12] float32"));
  EXPECT_THAT(message_of([&] { dsd(data, true, t, right, false); }),
              HasSubstr("dsd: b is [12, 6] float32, expected [8, 6] float32"));
  EXPECT_THAT(message_of([&] { dds(left, false, data, true, t); }),
              HasSubstr("dds: a is [6, 8] float32, expected [6, 12] float32"));
  EXPECT_THAT(message_of([&] {
                dsd(normal(rng, type, {2, 4, 4}), false, t, right, false);
              }),
              HasSubstr("dsd: a_data is [2, 4, 4] float32, expected [3, 4, 4] float32"));
  EXPECT_THAT(message_of([&] { dds(left, false, right, false, t); }),
              HasSubstr("dds: b_data is [12, 6] float32, expected [3, 4, 4] float32"));

  // Only the products that go by columns need the column walk.
  BlockTopology rows_only = t.view();
  rows_only.column_indices_t = rows_only.offsets_t = rows_only.block_offsets_t = {};
  Tensor out(type, {8, 6}), out_t(type, {12, 5});
  Workspace workspace(block_sparse_workspace_bytes());
  dropless::dsd(data, false, rows_only, right, false, out, workspace.data(), workspace.bytes());
  EXPECT_THAT(message_of([&] {
                dropless::dsd(data, true, rows_only, a, false, out_t, workspace.data(),
                              workspace.bytes());
              }),
              HasSubstr("the topology has no column walk"));
  EXPECT_THAT(message_of([&] {
                dropless::dsd(data, false, rows_only, right, false, out, workspace.data(), 100);
              }),
              HasSubstr("the workspace has 100 bytes"));

  const Tensor offsets = offsets_of({3, 4});
  EXPECT_THAT(message_of([&] { expert_topology_size(offsets, 10, 4); }),
              HasSubstr("d_ffn is 10, expected a multiple of block_size 4"));
  EXPECT_THAT(message_of([&] {
                expert_topology_size(offsets_of({3, -1}), 8, 4);
              }),
              HasSubstr("offsets_E1 decrease from 3 to 2 at group 1"));
  EXPECT_THAT(
      message_of([&] { expert_topology_size(offsets_of({std::int64_t{1} << 40}), 1024, 128); }),
      HasSubstr("reach 2^31 blocks"));
  Tensor padded(DType::kInt64, {3});
  EXPECT_THAT(message_of([&] { expert_topology(offsets, 8, padded, t.view()); }),
              HasSubstr("8 x 12 elements in 3 blocks, expected 8 x 16 in 4"));
}

}  // namespace
}  // namespace dropless::testing
