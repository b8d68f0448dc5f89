// Every op on random shapes, types and skews, one implementation after the other against the plain
// loops: one expert, all of them chosen, one token, none, empty groups, one expert that takes all.
// Longer with DROPLESS_NIGHTLY. A failure names its seed and shape; `kFirstSeed` reproduces it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>

#include "dropless/activation.h"
#include "dropless/block_sparse.h"
#include "dropless/grouped_gemm.h"
#include "dropless/index.h"
#include "dropless/permute.h"
#include "dropless/route.h"
#include "src/common/check.h"
#include "tests/ops/levels.h"
#include "tests/ops/moe_case.h"
#include "tests/ops/topology.h"

namespace dropless::testing {
namespace {

constexpr std::uint64_t kFirstSeed = 1;
constexpr DType kInts = DType::kInt32;

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : rng(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
  }
  bool chance(double p) { return std::bernoulli_distribution(p)(rng); }
  // Mostly small, the edges often.
  std::int64_t size(std::int64_t least, std::int64_t most) {
    return chance(0.25)  ? least
           : chance(0.7) ? between(least, std::min(most, least + 40))
                         : between(least, most);
  }
  DType floating() {
    const DType types[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};
    return types[between(0, 3)];
  }
  // Rows over groups: even, random with empty ones, or all in one.
  std::vector<std::int64_t> group_sizes(std::int64_t groups, std::int64_t rows) {
    std::vector<std::int64_t> sizes(groups);
    const std::int64_t kind = between(0, 2), favourite = between(0, groups - 1);
    for (std::int64_t r = 0; r < rows; ++r) {
      const double u = std::uniform_real_distribution<double>(0, 1)(rng);
      const auto skewed = static_cast<std::int64_t>(u * u * u * static_cast<double>(groups));
      ++sizes[kind == 0 ? r % groups : kind == 1 ? std::min(skewed, groups - 1) : favourite];
    }
    return sizes;
  }
  // Experts of the (token, k) pairs, distinct within a token; skewed alike.
  Tensor indices(std::int64_t tokens, std::int64_t top_k, std::int64_t experts) {
    Tensor t(kInts, {tokens, top_k});
    const bool skewed = chance(0.5);
    for (std::int64_t i = 0; i < tokens; ++i) {
      std::vector<std::int64_t> order(experts);
      for (std::int64_t e = 0; e < experts; ++e) order[e] = e;
      if (!skewed || chance(0.2)) std::shuffle(order.begin(), order.end(), rng);
      for (std::int64_t k = 0; k < top_k; ++k) t.set(i * top_k + k, static_cast<double>(order[k]));
    }
    return t;
  }

  std::mt19937_64 rng;
};

// body(draw) for each seed.
void for_seeds(int count, const std::function<void(Draw&)>& body) {
  if (std::getenv("DROPLESS_NIGHTLY") != nullptr) count *= 20;
  for (std::uint64_t seed = kFirstSeed; seed < kFirstSeed + static_cast<std::uint64_t>(count);
       ++seed) {
    SCOPED_TRACE(concat("seed ", seed));
    Draw draw(seed);
    body(draw);
    if (::testing::Test::HasFailure()) return;
  }
}

// Runs `op` on fresh outputs for the reference and for each implementation; integers must be equal
// to the bit, floating outputs up to `sums` roundings of the accumulator and one of their own type.
void compare(const std::vector<Tensor>& outputs, double sums,
             const std::function<void(std::vector<Tensor>&, Backend)>& op) {
  std::vector<Tensor> expected = outputs;
  op(expected, Backend::kReference);
  for_each_implementation([&](Backend backend) {
    std::vector<Tensor> actual = outputs;
    op(actual, backend);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      SCOPED_TRACE(concat("output ", i, " ", describe(expected[i])));
      const DType dtype = outputs[i].dtype();
      if (dtype == DType::kInt32 || dtype == DType::kInt64) {
        EXPECT_TRUE(same_bits(actual[i], expected[i]));
      } else {
        EXPECT_LE(relative_error(actual[i], expected[i]),
                  (dtype == accumulator_dtype(dtype) ? 0 : 2 * unit_roundoff(dtype)) +
                      sums * unit_roundoff(accumulator_dtype(dtype)));
      }
    }
  });
}

// How far two orders of a sum of `depth` products may differ.
double sum_error(std::int64_t depth) { return 8 + 4 * std::sqrt(static_cast<double>(depth)); }

TEST(Random, Route) {
  for_seeds(60, [](Draw& draw) {
    const std::int64_t groups = draw.between(1, 4);
    const std::int64_t E = groups * draw.size(1, 24), T = draw.size(0, 200);
    RouteConfig config{.score = draw.chance(0.5) ? RouteScore::kSigmoid : RouteScore::kSoftmax,
                       .num_groups = groups,
                       .group_top_k = draw.between(1, groups),
                       .normalize_p = static_cast<double>(draw.between(0, 2)),
                       .scaling_factor = draw.chance(0.5) ? 1 : 2.5};
    const std::int64_t eligible = config.group_top_k * (E / groups);
    const std::int64_t K =
        draw.chance(0.2) ? eligible : draw.between(1, std::min<std::int64_t>(eligible, 6));
    const std::int64_t selection = draw.between(0, 3);
    if (selection == 2) config.selection = RouteSelection::kUniform;
    if (selection == 3) config.selection = RouteSelection::kGiven;
    const DType dtype = draw.chance(0.5) ? DType::kFloat32 : DType::kFloat64;
    SCOPED_TRACE(
        concat("T ", T, " E ", E, " K ", K, " groups ", groups, " of ", config.group_top_k));
    const Tensor logits = normal(draw.rng, dtype, {T, E}, 2);
    const Tensor bias = draw.chance(0.3) ? normal(draw.rng, dtype, {E}, 0.3) : Tensor();
    const Tensor given = draw.indices(T, K, E);
    const Tensor d_weights = normal(draw.rng, dtype, {T, K}),
                 d_losses = normal(draw.rng, dtype, {2});
    Workspace workspace(route_workspace_bytes(T, E, dtype));
    // Scores equal up to rounding may be chosen either way: compare on what the reference chose.
    Tensor chosen = given, counts(kInts, {E});
    {
      Tensor weights(dtype, {T, K});
      route_forward(config, logits, bias, weights, chosen, {}, counts, workspace.data(),
                    workspace.bytes(), Backend::kReference);
    }
    RouteConfig replay = config;
    replay.selection = RouteSelection::kGiven;
    compare({Tensor(dtype, {T, K}), Tensor(dtype, {2}), Tensor(kInts, {E})}, 60,
            [&](std::vector<Tensor>& out, Backend backend) {
              Tensor indices = chosen;
              route_forward(replay, logits, bias, out[0], indices, out[1], out[2], workspace.data(),
                            workspace.bytes(), backend);
            });
    compare({Tensor(dtype, {T, E})}, 400, [&](std::vector<Tensor>& out, Backend backend) {
      route_backward(config, logits, chosen, counts, d_weights, d_losses, out[0], backend);
    });
    for_each_implementation([&](Backend backend) {
      Tensor indices = given, weights(dtype, {T, K});
      route_forward(config, logits, bias, weights, indices, {}, {}, workspace.data(),
                    workspace.bytes(), backend);
      std::int64_t different = 0;
      for (std::int64_t i = 0; i < indices.numel(); ++i)
        different += indices.get(i) != chosen.get(i);
      EXPECT_LE(different, indices.numel() / 100);
    });
    EXPECT_TRUE(workspace.intact());
  });
}

TEST(Random, Jitter) {
  for_seeds(20, [](Draw& draw) {
    const std::int64_t T = draw.size(0, 300), D = draw.size(1, 200);
    const DType dtype = draw.floating();
    const Tensor x = normal(draw.rng, dtype, {T, D});
    const std::uint64_t seed = draw.rng(), stream = draw.rng();
    compare({Tensor(dtype, {T, D})}, 2, [&](std::vector<Tensor>& out, Backend backend) {
      route_jitter(x, 0.25, seed, stream, out[0], backend);
    });
  });
}

TEST(Random, PermuteAndCombine) {
  for_seeds(60, [](Draw& draw) {
    const std::int64_t E = draw.size(1, 40),
                       K = draw.chance(0.2) ? E : draw.between(1, std::min<std::int64_t>(E, 5));
    const std::int64_t T = draw.size(0, 400), D = draw.size(1, 130), R = T * K;
    const DType dtype = draw.floating(), sums = accumulator_dtype(dtype);
    const std::int64_t capacity = draw.chance(0.4) ? draw.between(0, 1 + R / E) : -1;
    SCOPED_TRACE(concat("T ", T, " E ", E, " K ", K, " D ", D, " capacity ", capacity));
    const Tensor indices = draw.indices(T, K, E);
    Workspace workspace(dispatch_order_workspace_bytes(T, E));
    const auto order = [&](Tensor& rows, Tensor& offsets, Tensor& tokens, Backend backend) {
      dispatch_order(indices, rows, offsets, tokens, workspace.data(), workspace.bytes(), backend,
                     capacity);
    };
    const Tensor rows0(kInts, {T, K}), offsets0(DType::kInt64, {E + 1}), tokens0(kInts, {R});
    compare({rows0, offsets0, tokens0}, 0, [&](std::vector<Tensor>& out, Backend backend) {
      order(out[0], out[1], out[2], backend);
    });
    Tensor rows = rows0, offsets = offsets0, tokens = tokens0;
    order(rows, offsets, tokens, Backend::kReference);
    // Rows, or slots of the padded or the binned layout.
    const std::int64_t layout = draw.between(0, 2);
    std::int64_t slots = R;
    if (layout > 0) {
      Tensor padded(DType::kInt64, {E + 1});
      const std::int64_t block = draw.between(1, 9), bin = draw.between(0, 1 + R / E);
      compare({padded}, 0, [&](std::vector<Tensor>& out, Backend backend) {
        padded_offsets(offsets, block, out[0], backend);
      });
      padded_offsets(offsets, block, padded);
      const auto place = [&](Tensor& out, Backend backend) {
        layout == 1 ? padded_slots(indices, rows, offsets, padded, out, backend)
                    : binned_slots(indices, rows, offsets, bin, out, backend);
      };
      compare({rows0}, 0,
              [&](std::vector<Tensor>& out, Backend backend) { place(out[0], backend); });
      Tensor placed = rows0;
      place(placed, Backend::kReference);
      rows = placed;
      slots = layout == 1 ? static_cast<std::int64_t>(padded.get(E)) : E * bin;
    }
    const Tensor x = normal(draw.rng, dtype, {T, D}), y = normal(draw.rng, dtype, {slots, D}),
                 weights = normal(draw.rng, sums, {T, K});
    compare({Tensor(dtype, {slots, D})}, 0,
            [&](std::vector<Tensor>& out, Backend backend) { gather(x, rows, out[0], backend); });
    compare({Tensor(dtype, {T, D})}, sum_error(K), [&](std::vector<Tensor>& out, Backend backend) {
      gather_backward(y, rows, out[0], backend);
    });
    compare({Tensor(dtype, {T, D})}, sum_error(K), [&](std::vector<Tensor>& out, Backend backend) {
      combine(y, weights, rows, out[0], backend);
    });
    compare({Tensor(dtype, {slots, D}), Tensor(sums, {T, K})}, sum_error(D),
            [&](std::vector<Tensor>& out, Backend backend) {
              combine_backward(y, weights, rows, x, out[0], out[1], backend);
            });
    EXPECT_TRUE(workspace.intact());
  });
}

TEST(Random, IndexOps) {
  for_seeds(40, [](Draw& draw) {
    const std::int64_t E = draw.size(1, 60), N = draw.size(0, 3000), B = draw.size(1, 5);
    SCOPED_TRACE(concat("N ", N, " E ", E, " B ", B));
    Tensor keys(kInts, {N});
    const std::vector<std::int64_t> sizes = draw.group_sizes(E, N);
    std::int64_t next = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      for (std::int64_t i = 0; i < sizes[e]; ++i) keys.set(next++, static_cast<double>(e));
    }
    std::shuffle(keys.as<std::int32_t>(), keys.as<std::int32_t>() + N, draw.rng);
    const Tensor offsets = offsets_of(sizes);
    Workspace workspace(sort_workspace_bytes(N, E));
    compare({Tensor(kInts, {E})}, 0,
            [&](std::vector<Tensor>& out, Backend backend) { histogram(keys, out[0], backend); });
    compare({Tensor(kInts, {N}), Tensor(kInts, {N})}, 0,
            [&](std::vector<Tensor>& out, Backend backend) {
              sort(keys, E, out[0], out[1], workspace.data(), workspace.bytes(), backend);
            });
    EXPECT_TRUE(workspace.intact());
    Tensor x(DType::kInt64, {B, E});
    for (std::int64_t i = 0; i < B * E; ++i) x.set(i, static_cast<double>(draw.between(-9, 9)));
    compare({Tensor(DType::kInt64, {B, E}), Tensor(DType::kInt64, {B, E})}, 0,
            [&](std::vector<Tensor>& out, Backend backend) {
              inclusive_cumsum(x, out[0], backend);
              exclusive_cumsum(x, out[1], backend);
            });
    const std::int64_t tile = draw.between(1, 70), tiles = tile_table_size(offsets, tile);
    compare({Tensor(kInts, {tiles, 3})}, 0, [&](std::vector<Tensor>& out, Backend backend) {
      tile_table(offsets, tile, out[0], backend);
    });
    const DType dtype = draw.floating();
    const Tensor values = normal(draw.rng, dtype, {B, E}), d_out = normal(draw.rng, dtype, {B, N});
    compare({Tensor(dtype, {B, N})}, 0, [&](std::vector<Tensor>& out, Backend backend) {
      replicate(values, offsets, out[0], backend);
    });
    compare({Tensor(dtype, {B, E})}, sum_error(N), [&](std::vector<Tensor>& out, Backend backend) {
      replicate_backward(d_out, offsets, out[0], backend);
    });
  });
}

TEST(Random, GroupedGemm) {
  for_seeds(60, [](Draw& draw) {
    const std::int64_t E = draw.size(1, 12), R = draw.size(0, 700);
    const std::int64_t K = draw.size(1, 700), N = draw.size(1, 330);
    const DType dtype = draw.floating();
    SCOPED_TRACE(concat("R ", R, " E ", E, " K ", K, " N ", N, " ", dtype_name(dtype)));
    const Tensor offsets = offsets_of(draw.group_sizes(E, R));
    const bool transpose = draw.chance(0.5);
    const Tensor a = normal(draw.rng, dtype, {R, K}), out_grad = normal(draw.rng, dtype, {R, N});
    const Tensor b =
        transpose ? normal(draw.rng, dtype, {E, N, K}) : normal(draw.rng, dtype, {E, K, N});
    Workspace workspace(grouped_gemm_workspace_bytes());
    compare({Tensor(dtype, {R, N})}, sum_error(K), [&](std::vector<Tensor>& out, Backend backend) {
      grouped_gemm(a, b, transpose, offsets, out[0], workspace.data(), workspace.bytes(), backend);
    });
    compare({Tensor(dtype, {E, K, N})}, sum_error(R),
            [&](std::vector<Tensor>& out, Backend backend) {
              grouped_gemm_weight_grad(a, out_grad, offsets, out[0], workspace.data(),
                                       workspace.bytes(), backend);
            });
    EXPECT_TRUE(workspace.intact());
  });
}

TEST(Random, BlockSparse) {
  for_seeds(30, [](Draw& draw) {
    const std::int64_t S = draw.chance(0.5) ? draw.between(1, 40) : 128;
    const std::int64_t rows = draw.between(0, S == 128 ? 3 : 9),
                       cols = draw.between(0, S == 128 ? 3 : 9);
    const std::int64_t depth = draw.size(1, 300);
    const DType dtype = draw.floating();
    Topology t =
        random_topology(draw.rng, rows, cols, S, static_cast<double>(draw.between(0, 4)) / 4);
    SCOPED_TRACE(concat(rows, " x ", cols, " blocks of ", S, ", ", t.blocks(), " there, depth ",
                        depth, " ", dtype_name(dtype)));
    const bool ta = draw.chance(0.5), tb = draw.chance(0.5);
    const auto dense = [&](std::int64_t m, std::int64_t n, bool transposed) {
      return transposed ? normal(draw.rng, dtype, {n, m}) : normal(draw.rng, dtype, {m, n});
    };
    Workspace workspace(block_sparse_workspace_bytes());
    const Tensor a = dense(t.rows(), depth, ta), b = dense(depth, t.cols(), tb);
    compare({Tensor(dtype, {t.blocks(), S, S})}, sum_error(depth),
            [&](std::vector<Tensor>& out, Backend backend) {
              sdd(a, ta, b, tb, t.view(), out[0], workspace.data(), workspace.bytes(), backend);
            });
    const Tensor data = normal(draw.rng, dtype, {t.blocks(), S, S});
    const std::int64_t M = ta ? t.cols() : t.rows(), K = ta ? t.rows() : t.cols();
    const Tensor right = dense(K, depth, tb), left = dense(depth, M, tb);
    compare(
        {Tensor(dtype, {M, depth})}, sum_error(K), [&](std::vector<Tensor>& out, Backend backend) {
          dsd(data, ta, t.view(), right, tb, out[0], workspace.data(), workspace.bytes(), backend);
        });
    compare(
        {Tensor(dtype, {depth, K})}, sum_error(M), [&](std::vector<Tensor>& out, Backend backend) {
          dds(left, tb, data, ta, t.view(), out[0], workspace.data(), workspace.bytes(), backend);
        });
    EXPECT_TRUE(workspace.intact());
  });
}

TEST(Random, Activation) {
  for_seeds(40, [](Draw& draw) {
    const auto activation = static_cast<Activation>(draw.between(0, 4));
    const std::int64_t R = draw.size(0, 90), F = draw.size(1, 700);
    const DType dtype = draw.floating();
    SCOPED_TRACE(concat("R ", R, " F ", F, " activation ", static_cast<int>(activation), " ",
                        dtype_name(dtype)));
    const bool gated = draw.chance(0.5);
    const Tensor gate = normal(draw.rng, dtype, {R, F}, 3), d_a = normal(draw.rng, dtype, {R, F});
    const Tensor up = gated ? normal(draw.rng, dtype, {R, F}) : Tensor();
    compare({Tensor(dtype, {R, F})}, 16, [&](std::vector<Tensor>& out, Backend backend) {
      activation_forward(activation, gate, up, out[0], backend);
    });
    std::vector<Tensor> outputs = {Tensor(dtype, {R, F})};
    if (gated) outputs.push_back(outputs[0]);
    compare(outputs, 16, [&](std::vector<Tensor>& out, Backend backend) {
      activation_backward(activation, gate, up, d_a, out[0],
                          gated ? TensorView(out[1]) : TensorView(), backend);
    });
  });
}

// The layer's routing is checked above: here the experts are given.
TEST(Random, WholeLayer) {
  for_seeds(40, [](Draw& draw) {
    const std::int64_t E = draw.size(1, 16),
                       K = draw.chance(0.25) ? E : draw.between(1, std::min<std::int64_t>(E, 4));
    MoEConfig config = config_of(E, K, draw.size(1, 150), draw.size(1, 150),
                                 static_cast<Activation>(draw.between(0, 4)), draw.chance(0.6),
                                 static_cast<double>(draw.between(0, 2)));
    config.route.selection = RouteSelection::kGiven;
    config.expert_bias = draw.chance(0.3);
    config.capacity_factor = draw.chance(0.3) ? 0.25 * static_cast<double>(draw.between(0, 6)) : 0;
    config.shared_d_ffn = draw.chance(0.3) ? draw.size(1, 90) : 0;
    config.shared_weighted = draw.chance(0.5);
    config.shared_bias = config.shared_d_ffn > 0 && draw.chance(0.5);
    const std::int64_t T = draw.size(0, 300);
    const DType dtype = draw.floating();
    SCOPED_TRACE(concat("T ", T, " E ", E, " K ", K, " D ", config.d_model, " F ", config.d_ffn,
                        " ", dtype_name(dtype)));
    MoECase input(config, T, dtype, draw.rng());
    input.indices_TK = draw.indices(T, K, E);
    const auto outputs = [](MoECase& c) {
      return std::vector<Tensor*>{
          &c.out_TD,         &c.losses_2,      &c.counts_E,       &c.d_x_TD,
          &c.d_w1_EFD,       &c.d_v1_EFD,      &c.d_w2_EFD,       &c.d_b1_EF,
          &c.d_bv1_EF,       &c.d_b2_ED,       &c.d_shared_w1_SD, &c.d_shared_v1_SD,
          &c.d_shared_w2_SD, &c.d_shared_b1_S, &c.d_shared_bv1_S, &c.d_shared_b2_D};
    };
    MoECase expected = input;
    expected.config.backend = Backend::kReference;
    EXPECT_TRUE(expected.forward());
    EXPECT_TRUE(expected.backward());
    for_each_implementation([&](Backend backend) {
      MoECase c = input;
      c.config.backend = backend;
      EXPECT_TRUE(c.forward());
      EXPECT_TRUE(c.backward());
      const auto actual = outputs(c), wanted = outputs(expected);
      for (std::size_t i = 0; i < actual.size(); ++i) {
        const double unit =
            unit_roundoff(actual[i]->dtype() == DType::kInt32 ? DType::kFloat64 : dtype);
        EXPECT_LT(relative_error(*actual[i], *wanted[i]), 100 * unit) << "output " << i;
      }
      for (std::int64_t e = 0; e < E; ++e) {
        if (c.offsets_E1.get(e) != c.offsets_E1.get(e + 1)) continue;
        const std::int64_t size = config.d_ffn * config.d_model;
        for (std::int64_t i = e * size; i < (e + 1) * size; ++i) {
          ASSERT_EQ(c.d_w1_EFD.get(i), 0);
          ASSERT_EQ(c.d_w2_EFD.get(i), 0);
        }
      }
    });
  });
}

}  // namespace
}  // namespace dropless::testing
