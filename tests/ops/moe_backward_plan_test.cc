#include "src/ops/moe_backward_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "src/common/math.h"

namespace dropless {
namespace {

constexpr std::int64_t kTile = 256;

// "X 0+512 | d 0+512 in dW1": a product's columns and, where they are not in the workspace, where its rows are; behind the bar
// the gather beside it, of d_out or x.
std::string words(const BackwardStep& step) {
  const auto columns = [](const Slab& slab) {
    constexpr const char* kIn[] = {"", " in dW1", " in dV1", " in h"};
    return std::to_string(slab.begin) + "+" + std::to_string(slab.width) +
           kIn[static_cast<int>(slab.space)];
  };
  constexpr const char* kProducts[] = {"", "X ", "W2 ", "W1 "};
  std::string text = kProducts[static_cast<int>(step.product)];
  if (step.product != SlabProduct::kNone) text += columns(step.slab);
  if (!step.gather) return text;
  return text + (step.gather->from == RowSource::kX ? "| x " : "| d ") + columns(step.gather->slab);
}

std::vector<std::string> words(const std::vector<BackwardStep>& steps) {
  std::vector<std::string> all;
  for (const BackwardStep& step : steps) all.push_back(words(step));
  return all;
}
using Words = std::vector<std::string>;

TEST(MoEBackwardPlan, OfNarrowExperts) {
  // OLMoE: the workspace holds 768 columns of all rows, dW1 and dV1 512 each, scaled_h 1024.
  EXPECT_EQ(words(plan_backward(2048, {768, 512, 512, 1024}, 4, kTile)),
            (Words{"X 0+512| d 0+512 in dW1", "X 512+512| d 512+512 in dV1",
                   "W2 0+512 in dW1| d 1024+512", "W2 512+512 in dV1| d 1536+512 in dW1",
                   "W2 1024+512", "W2 1536+512 in dW1", "X 1024+512| x 0+1024 in h",
                   "W1 0+1024 in h", "X 1536+512| x 1024+1024 in h", "W1 1024+1024 in h"}));
  // Qwen3: two products of d_x cannot take all of x.
  const Words qwen = words(plan_backward(2048, {1024, 768, 768, 768}, 4, kTile));
  EXPECT_EQ(Words(qwen.end() - 3, qwen.end()),
            (Words{"X 1536+512| x 768+768 in h", "W1 768+768 in h| x 1536+512", "W1 1536+512"}));
  // DeepSeek: dW1 has room for all of d_out.
  const Words deepseek = words(plan_backward(7168, {2560, 14336, 14336, 2048}, 4, kTile));
  EXPECT_EQ(Words(deepseek.begin(), deepseek.begin() + 2),
            (Words{"X 0+1792| d 0+7168 in dW1", "W2 0+7168 in dW1"}));
}

TEST(MoEBackwardPlan, OfWideExperts) {  // Mixtral
  EXPECT_EQ(words(plan_backward(4096, {4096, 14336, 14336, 14336}, 0, kTile)),
            (Words{"| d 0+4096 in dW1", "W2 0+4096 in dW1| x 0+4096", "W1 0+4096", "X 0+4096"}));
}

TEST(MoEBackwardPlan, WithoutSpareMemoryGoesThroughTheWorkspace) {
  EXPECT_EQ(words(plan_backward(1024, {512, 0, 255, 255}, 2, kTile)),
            (Words{"| d 0+512", "W2 0+512", "| d 512+512", "W2 512+512", "X 0+512", "| x 0+512",
                   "W1 0+512", "X 512+512", "| x 512+512", "W1 512+512"}));
  EXPECT_EQ(words(plan_backward(8, {8, 0, 0, 100}, 4, kTile)),
            (Words{"| d 0+8", "W2 0+8", "X 0+8| x 0+8 in h", "W1 0+8 in h"}));
}

// Replays a plan on what each space holds.
class Replay {
 public:
  Replay(std::int64_t columns, const RowRoom& room) : columns_(columns), room_(room) {}

  void run(const std::vector<BackwardStep>& steps) {
    for (const BackwardStep& step : steps) {
      SCOPED_TRACE(words(step));
      if (step.product == SlabProduct::kDW2) expect_rows(RowSource::kDOut, step.slab);
      if (step.product == SlabProduct::kDW1V1) expect_rows(RowSource::kX, step.slab);
      if (step.product != SlabProduct::kNone) cover(step);
      if (step.product == SlabProduct::kDX) held_.erase(step.slab.space);
      if (step.gather) gather(step);
    }
    for (const SlabProduct product : {SlabProduct::kDX, SlabProduct::kDW2, SlabProduct::kDW1V1}) {
      EXPECT_EQ(covered_[product], columns_);
    }
  }

 private:
  struct Rows {
    RowSource from;
    Slab slab;
  };

  void expect_rows(RowSource from, const Slab& slab) {
    const auto found = held_.find(slab.space);
    ASSERT_NE(found, held_.end());
    EXPECT_EQ(found->second.from, from);
    EXPECT_EQ(found->second.slab.begin, slab.begin);
    EXPECT_EQ(found->second.slab.width, slab.width);
  }

  // Columns in their order, each once.
  void cover(const BackwardStep& step) {
    EXPECT_EQ(step.slab.begin, covered_[step.product]);
    EXPECT_GT(step.slab.width, 0);
    EXPECT_LE(step.slab.width, room_[static_cast<std::size_t>(step.slab.space)]);
    covered_[step.product] += step.slab.width;
    if (step.product != SlabProduct::kDW1V1) return;
    held_.erase(RowSpace::kW1);  // written now
    held_.erase(RowSpace::kV1);
  }

  void gather(const BackwardStep& step) {
    const Slab& to = step.gather->slab;
    EXPECT_LE(to.width, room_[static_cast<std::size_t>(to.space)]);
    if (step.product != SlabProduct::kNone) {
      EXPECT_NE(to.space, step.slab.space);
    }
    if (to.space == RowSpace::kW1 || to.space == RowSpace::kV1) {
      EXPECT_EQ(covered_[SlabProduct::kDW1V1], 0) << "the gradient is there";
    }
    if (to.space == RowSpace::kScaledH) {
      EXPECT_EQ(covered_[SlabProduct::kDW2], columns_);
      EXPECT_NE(step.product, SlabProduct::kDW2) << "reads scaled_h";
    }
    held_[to.space] = {step.gather->from, to};
  }

  std::int64_t columns_;
  RowRoom room_;
  std::map<RowSpace, Rows> held_;
  std::map<SlabProduct, std::int64_t> covered_;
};

TEST(MoEBackwardPlan, ReadsWhatWasGatheredAndOverwritesNothing) {
  std::mt19937 random(5);
  const auto below = [&](std::int64_t end) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end));
  };
  for (int round = 0; round < 20000 && !::testing::Test::HasFailure(); ++round) {
    const std::int64_t columns = 8 * (1 + below(1024));
    // As the layer has it: a third of the columns or more, in whole tiles, or all of them.
    const std::int64_t workspace =
        std::min(columns, round_up(ceil_div(columns, 1 + below(3)), kTile));
    const auto any = [&] { return below(3) == 0 ? below(kTile + 1) : below(2 * columns); };
    const RowRoom room = {workspace, any(), any(), any()};
    const int d_x_slabs = static_cast<int>(below(6));
    SCOPED_TRACE(::testing::Message() << columns << " columns, room " << room[0] << " " << room[1]
                                      << " " << room[2] << " " << room[3] << ", " << d_x_slabs);
    Replay(columns, room).run(plan_backward(columns, room, d_x_slabs, kTile));
  }
}

}  // namespace
}  // namespace dropless
