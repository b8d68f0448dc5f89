// Counts, sort, running sums, padding, tiles and replicate against the standard library's
// algorithms, for every implementation; the gradient by finite differences; bad arguments by name.
#include "dropless/index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/ops/levels.h"
#include "tests/ops/tensor.h"

namespace dropless::testing {
namespace {

using ::testing::HasSubstr;

const std::int64_t kEntries[] = {0, 1, 33, 500, 70000};
const std::int64_t kBins[] = {1, 7, 1300};

Tensor random_keys(std::mt19937_64& rng, std::int64_t entries, std::int64_t bins) {
  Tensor keys(DType::kInt32, {entries});
  for (std::int64_t i = 0; i < entries; ++i)
    keys.set(i, static_cast<double>(rng() % bins / 2 * 2 % bins));
  return keys;
}

TEST(Histogram, CountsEveryBin) {
  std::mt19937_64 rng(1);
  for (std::int64_t entries : kEntries) {
    for (std::int64_t bins : kBins) {
      const Tensor keys = random_keys(rng, entries, bins);
      std::vector<std::int64_t> expected(bins);
      for (std::int64_t i = 0; i < entries; ++i)
        expected[static_cast<std::size_t>(keys.get(i))] += 1;
      for_each_implementation([&](Backend backend) {
        Tensor counts(DType::kInt32, {bins});
        histogram(keys, counts, backend);
        for (std::int64_t e = 0; e < bins; ++e) ASSERT_EQ(counts.get(e), expected[e]) << e;
      });
    }
  }
}

TEST(Sort, EqualsStableSort) {
  std::mt19937_64 rng(2);
  for (std::int64_t entries : kEntries) {
    for (std::int64_t bins : kBins) {
      const Tensor keys = random_keys(rng, entries, bins);
      std::vector<int> expected(entries);
      std::iota(expected.begin(), expected.end(), 0);
      std::stable_sort(expected.begin(), expected.end(),
                       [&](int a, int b) { return keys.get(a) < keys.get(b); });
      for_each_implementation([&](Backend backend) {
        Tensor sorted(DType::kInt32, {entries}), order(DType::kInt32, {entries});
        Workspace workspace(sort_workspace_bytes(entries, bins));
        sort(keys, bins, sorted, order, workspace.data(), workspace.bytes(), backend);
        EXPECT_TRUE(workspace.intact());
        for (std::int64_t r = 0; r < entries; ++r) {
          ASSERT_EQ(order.get(r), expected[r]);
          ASSERT_EQ(sorted.get(r), keys.get(expected[r]));
        }
      });
    }
  }
}

TEST(Cumsum, EqualsPartialSumInBothFormsAndTypes) {
  std::mt19937_64 rng(3);
  for (DType dtype : {DType::kInt32, DType::kInt64}) {
    for (std::int64_t batch : {0, 1, 5}) {
      for (std::int64_t entries : {0, 1, 31, 20000}) {
        Tensor x(dtype, {batch, entries});
        for (std::int64_t i = 0; i < x.numel(); ++i)
          x.set(i, static_cast<double>(rng() % 200) - 50);
        for_each_implementation([&](Backend backend) {
          Tensor inclusive(dtype, {batch, entries}), in_place = x;
          inclusive_cumsum(x, inclusive, backend);
          exclusive_cumsum(in_place, in_place, backend);
          for (std::int64_t b = 0; b < batch; ++b) {
            double sum = 0;
            for (std::int64_t i = b * entries; i < (b + 1) * entries; ++i) {
              ASSERT_EQ(in_place.get(i), sum);
              sum += x.get(i);
              ASSERT_EQ(inclusive.get(i), sum);
            }
          }
        });
      }
    }
  }
}

TEST(Cumsum, ASumThatDoesNotFitIsRefused) {
  Tensor x(DType::kInt32, {1, 3}), out(DType::kInt32, {1, 3});
  x.set(0, 5);
  x.set(1, std::numeric_limits<std::int32_t>::max() - 5);
  x.set(2, 1);
  EXPECT_THAT(message_of([&] { inclusive_cumsum(x, out); }),
              HasSubstr("the sum of x_BN[0] up to entry 2 does not fit int32"));
}

TEST(Padding, OffsetsAreRoundedUpPerBin) {
  const Tensor offsets = offsets_of({3, 0, 4, 5, 0, 8});
  for_each_implementation([&](Backend backend) {
    Tensor padded(DType::kInt64, {7});
    padded_offsets(offsets, 4, padded, backend);
    const double expected[] = {0, 4, 4, 8, 16, 16, 24};
    for (int e = 0; e < 7; ++e) EXPECT_EQ(padded.get(e), expected[e]);
    padded_offsets(offsets, 1, padded, backend);
    EXPECT_TRUE(same_bits(padded, offsets));
  });
}

TEST(TileTable, TilesCoverEachRowOnceAndNeverTwoBins) {
  std::mt19937_64 rng(4);
  for (std::int64_t tile_rows : {1, 3, 128}) {
    for (std::int64_t bins : {1, 2, 50}) {
      std::vector<std::int64_t> sizes(bins);
      for (auto& size : sizes) size = rng() % 3 == 0 ? 0 : static_cast<std::int64_t>(rng() % 400);
      const Tensor offsets = offsets_of(sizes);
      for_each_implementation([&](Backend backend) {
        const std::int64_t tiles = tile_table_size(offsets, tile_rows);
        Tensor table(DType::kInt32, {tiles, 3});
        tile_table(offsets, tile_rows, table, backend);
        double row = 0;
        for (std::int64_t i = 0; i < tiles; ++i) {
          const auto e = static_cast<std::int64_t>(table.get(3 * i));
          ASSERT_EQ(table.get(3 * i + 1), row);
          ASSERT_GE(table.get(3 * i + 2), 1);
          ASSERT_LE(table.get(3 * i + 2), tile_rows);
          ASSERT_GE(row, offsets.get(e));
          row += table.get(3 * i + 2);
          ASSERT_LE(row, offsets.get(e + 1));
          // Full, but for the last of its bin.
          ASSERT_TRUE(table.get(3 * i + 2) == tile_rows || row == offsets.get(e + 1));
        }
        EXPECT_EQ(row, offsets.get(bins));
      });
    }
  }
}

TEST(Replicate, EqualsLoopsAndItsGradientFiniteDifferences) {
  std::mt19937_64 rng(5);
  const Tensor offsets = offsets_of({3, 0, 1, 700, 12});
  const std::int64_t batch = 60, bins = 5, entries = 716;
  for (DType dtype : {DType::kFloat64, DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const Tensor x = normal(rng, dtype, {batch, bins}), d = normal(rng, dtype, {batch, entries});
    for_each_implementation([&](Backend backend) {
      Tensor out(dtype, {batch, entries}), d_x(dtype, {batch, bins}),
          sums(DType::kFloat64, {batch, bins});
      replicate(x, offsets, out, backend);
      replicate_backward(d, offsets, d_x, backend);
      for (std::int64_t b = 0; b < batch; ++b) {
        for (std::int64_t e = 0; e < bins; ++e) {
          double sum = 0;
          for (auto i = static_cast<std::int64_t>(offsets.get(e)); i < offsets.get(e + 1); ++i) {
            ASSERT_EQ(out.get(b * entries + i), x.get(b * bins + e));
            sum += d.get(b * entries + i);
          }
          sums.set(b * bins + e, sum);
          if (e == 1) {
            ASSERT_EQ(d_x.get(b * bins + e), 0);
          }
        }
      }
      EXPECT_LT(relative_error(d_x, sums),
                2 * unit_roundoff(dtype) + 300 * unit_roundoff(accumulator_dtype(dtype)));
    });
  }
  Tensor x = normal(rng, DType::kFloat64, {2, bins});
  const Tensor d = normal(rng, DType::kFloat64, {2, entries});
  for_each_implementation([&](Backend backend) {
    Tensor out(DType::kFloat64, {2, entries}), d_x(DType::kFloat64, {2, bins});
    replicate_backward(d, offsets, d_x, backend);
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      const double expected = central_difference(x, i, [&] {
        replicate(x, offsets, out, backend);
        double sum = 0;
        for (std::int64_t n = 0; n < out.numel(); ++n) sum += out.get(n) * d.get(n);
        return sum;
      });
      EXPECT_NEAR(d_x.get(i), expected, 1e-7);
    }
  });
}

TEST(Index, BadArgumentsAreNamed) {
  Tensor keys(DType::kInt32, {3}), counts(DType::kInt32, {2}), order(DType::kInt32, {2});
  for (int i = 0; i < 3; ++i) keys.set(i, i);
  EXPECT_THAT(message_of([&] { histogram(keys, counts); }),
              HasSubstr("histogram: indices_N[2] is 2, not one of 2 bins"));
  EXPECT_THAT(message_of([&] { sort(keys, 3, {}, order, nullptr, 0); }),
              HasSubstr("sort: order_N is [2] int32, expected [3] int32"));
  EXPECT_THAT(message_of([&] { sort(keys, 0, {}, order, nullptr, 0); }),
              HasSubstr("num_keys is 0"));
  Tensor falling = offsets_of({2, 3});
  falling.set(1, 7);
  EXPECT_THAT(message_of([&] { tile_table_size(falling, 4); }),
              HasSubstr("tile_table: offsets_E1 decrease from 7 to 5 at group 1"));
  EXPECT_THAT(message_of([&] { tile_table_size(offsets_of({2}), 0); }), HasSubstr("tile_rows 0"));
  Tensor padded(DType::kInt64, {2});
  EXPECT_THAT(message_of([&] { padded_offsets(offsets_of({2}), 0, padded); }),
              HasSubstr("block_size 0"));
  Tensor x(DType::kFloat32, {2, 3}), out(DType::kFloat32, {2, 5});
  EXPECT_THAT(message_of([&] {
                replicate(x, offsets_of({2, 3}), out);
              }),
              HasSubstr("replicate: x_BE is [2, 3] float32, expected [2, 2] float32"));
}

}  // namespace
}  // namespace dropless::testing
