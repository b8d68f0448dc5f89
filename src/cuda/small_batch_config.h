// Small batches (decoding): sizes of their tiles, and when they are taken. Pure functions, testable
// anywhere.
#pragma once

#include <cstdint>
#include <optional>

namespace dropless::cuda {

inline constexpr std::int64_t kSmallBatchTokens = 256;  // at most

// Rows of an expert that one pass over its weights serves, as compiled; more rows take more passes.
inline constexpr int kSmallBatchRows[] = {16, 32};

struct SmallBatchPlan {
  int rows = 16;  // one of kSmallBatchRows
  bool operator==(const SmallBatchPlan&) const = default;
};

// A tile of weights is 32 KiB: `up` rows of w1 and as many of v1, `up_k` columns; or `down_k` rows of
// w2, `down` columns. The rows of x that come with it take 8 KiB.
struct SmallBatchTile {
  int up, up_k;
  int down, down_k;
};
constexpr SmallBatchTile small_batch_tile(int rows) {
  if (rows == 16) return {32, 256, 64, 256};
  return {64, 128, 128, 128};
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
  return SmallBatchPlan{.rows = mean <= 6 ? 16 : 32};
}

}  // namespace dropless::cuda
