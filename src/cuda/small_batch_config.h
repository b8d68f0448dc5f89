// Small batches (decoding): sizes of their tiles, and when they are taken. Pure functions, testable
// anywhere.
#pragma once

#include <cstdint>
#include <optional>

namespace dropless::cuda {

inline constexpr std::int64_t kSmallBatchTokens = 256;  // at most

// Rows of an expert that one pass over its weights serves, as compiled; more rows take more passes.
inline constexpr int kSmallBatchRows[] = {8, 16, 32, 64};

struct SmallBatchPlan {
  int rows = 8;    // one of kSmallBatchRows
  int splits = 1;  // ranges of d_ffn that the down projection is cut into
  bool operator==(const SmallBatchPlan&) const = default;
};

// A tile of weights is 32 KiB: `up` rows of w1 and as many of v1, `up_k` columns; or `down_k` rows of
// w2, `down` columns. The fewer rows of x it meets, the longer it is along k: tiles of few outputs
// balance better, and the rows of x that come with each take 8 KiB in all shapes.
struct SmallBatchTile {
  int up, up_k;
  int down, down_k;
};
constexpr SmallBatchTile small_batch_tile(int rows) {
  if (rows == 8) return {16, 512, 64, 256};
  if (rows == 16) return {32, 256, 64, 256};
  if (rows == 32) return {64, 128, 128, 128};
  return {128, 64, 256, 64};
}

// The plan for a layer's forward; none where the kernels for many rows are faster (docs/kernels.md
// has the figures).
constexpr std::optional<SmallBatchPlan> choose_small_batch(std::int64_t tokens,
                                                           std::int64_t num_experts,
                                                           std::int64_t top_k) {
  if (tokens < 1 || tokens > kSmallBatchTokens) return std::nullopt;
  // Of an expert on average; no expert has more rows than there are tokens.
  const std::int64_t mean = top_k * tokens / num_experts;
  if (mean > 20) return std::nullopt;
  return SmallBatchPlan{.rows = tokens <= 8 ? 8 : mean <= 4 ? 16 : 32, .splits = 1};
}

}  // namespace dropless::cuda
