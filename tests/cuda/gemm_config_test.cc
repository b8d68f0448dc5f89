// The choice of tile, on any machine; and what builds without CUDA say.
#include "src/cuda/gemm_config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "dropless/error.h"
#include "src/cuda/kernels.h"

namespace dropless::cuda {
namespace {

TEST(GemmConfigTest, WideTileUnlessHalfOfItWouldBeEmpty) {
  EXPECT_EQ(choose_grouped_gemm(8).block_n, 128);
  EXPECT_EQ(choose_grouped_gemm(128).block_n, 128);
  EXPECT_EQ(choose_grouped_gemm(136).block_n, 256);
  EXPECT_EQ(choose_weight_grad(64).block_n, 128);
  EXPECT_EQ(choose_weight_grad(28672).block_n, 256);
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
