// The shuffle py1e of one canonical node, and what it shares with the other shuffles of order.cc.
#pragma once

#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "train/data/order.h"
#include "train/data/rng.h"

namespace dropless::train {

// Appends the ids of a span.
template <class Id>
std::span<Id> append_span(const Span& span, std::vector<Id>& ids) {
  const std::size_t at = ids.size();
  ids.resize(at + static_cast<std::size_t>(span.second - span.first));
  std::iota(ids.begin() + static_cast<std::ptrdiff_t>(at), ids.end(), static_cast<Id>(span.first));
  return std::span(ids).subspan(at);
}

// Block sizes are drawn from three to five quarters of the configured one.
std::int64_t draw_block(std::int64_t block_size, NumpyRng& rng);

// Appends one canonical node's ids: each shard's samples in random order, then every sample moved by
// a random distance, so that a sample stays within about block_size of its shard. Throws
// Error(kInvalidArgument): no samples, or a block of none.
template <class Id>
void shuffle_part_py1e(const std::vector<Span>& spans, std::int64_t block_size, NumpyRng& rng,
                       std::vector<Id>& scratch, std::vector<Id>& out);

}  // namespace dropless::train
