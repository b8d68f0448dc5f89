// The table of row tiles: every row of every expert once, in tiles that are full but for an expert's last; pairs of an expert
// with few tiles not torn apart.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "dropless/error.h"
#include "src/cuda/kernels.h"
#include "tests/cuda/gpu_support.h"

namespace dropless::cuda {
namespace {

using dropless::testing::DeviceBuffer;

struct Record {
  std::int32_t expert, row, rows, unused;
};

class RowTilesCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!dropless::testing::gpu_supported())
      GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  }
};

std::vector<Record> tiles_of(const std::vector<std::int64_t>& rows_E, int block_m) {
  std::vector<std::int64_t> offsets{0};
  for (const std::int64_t rows : rows_E) offsets.push_back(offsets.back() + rows);
  const std::int64_t E = static_cast<std::int64_t>(rows_E.size());
  DeviceBuffer offsets_E1(8 * (E + 1)), tiles(row_tiles_bytes(offsets.back(), E, block_m));
  offsets_E1.upload(offsets);
  tiles.poison();
  build_row_tiles(offsets_E1.as<std::int64_t>(), E, block_m, tiles.get(), nullptr);
  const auto words = tiles.download<std::int32_t>(row_tiles_bytes(offsets.back(), E, block_m) / 4);
  std::vector<Record> records(words[0]);
  EXPECT_TRUE(dropless::testing::intact(tiles, 16 + 16 * records.size()));
  if (!records.empty()) std::memcpy(records.data(), words.data() + 4, 16 * records.size());
  return records;
}

void check_covered(const std::vector<std::int64_t>& rows_E, int block_m,
                   std::vector<Record> records) {
  std::sort(records.begin(), records.end(),
            [](const Record& a, const Record& b) { return a.row < b.row; });
  std::size_t next = 0;
  std::int64_t row = 0;
  for (std::size_t e = 0; e < rows_E.size(); ++e) {
    for (const std::int64_t end = row + rows_E[e]; row < end; ++next) {
      ASSERT_LT(next, records.size());
      const Record& tile = records[next];
      ASSERT_EQ(tile.expert, static_cast<int>(e));
      ASSERT_EQ(tile.row, row);
      ASSERT_EQ(tile.rows, std::min<std::int64_t>(block_m, end - row));
      row += tile.rows;
    }
  }
  EXPECT_EQ(next, records.size());
}

TEST_F(RowTilesCuda, EveryRowOnce) {
  std::mt19937 random(3);
  for (const int block_m : {128, 256}) {
    for (const int E : {1, 2, 7, 64, 128, 1000, 1024}) {
      for (const int most : {1, 130, 500, 3000}) {
        std::vector<std::int64_t> rows_E(E);
        for (auto& rows : rows_E) {
          rows = random() % 4 == 0 ? 0 : std::uniform_int_distribution<>(0, most)(random);
        }
        check_covered(rows_E, block_m, tiles_of(rows_E, block_m));
        if (HasFailure()) FAIL() << E << " experts of up to " << most << " rows, " << block_m;
      }
    }
  }
  check_covered({0, 0, 0}, 128, tiles_of({0, 0, 0}, 128));
}

// Of experts with two or three tiles the first two stand in one pair, whatever stands beside them.
TEST_F(RowTilesCuda, KeepsPairsTogether) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<std::int64_t> rows_E(1 + random() % 200);
    for (auto& rows : rows_E) {
      const int most = trial % 2 == 1 && random() % 4 == 0 ? 2000 : 384;
      rows = std::uniform_int_distribution<>(1, most)(random);
    }
    const std::vector<Record> records = tiles_of(rows_E, 128);
    check_covered(rows_E, 128, records);
    if (HasFailure()) return;
    std::int64_t first_row = 0;
    for (std::size_t e = 0; e < rows_E.size(); ++e) {
      if (rows_E[e] > 128 && rows_E[e] <= 384) {
        const auto at = std::find_if(records.begin(), records.end(),
                                     [&](const Record& tile) { return tile.row == first_row; });
        ASSERT_LT(at - records.begin() + 1, static_cast<std::ptrdiff_t>(records.size()));
        ASSERT_EQ((at - records.begin()) % 2, 0) << "expert " << e;
        ASSERT_EQ(at[1].row, first_row + 128) << "expert " << e;
      }
      first_row += rows_E[e];
    }
  }
}

// Tiles of an expert with many stay in order.
TEST_F(RowTilesCuda, ManyTilesStayTogether) {
  const std::vector<Record> records = tiles_of({100, 128 * 8 + 1, 300, 128 * 4 + 5, 90}, 128);
  check_covered({100, 128 * 8 + 1, 300, 128 * 4 + 5, 90}, 128, records);
  for (const int expert : {1, 3}) {
    const auto is_own = [&](const Record& tile) { return tile.expert == expert; };
    const auto begin = std::find_if(records.begin(), records.end(), is_own);
    const auto end = std::find_if_not(begin, records.end(), is_own);
    EXPECT_EQ(end - begin, expert == 1 ? 9 : 5);
    EXPECT_TRUE(
        std::is_sorted(begin, end, [](const Record& a, const Record& b) { return a.row < b.row; }));
  }
}

TEST_F(RowTilesCuda, TooManyExperts) {
  DeviceBuffer offsets(8 * 1026), tiles(row_tiles_bytes(0, 1025, 128));
  EXPECT_THROW(build_row_tiles(offsets.as<std::int64_t>(), 1025, 128, tiles.get(), nullptr), Error);
}

}  // namespace
}  // namespace dropless::cuda
