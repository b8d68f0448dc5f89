#include "src/ops/moe_slabs.h"

#include <gtest/gtest.h>

#include <random>
#include <utility>
#include <vector>

namespace dropless {
namespace {

constexpr std::int64_t kTile = 256;

constexpr auto kRows = RowSpace::kWorkspace;
constexpr auto kW1 = RowSpace::kW1;
constexpr auto kV1 = RowSpace::kV1;
constexpr auto kScaledH = RowSpace::kScaledH;

using Widths = std::vector<std::pair<std::int64_t, RowSpace>>;

Widths widths(const Slabs& slabs) {
  Widths all;
  for (int i = 0; i < slabs.count; ++i) all.emplace_back(slabs[i].width, slabs[i].space);
  return all;
}

TEST(MoESlabs, OfKnownModels) {
  // OLMoE: the workspace holds 768 columns of all rows, dW1 and dV1 512, scaled_h 1024.
  const BackwardSlabs olmoe = cut_backward(2048, {768, 512, 512, 1024}, 4, kTile);
  EXPECT_EQ(widths(olmoe.d_x), (Widths{{512, kRows}, {512, kRows}, {512, kRows}, {512, kRows}}));
  EXPECT_EQ(widths(olmoe.d_out), (Widths{{512, kW1}, {512, kV1}, {512, kRows}, {512, kW1}}));
  EXPECT_EQ(widths(olmoe.x), (Widths{{1024, kScaledH}, {1024, kScaledH}}));
  EXPECT_EQ(olmoe.ahead, 2);
  EXPECT_EQ(olmoe.late(), 2);

  // Qwen3: two products of d_x cannot take all of x.
  const BackwardSlabs qwen = cut_backward(2048, {1024, 768, 768, 768}, 4, kTile);
  EXPECT_EQ(widths(qwen.x), (Widths{{768, kScaledH}, {768, kScaledH}, {512, kRows}}));

  // DeepSeek: dW1 holds all of d_out.
  const BackwardSlabs deepseek = cut_backward(7168, {2560, 14336, 14336, 2048}, 4, kTile);
  EXPECT_EQ(widths(deepseek.d_out), (Widths{{7168, kW1}}));
  EXPECT_EQ(deepseek.ahead, 1);
  EXPECT_EQ(widths(deepseek.x),
            (Widths{{1792, kScaledH}, {1792, kScaledH}, {1792, kScaledH}, {1792, kRows}}));

  // Mixtral, wide experts: the products of d_x come last.
  const BackwardSlabs mixtral = cut_backward(4096, {4096, 14336, 14336, 14336}, 0, kTile);
  EXPECT_EQ(widths(mixtral.d_out), (Widths{{4096, kW1}}));
  EXPECT_EQ(widths(mixtral.x), (Widths{{4096, kRows}}));
  EXPECT_EQ(widths(mixtral.d_x), widths(mixtral.x));
  EXPECT_EQ(mixtral.ahead, 0);
  EXPECT_EQ(mixtral.late(), 0);
}

TEST(MoESlabs, WithoutSpareMemoryGoThroughTheWorkspace) {
  const BackwardSlabs slabs = cut_backward(2048, {768, 0, 255, 255}, 4, kTile);
  EXPECT_EQ(widths(slabs.d_out), (Widths{{768, kRows}, {768, kRows}, {512, kRows}}));
  EXPECT_EQ(widths(slabs.x), (Widths{{768, kRows}, {768, kRows}, {512, kRows}}));
  EXPECT_EQ(slabs.ahead, 0);
  EXPECT_EQ(widths(cut_backward(8, {8, 0, 0, 100}, 4, kTile).x), (Widths{{8, kScaledH}}));
}

TEST(MoESlabs, KnowTheWidestAndWhichSpacesAreFree) {
  const Slabs slabs = cut_backward(2048, {768, 512, 512, 1024}, 4, kTile).d_out;
  EXPECT_EQ(slabs.widest(), 512);
  EXPECT_TRUE(slabs.free(2, 0));
  EXPECT_FALSE(slabs.free(3, 0));  // dW1 holds slab 0
  EXPECT_TRUE(slabs.free(3, 1));
}

void expect_covered(const Slabs& slabs, std::int64_t columns, const RowRoom& room) {
  std::int64_t begin = 0;
  for (int i = 0; i < slabs.count; ++i) {
    EXPECT_EQ(slabs[i].begin, begin);
    EXPECT_GT(slabs[i].width, 0);
    EXPECT_LE(slabs[i].width, room[static_cast<std::size_t>(slabs[i].space)]);
    begin += slabs[i].width;
  }
  EXPECT_EQ(begin, columns);
}

TEST(MoESlabs, CoverAllColumnsWithinTheirSpaces) {
  std::mt19937 random(5);
  const auto any = [&] { return static_cast<std::int64_t>(random() % 4096); };
  for (int round = 0; round < 2000; ++round) {
    const std::int64_t columns = 8 * (1 + random() % 1024);
    // As the layer has it: a third of the columns or more, in whole tiles, or all of them.
    const std::int64_t first =
        std::min(columns, round_up(ceil_div(columns, 1 + random() % 3), kTile));
    const RowRoom room = {first, any(), any(), any()};
    const int d_x_slabs = static_cast<int>(random() % 5);
    const BackwardSlabs slabs = cut_backward(columns, room, d_x_slabs, kTile);
    expect_covered(slabs.d_x, columns, room);
    expect_covered(slabs.d_out, columns, room);
    expect_covered(slabs.x, columns, room);
    if (d_x_slabs == 0) {
      EXPECT_EQ(widths(slabs.d_x), widths(slabs.x));
      continue;
    }
    // What lies beside products of d_x is not in the workspace, where their rows are, and all of it fits at once.
    EXPECT_GE(slabs.late(), slabs.d_x.count == 1 ? 0 : 1);
    for (int i = 0; i < slabs.ahead; ++i) {
      EXPECT_NE(slabs.d_out[i].space, kRows);
      EXPECT_TRUE(slabs.d_out.free(i, 0));
    }
    for (int i = 0; i < slabs.d_x.count; ++i) EXPECT_EQ(slabs.d_x[i].space, kRows);
  }
}

}  // namespace
}  // namespace dropless
