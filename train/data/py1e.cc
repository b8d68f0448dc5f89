#include "train/data/py1e.h"

#include <fmt/format.h>

#include <algorithm>

#include "dropless/error.h"

namespace dropless::train {
namespace {

// Where a span's samples go: each from its index by a random distance.
struct Scatter {
  std::int64_t begin, end;  // indices in the part
  double left, right;       // the distance's range
  NumpyRng rng;             // as it stands before the first distance

  // Calls use(index, position) for each in turn; returns the generator behind the last.
  template <class Use>
  NumpyRng draw(Use use) const {
    NumpyRng draws = rng;
    for (std::int64_t i = begin; i < end; ++i)
      use(i, static_cast<double>(i) + draws.uniform(left, right));
    return draws;
  }
};

struct Placed {
  double position;
  std::int64_t index;
};

// Sorts by position, equal ones staying in order; positions are spread evenly over [low, low + width).
class EvenSorter {
 public:
  explicit EvenSorter(std::int64_t width)
      : starts_(static_cast<std::size_t>(width / kBucket) + 1) {}

  // The result holds until the next call.
  std::span<const Placed> operator()(std::span<const Placed> placed, double low) {
    const auto bucket_of = [&](const Placed& one) {
      const auto bucket = static_cast<std::size_t>(std::max(one.position - low, 0.0) / kBucket);
      return std::min(bucket, starts_.size() - 2);
    };
    std::fill(starts_.begin(), starts_.end(), 0);
    for (const Placed& one : placed) ++starts_[bucket_of(one) + 1];
    std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
    sorted_.resize(placed.size());
    for (const Placed& one : placed) sorted_[starts_[bucket_of(one)]++] = one;
    // Each start has moved to where its bucket ends.
    std::size_t begin = 0;
    for (std::size_t bucket = 0; bucket + 1 < starts_.size(); ++bucket) {
      sort_few(std::span(sorted_).subspan(begin, starts_[bucket] - begin));
      begin = starts_[bucket];
    }
    return sorted_;
  }

 private:
  static constexpr std::int64_t kBucket = 8;  // and so about 8 in each

  static void sort_few(std::span<Placed> placed) {
    constexpr std::size_t kFew = 64;
    if (placed.size() > kFew) {
      std::stable_sort(placed.begin(), placed.end(),
                       [](const Placed& x, const Placed& y) { return x.position < y.position; });
      return;
    }
    for (std::size_t i = 1; i < placed.size(); ++i) {
      const Placed one = placed[i];
      std::size_t to = i;
      for (; to > 0 && one.position < placed[to - 1].position; --to) placed[to] = placed[to - 1];
      placed[to] = one;
    }
  }

  std::vector<std::size_t> starts_;
  std::vector<Placed> sorted_;
};

// Puts indices in the order of their positions, equal ones in their own. Their range is cut into
// chunks that fit a core's cache. Positions are drawn twice, first to count each chunk's; so they
// need not be kept, and a segment of the chunks at a time is filled, by the spans that reach it.
class PositionOrder {
 public:
  PositionOrder(std::int64_t size, std::int64_t block_size, const std::vector<Span>& spans,
                NumpyRng& rng)
      : chunks_(static_cast<std::size_t>(size / kChunk) + 1), starts_(chunks_ + 1) {
    std::int64_t offset = 0;
    for (const auto& [first, last] : spans) {
      const std::int64_t end = offset + last - first;
      const std::int64_t range = draw_block(block_size, rng);
      const double cut = std::max(0.0, static_cast<double>(range - (last - first)) / 2.0);
      scatters_.push_back({offset, end, std::max(-cut, -static_cast<double>(offset)),
                           std::min(cut, static_cast<double>(size - end)), rng});
      rng = scatters_.back().draw(
          [&](std::int64_t, double position) { ++starts_[chunk_of(position) + 1]; });
      offset = end;
    }
    std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
  }

  // Calls put(index) for each in order.
  template <class Put>
  void visit(Put put) {
    std::vector<Placed> placed;
    EvenSorter sort(kChunk);
    for (std::size_t chunk = 0; chunk < chunks_;) {
      const std::size_t end = segment_end(chunk), base = starts_[chunk];
      placed.resize(starts_[end] - base);
      fill(chunk, end, placed);
      for (std::size_t begin = base; chunk < end; ++chunk) {
        // Filling has moved each start to where its chunk ends.
        const auto own = std::span(placed).subspan(begin - base, starts_[chunk] - begin);
        begin = starts_[chunk];
        for (const Placed& one : sort(own, static_cast<double>(chunk) * kChunk)) put(one.index);
      }
    }
  }

 private:
  static constexpr std::int64_t kChunk = 1 << 15;                // 512 KB of Placed
  static constexpr std::size_t kSegment = std::size_t{1} << 21;  // indices: 32 MB

  std::size_t chunk_of(double position) const {
    const auto chunk = static_cast<std::size_t>(std::max(position, 0.0) / kChunk);
    return std::min(chunk, chunks_ - 1);
  }

  // The end of a run of chunks with few enough indices, or of one chunk.
  std::size_t segment_end(std::size_t chunk) const {
    const auto first = starts_.begin() + static_cast<std::ptrdiff_t>(chunk) + 1;
    const auto beyond = std::upper_bound(first, starts_.end(), starts_[chunk] + kSegment);
    return std::max(chunk + 1, static_cast<std::size_t>(beyond - starts_.begin()) - 1);
  }

  void fill(std::size_t chunk, std::size_t end, std::vector<Placed>& placed) {
    const std::size_t base = starts_[chunk];
    // One more on either side: sums of doubles round.
    const double low = static_cast<double>(chunk) * kChunk - 1;
    const double high = static_cast<double>(end) * kChunk + 1;
    for (const Scatter& scatter : scatters_) {
      if (static_cast<double>(scatter.end) + scatter.right < low) continue;
      if (static_cast<double>(scatter.begin) + scatter.left > high && end < chunks_) continue;
      scatter.draw([&](std::int64_t index, double position) {
        const std::size_t to = chunk_of(position);
        if (to < chunk || to >= end) return;
        placed[starts_[to]++ - base] = {position, index};
      });
    }
  }

  std::size_t chunks_;
  std::vector<std::size_t> starts_;  // of each chunk, in the order of positions
  std::vector<Scatter> scatters_;
};

}  // namespace

std::int64_t draw_block(std::int64_t block_size, NumpyRng& rng) {
  const std::int64_t low = static_cast<std::int64_t>(0.75 * static_cast<double>(block_size));
  const std::int64_t high = static_cast<std::int64_t>(1.25 * static_cast<double>(block_size));
  if (low >= high) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("a shuffle block of {} samples", block_size),
                "raise shuffle_block_size: each stream gets its share of it");
  }
  return rng.integers(low, high);
}

template <class Id>
void shuffle_part_py1e(const std::vector<Span>& spans, std::int64_t block_size, NumpyRng& rng,
                       std::vector<Id>& scratch, std::vector<Id>& out) {
  scratch.clear();
  for (const Span& span : spans) rng.shuffle(append_span(span, scratch));
  if (scratch.empty()) {
    throw Error(ErrorKind::kInvalidArgument, "a canonical node of the shuffle gets no samples",
                "lower num_canonical_nodes to at most the number of samples");
  }
  PositionOrder(std::ssize(scratch), block_size, spans, rng).visit([&](std::int64_t index) {
    out.push_back(scratch[static_cast<std::size_t>(index)]);
  });
}

template void shuffle_part_py1e(const std::vector<Span>&, std::int64_t, NumpyRng&,
                                std::vector<std::int32_t>&, std::vector<std::int32_t>&);
template void shuffle_part_py1e(const std::vector<Span>&, std::int64_t, NumpyRng&,
                                std::vector<std::int64_t>&, std::vector<std::int64_t>&);

}  // namespace dropless::train
