// Dispatch order against std::stable_sort; gather, combine and their gradients against the
// reference in double, by adjointness and by finite differences.
#include "dropless/permute.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "dropless/error.h"
#include "dropless/index.h"
#include "tests/ops/levels.h"
#include "tests/ops/tensor.h"

namespace dropless::testing {
namespace {

struct Order {
  Tensor indices_TK, rows_TK, offsets_E1, tokens_R;
};

// `skew` 0: uniform over the experts; 1: all tokens to one expert; 2: every second expert is empty.
Order random_order(std::mt19937_64& rng, std::int64_t tokens, std::int64_t experts,
                   std::int64_t top_k, int skew, Backend backend = Backend::kReference) {
  Order o{Tensor(DType::kInt32, {tokens, top_k}), Tensor(DType::kInt32, {tokens, top_k}),
          Tensor(DType::kInt64, {experts + 1}), Tensor(DType::kInt32, {tokens * top_k})};
  for (std::int64_t i = 0; i < tokens * top_k; ++i) {
    const auto e = static_cast<std::int64_t>(rng() % experts);
    o.indices_TK.set(i, skew == 0 ? e : skew == 1 ? experts / 2 : e / 2 * 2);
  }
  Workspace workspace(dispatch_order_workspace_bytes(tokens, experts));
  dispatch_order(o.indices_TK, o.rows_TK, o.offsets_E1, o.tokens_R, workspace.data(),
                 workspace.bytes(), backend);
  EXPECT_TRUE(workspace.intact());
  return o;
}

const std::int64_t kTokens[] = {0, 1, 33, 500, 9000};

TEST(DispatchOrder, IsAStableSortByExpert) {
  for (std::int64_t tokens : kTokens) {
    for (int skew : {0, 1, 2}) {
      const std::int64_t experts = 13, top_k = 4;
      for_each_implementation([&](Backend backend) {
        std::mt19937_64 rng(tokens);
        const Order o = random_order(rng, tokens, experts, top_k, skew, backend);
        std::vector<int> sorted(tokens * top_k);
        std::iota(sorted.begin(), sorted.end(), 0);
        std::stable_sort(sorted.begin(), sorted.end(),
                         [&](int a, int b) { return o.indices_TK.get(a) < o.indices_TK.get(b); });
        std::vector<std::int64_t> offsets(experts + 1);
        for (std::size_t r = 0; r < sorted.size(); ++r) {
          ASSERT_EQ(o.rows_TK.get(sorted[r]), r);
          ASSERT_EQ(o.tokens_R.get(r), sorted[r] / top_k);
          offsets[static_cast<std::int64_t>(o.indices_TK.get(sorted[r])) + 1] += 1;
        }
        std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
        for (std::int64_t e = 0; e <= experts; ++e) EXPECT_EQ(o.offsets_E1.get(e), offsets[e]);
      });
    }
  }
}

TEST(DispatchOrder, AnIndexOutOfRangeIsNamed) {
  for (int bad : {-1, 3}) {
    Tensor indices(DType::kInt32, {2, 2}), rows(DType::kInt32, {2, 2}), offsets(DType::kInt64, {4});
    for (int i = 0; i < 4; ++i) indices.set(i, i == 2 ? bad : 0);
    Workspace workspace(dispatch_order_workspace_bytes(2, 3));
    try {
      dispatch_order(indices, rows, offsets, {}, workspace.data(), workspace.bytes());
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr("indices_TK[1, 0] is " + std::to_string(bad)));
    }
  }
}

struct Case {
  Order order;
  Tensor x_TD, y_RD, weights_TK, d_TD;
};

Case random_case(std::mt19937_64& rng, DType dtype, std::int64_t tokens, std::int64_t width) {
  const std::int64_t top_k = 3;
  Case c{random_order(rng, tokens, 5, top_k, 0), normal(rng, dtype, {tokens, width}),
         normal(rng, dtype, {tokens * top_k, width}),
         normal(rng, accumulator_dtype(dtype), {tokens, top_k}),
         normal(rng, dtype, {tokens, width})};
  return c;
}

TEST(Permute, EqualsReferenceInDouble) {
  std::mt19937_64 rng(7);
  const DType wide = DType::kFloat64;
  for (DType dtype : {wide, DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (std::int64_t tokens : {0, 1, 29, 400}) {
      for (std::int64_t width : {1, 31, 300}) {
        const Case c = random_case(rng, dtype, tokens, width);
        const std::int64_t rows = tokens * 3;
        Tensor x_RD(wide, {rows, width}), back_TD(wide, {tokens, width}),
            out_TD(wide, {tokens, width}), d_y_RD(wide, {rows, width}),
            d_weights_TK(wide, {tokens, 3});
        const Tensor y = c.y_RD.to(wide), w = c.weights_TK.to(wide), d = c.d_TD.to(wide);
        gather(c.x_TD.to(wide), c.order.rows_TK, x_RD, Backend::kReference);
        gather_backward(y, c.order.rows_TK, back_TD, Backend::kReference);
        combine(y, w, c.order.rows_TK, out_TD, Backend::kReference);
        combine_backward(y, w, c.order.rows_TK, d, d_y_RD, d_weights_TK, Backend::kReference);
        for_each_implementation([&](Backend backend) {
          Tensor got_x(dtype, {rows, width}), got_back(dtype, {tokens, width}),
              got_out(dtype, {tokens, width}), got_d_y(dtype, {rows, width}),
              got_d_weights(accumulator_dtype(dtype), {tokens, 3});
          gather(c.x_TD, c.order.rows_TK, got_x, backend);
          gather_backward(c.y_RD, c.order.rows_TK, got_back, backend);
          combine(c.y_RD, c.weights_TK, c.order.rows_TK, got_out, backend);
          combine_backward(c.y_RD, c.weights_TK, c.order.rows_TK, c.d_TD, got_d_y, got_d_weights,
                           backend);
          const double tolerance = 4 * unit_roundoff(dtype);
          EXPECT_EQ(relative_error(got_x, x_RD), 0);
          EXPECT_LT(relative_error(got_back, back_TD), tolerance);
          EXPECT_LT(relative_error(got_out, out_TD), tolerance);
          EXPECT_LT(relative_error(got_d_y, d_y_RD), tolerance);
          EXPECT_LT(relative_error(got_d_weights, d_weights_TK),
                    20 * unit_roundoff(accumulator_dtype(dtype)));
        });
      }
    }
  }
}

double dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.numel(); ++i) sum += a.get(i) * b.get(i);
  return sum;
}

TEST(Permute, GradientsEqualFiniteDifferences) {
  std::mt19937_64 rng(8);
  const DType wide = DType::kFloat64;
  Case c = random_case(rng, wide, 6, 4);
  const Tensor d_RD = normal(rng, wide, {18, 4});
  for_each_implementation([&](Backend backend) {
    Tensor x_RD(wide, {18, 4}), out_TD(wide, {6, 4}), d_x(wide, {6, 4}), d_y(wide, {18, 4}),
        d_w(wide, {6, 3});
    gather_backward(d_RD, c.order.rows_TK, d_x, backend);
    combine_backward(c.y_RD, c.weights_TK, c.order.rows_TK, c.d_TD, d_y, d_w, backend);
    const auto gathered = [&] {
      gather(c.x_TD, c.order.rows_TK, x_RD, backend);
      return dot(x_RD, d_RD);
    };
    const auto combined = [&] {
      combine(c.y_RD, c.weights_TK, c.order.rows_TK, out_TD, backend);
      return dot(out_TD, c.d_TD);
    };
    for (int i = 0; i < 24; ++i)
      EXPECT_NEAR(d_x.get(i), central_difference(c.x_TD, i, gathered), 1e-8);
    for (int i = 0; i < 72; ++i)
      EXPECT_NEAR(d_y.get(i), central_difference(c.y_RD, i, combined), 1e-8);
    for (int i = 0; i < 18; ++i)
      EXPECT_NEAR(d_w.get(i), central_difference(c.weights_TK, i, combined), 1e-8);
  });
}

// The order in which MegaBlocks drops: an expert keeps its first C rows, tokens then k.
TEST(DispatchOrder, ACapacityKeepsTheFirstRowsOfEachExpert) {
  for (std::int64_t tokens : kTokens) {
    for (std::int64_t capacity : {0, 1, 5, 100, 100000}) {
      std::mt19937_64 rng(tokens);
      const Order all = random_order(rng, tokens, 13, 4, 0);
      for_each_implementation([&](Backend backend) {
        Tensor rows(DType::kInt32, {tokens, 4}), offsets(DType::kInt64, {14}),
            tokens_R(DType::kInt32, {tokens * 4});
        Workspace workspace(dispatch_order_workspace_bytes(tokens, 13));
        dispatch_order(all.indices_TK, rows, offsets, tokens_R, workspace.data(), workspace.bytes(),
                       backend, capacity);
        std::vector<std::int64_t> kept(13);
        for (std::int64_t i = 0; i < tokens * 4; ++i) {
          const auto e = static_cast<std::int64_t>(all.indices_TK.get(i));
          if (kept[e] == capacity) {
            ASSERT_EQ(rows.get(i), -1);
            continue;
          }
          const double row = offsets.get(e) + static_cast<double>(kept[e]++);
          ASSERT_EQ(rows.get(i), row);
          ASSERT_EQ(tokens_R.get(static_cast<std::int64_t>(row)), i / 4);
        }
        for (std::int64_t e = 0; e < 13; ++e) {
          ASSERT_EQ(offsets.get(e + 1) - offsets.get(e), kept[e]);
        }
      });
    }
  }
}

TEST(ExpertCapacity, IsTheWholePartOfTheFactorTimesTheMean) {
  EXPECT_EQ(expert_capacity(0, 100, 2, 8), -1);
  EXPECT_EQ(expert_capacity(1, 100, 2, 8), 25);
  EXPECT_EQ(expert_capacity(1.25, 100, 2, 8), 31);
  EXPECT_EQ(expert_capacity(0.01, 100, 2, 8), 0);
  EXPECT_EQ(expert_capacity(1e300, 100, 2, 8), 200);
  EXPECT_THAT(message_of([] { expert_capacity(-1, 100, 2, 8); }),
              ::testing::HasSubstr("the factor is -1"));
}

// One layout with holes and dropped rows, by plain loops over (t, k): the slot's number is known
// from how many rows its expert had before.
struct Layout {
  Tensor slots_TK;
  std::int64_t slots;
};

Layout naive_layout(const Order& order, const std::vector<std::int64_t>& first,
                    const std::vector<std::int64_t>& size, std::int64_t slots) {
  Layout layout{order.indices_TK, slots};
  std::vector<std::int64_t> seen(first.size());
  for (std::int64_t i = 0; i < order.indices_TK.numel(); ++i) {
    const auto e = static_cast<std::size_t>(order.indices_TK.get(i));
    const std::int64_t place = seen[e]++;
    layout.slots_TK.set(i, place < size[e] ? static_cast<double>(first[e] + place) : -1);
  }
  return layout;
}

std::vector<Layout> layouts(const Order& order, Backend backend) {
  const std::int64_t E = order.offsets_E1.dim(0) - 1;
  std::vector<Layout> result;
  for (std::int64_t block : {1, 8}) {
    std::vector<std::int64_t> first(E + 1), size(E);
    Tensor padded(DType::kInt64, {E + 1}), slots = order.rows_TK;
    padded_offsets(order.offsets_E1, block, padded, backend);
    for (std::int64_t e = 0; e < E; ++e) {
      first[e] = static_cast<std::int64_t>(padded.get(e));
      size[e] = static_cast<std::int64_t>(padded.get(e + 1)) - first[e];
    }
    padded_slots(order.indices_TK, order.rows_TK, order.offsets_E1, padded, slots, backend);
    result.push_back(naive_layout(order, first, size, static_cast<std::int64_t>(padded.get(E))));
    EXPECT_TRUE(same_bits(slots, result.back().slots_TK));
  }
  for (std::int64_t capacity : {0, 2, 9}) {
    std::vector<std::int64_t> first(E), size(E, capacity);
    Tensor slots = order.rows_TK;
    for (std::int64_t e = 0; e < E; ++e) first[e] = e * capacity;
    binned_slots(order.indices_TK, order.rows_TK, order.offsets_E1, capacity, slots, backend);
    result.push_back(naive_layout(order, first, size, E * capacity));
    EXPECT_TRUE(same_bits(slots, result.back().slots_TK));
  }
  return result;
}

// gather and combine over slots against loops in double: dropped rows give nothing, holes are 0.
TEST(Permute, PaddedAndBinnedLayoutsEqualLoops) {
  std::mt19937_64 rng(9);
  for (DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (std::int64_t tokens : {0, 1, 29, 300}) {
      const Case c = random_case(rng, dtype, tokens, 37);
      for_each_implementation([&](Backend backend) {
        for (const Layout& layout : layouts(c.order, backend)) {
          const std::int64_t S = layout.slots, D = 37;
          const Tensor y = normal(rng, dtype, {S, D});
          Tensor x_SD(DType::kFloat64, {S, D}), out(DType::kFloat64, {tokens, D}),
              back(DType::kFloat64, {tokens, D}), d_y(DType::kFloat64, {S, D}),
              d_w(DType::kFloat64, {tokens, 3});
          for (Tensor* t : {&x_SD, &out, &back, &d_y, &d_w}) {
            for (std::int64_t i = 0; i < t->numel(); ++i) t->set(i, 0);
          }
          for (std::int64_t i = 0; i < tokens * 3; ++i) {
            const auto slot = static_cast<std::int64_t>(layout.slots_TK.get(i));
            for (std::int64_t d = 0; slot >= 0 && d < D; ++d) {
              const std::int64_t to = i / 3 * D + d, from = slot * D + d;
              const double weight = c.weights_TK.get(i), g = c.d_TD.get(to);
              x_SD.set(from, c.x_TD.get(to));
              out.set(to, out.get(to) + weight * y.get(from));
              back.set(to, back.get(to) + y.get(from));
              d_y.set(from, weight * g);
              d_w.set(i, d_w.get(i) + y.get(from) * g);
            }
          }
          Tensor got_x(dtype, {S, D}), got_out(dtype, {tokens, D}), got_back(dtype, {tokens, D}),
              got_d_y(dtype, {S, D}), got_d_w(accumulator_dtype(dtype), {tokens, 3});
          gather(c.x_TD, layout.slots_TK, got_x, backend);
          gather_backward(y, layout.slots_TK, got_back, backend);
          combine(y, c.weights_TK, layout.slots_TK, got_out, backend);
          combine_backward(y, c.weights_TK, layout.slots_TK, c.d_TD, got_d_y, got_d_w, backend);
          const double tolerance = 4 * unit_roundoff(dtype);
          EXPECT_EQ(relative_error(got_x, x_SD), 0);
          EXPECT_LE(relative_error(got_back, back), tolerance);
          EXPECT_LE(relative_error(got_out, out), tolerance);
          EXPECT_LE(relative_error(got_d_y, d_y), tolerance);
          EXPECT_LE(relative_error(got_d_w, d_w), 30 * unit_roundoff(accumulator_dtype(dtype)));
        }
      });
    }
  }
}

TEST(Permute, RowsOutOfRangeAreNamed) {
  std::mt19937_64 rng(10);
  Case c = random_case(rng, DType::kFloat32, 4, 3);
  Tensor x_RD(DType::kFloat32, {12, 3});
  for (int bad : {-2, 12}) {
    Tensor rows = c.order.rows_TK;
    rows.set(4, bad);
    EXPECT_THAT(message_of([&] { gather(c.x_TD, rows, x_RD); }),
                ::testing::HasSubstr("gather: rows_TK[1, 1] is " + std::to_string(bad) +
                                     ", but x_RD has 12 rows"));
  }
  Tensor slots = c.order.rows_TK, indices = c.order.indices_TK;
  indices.set(0, static_cast<double>(static_cast<int>(indices.get(0) + 1) % 5));
  EXPECT_THAT(
      message_of([&] { binned_slots(indices, c.order.rows_TK, c.order.offsets_E1, 4, slots); }),
      ::testing::HasSubstr("binned_slots: rows_TK[0, 0] is "));
  EXPECT_THAT(message_of([&] {
                binned_slots(c.order.indices_TK, c.order.rows_TK, c.order.offsets_E1, -1, slots);
              }),
              ::testing::HasSubstr("capacity -1"));
}

}  // namespace
}  // namespace dropless::testing
