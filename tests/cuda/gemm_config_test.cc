// The choice of tile, on any machine; and what builds without CUDA say.
#include "src/cuda/gemm_config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "dropless/error.h"
#include "src/cuda/kernels.h"
#include "src/cuda/path.h"
#include "src/cuda/small_batch.h"

namespace dropless::cuda {
namespace {

TEST(GemmConfigTest, WideTileUnlessHalfOfItWouldBeEmpty) {
  EXPECT_EQ(choose_grouped_gemm(8).block_n, 128);
  EXPECT_EQ(choose_grouped_gemm(128).block_n, 128);
  EXPECT_EQ(choose_grouped_gemm(136).block_n, 256);
  EXPECT_EQ(choose_weight_grad(64).block_n, 128);
  EXPECT_EQ(choose_weight_grad(28672).block_n, 256);
}

TEST(WalkPartsTest, FillTheLastRound) {
  const std::int64_t blocks = 1 << 20;  // walks are long
  EXPECT_EQ(choose_walk_parts(24, 2048, blocks, 66),
            2);  // 96 works: 0.73 of two rounds, 0.97 of three
  EXPECT_EQ(choose_walk_parts(22, 1536, blocks, 66), 1);   // 66
  EXPECT_EQ(choose_walk_parts(1, 1792, blocks, 66), 4);    // 7
  EXPECT_EQ(choose_walk_parts(448, 4096, blocks, 66), 1);  // 3584
  EXPECT_EQ(choose_walk_parts(0, 2048, 0, 66), 1);
  EXPECT_EQ(choose_walk_parts(24, 0, blocks, 66), 1);
}

TEST(WalkPartsTest, KeepPartsLong) {
  EXPECT_EQ(choose_walk_parts(24, 2048, 24 * 128, 66), 2);
  EXPECT_EQ(choose_walk_parts(24, 2048, 24 * 128 - 1, 66), 1);
}

TEST(SmallBatchConfigTest, FewRowsAnExpertAreASmallBatch) {
  EXPECT_FALSE(choose_small_batch(0, 8, 2));
  EXPECT_FALSE(choose_small_batch(kSmallBatchTokens + 1, 1024, 1));
  EXPECT_FALSE(choose_small_batch(256, 8, 2));  // 64 rows an expert
  for (const std::int64_t experts : {1, 8, 64, 1024}) {
    for (std::int64_t tokens = 1; tokens <= kSmallBatchTokens; ++tokens) {
      const auto plan = choose_small_batch(tokens, experts, 1);
      if (!plan) continue;
      EXPECT_NE(std::find(std::begin(kSmallBatchRows), std::end(kSmallBatchRows), plan->rows),
                std::end(kSmallBatchRows));
      EXPECT_GE(plan->rows, tokens / experts);  // on average one pass over an expert's weights
    }
  }
  EXPECT_TRUE(choose_small_batch(1, 1, 1));
  EXPECT_TRUE(choose_small_batch(64, 64, 8));
}

// A tile of weights and the rows that come with it fill a stage.
TEST(SmallBatchConfigTest, TilesHaveOneSize) {
  for (const int rows : kSmallBatchRows) {
    const SmallBatchTile tile = small_batch_tile(rows);
    EXPECT_EQ(2 * tile.up * tile.up_k * 2, 32768);
    EXPECT_EQ(tile.down * tile.down_k * 2, 32768);
    EXPECT_LE(2 * rows * std::max(tile.up_k, tile.down_k), 8192);
  }
}

TEST(GemmConfigTest, EveryChoiceIsCompiled) {
  const auto among = [](const GemmConfig& config, const auto& variants) {
    return std::any_of(std::begin(variants), std::end(variants),
                       [&](const GemmConfig& v) { return v.same_kernel(config); });
  };
  for (std::int64_t n = 8; n <= 4096; n += 8) {
    EXPECT_TRUE(among(choose_grouped_gemm(n), kGroupedGemmVariants));
    EXPECT_TRUE(among(choose_weight_grad(n), kWeightGradVariants));
  }
}

TEST(CudaPathTest, OnlyThePortableOneCanBeAskedFor) {
  EXPECT_FALSE(asks_for_portable(nullptr));
  EXPECT_FALSE(asks_for_portable(""));
  EXPECT_TRUE(asks_for_portable("portable"));
  try {
    asks_for_portable("hopper");
    FAIL() << "did not throw";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("'hopper'"), std::string::npos);
  }
}

#ifdef DROPLESS_TEST_WITHOUT_CUDA
TEST(CudaUnavailableTest, EveryEntrySaysHowToGetIt) {
  try {
    row_tiles_bytes(128, 8, 128);
    FAIL() << "did not throw";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_NE(error.hint().find("DROPLESS_CUDA"), std::string::npos);
  }
  EXPECT_THROW(combine({}, nullptr, nullptr, 1, false, {}, nullptr), Error);
  EXPECT_THROW(grouped_gemm({}, {}, false, nullptr, {}, {}, nullptr), Error);
}
#endif

}  // namespace
}  // namespace dropless::cuda
