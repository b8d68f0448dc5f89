#include "src/ops/moe_slabs.h"

#include <gtest/gtest.h>

#include <random>

namespace dropless {
namespace {

constexpr std::int64_t kTile = 256;

std::vector<std::array<std::int64_t, 2>> widths_and_spaces(const Slabs& slabs) {
  std::vector<std::array<std::int64_t, 2>> all;
  for (int i = 0; i < slabs.count; ++i) all.push_back({slabs[i].width, slabs[i].space});
  return all;
}
using Pairs = std::vector<std::array<std::int64_t, 2>>;

TEST(MoESlabs, OfKnownModels) {
  // OLMoE: a slab of 768; dW1 holds 512 columns of the rows, scaled_h 1024.
  EXPECT_EQ(widths_and_spaces(cut_slabs(2048, {768, 512}, true, kTile)),
            (Pairs{{512, 0}, {512, 1}, {512, 0}, {512, 1}}));
  EXPECT_EQ(widths_and_spaces(cut_slabs(2048, {768, 1024}, false, kTile)),
            (Pairs{{768, 0}, {768, 1}, {512, 0}}));
  // Mixtral: wide experts have room for everything.
  EXPECT_EQ(widths_and_spaces(cut_slabs(4096, {4096, 14336}, true, kTile)), (Pairs{{4096, 1}}));
  EXPECT_EQ(widths_and_spaces(cut_slabs(4096, {4096, 14336}, false, kTile)), (Pairs{{4096, 0}}));
  // No second space: one after the other.
  EXPECT_EQ(widths_and_spaces(cut_slabs(2048, {768, 0}, true, kTile)),
            (Pairs{{768, 0}, {768, 0}, {512, 0}}));
  EXPECT_EQ(widths_and_spaces(cut_slabs(8, {8, 100}, true, kTile)), (Pairs{{8, 0}}));
}

TEST(MoESlabs, KnowTheWidest) {
  EXPECT_EQ(cut_slabs(2048, {768, 1024}, false, kTile).widest(), 768);
  EXPECT_EQ(cut_slabs(1536, {768, 4096}, true, kTile).widest(), 1536);
  EXPECT_EQ(cut_slabs(8, {8, 0}, false, kTile).widest(), 8);
}

TEST(MoESlabs, CoverAllColumnsWithinTheirSpaces) {
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    const std::int64_t columns = 8 * (1 + random() % 1024);
    // As the layer has it: a third of the columns or more, in whole tiles, or all of them.
    const std::int64_t first =
        std::min(columns, round_up(ceil_div(columns, 1 + random() % 3), kTile));
    const std::array<std::int64_t, 2> most = {first, static_cast<std::int64_t>(random() % 4096)};
    const bool ends_in_second = random() % 2 == 0;
    const Slabs slabs = cut_slabs(columns, most, ends_in_second, kTile);
    std::int64_t begin = 0;
    for (int i = 0; i < slabs.count; ++i) {
      EXPECT_EQ(slabs[i].begin, begin);
      EXPECT_GT(slabs[i].width, 0);
      EXPECT_LE(slabs[i].width, most[static_cast<std::size_t>(slabs[i].space)]);
      EXPECT_EQ(slabs.apart(i), i + 1 < slabs.count && most[1] >= kTile);
      begin += slabs[i].width;
    }
    EXPECT_EQ(begin, columns);
    if (most[1] >= kTile) {
      EXPECT_EQ(ends_in_second ? slabs.back().space : slabs[0].space, ends_in_second ? 1 : 0);
    }
  }
}

}  // namespace
}  // namespace dropless
