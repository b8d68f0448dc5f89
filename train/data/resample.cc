#include "train/data/resample.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "train/data/rng.h"

namespace dropless::train {
namespace {

std::int64_t pieces_of(std::int64_t size, std::int64_t granularity) {
  return size / granularity + (size % granularity != 0 ? 1 : 0);
}

// Of each shard with pieces, the size of its last one. An empty shard has none: the package then sets
// that of the shard before it (of the last shard, if it is the first), and so must we.
std::vector<std::int64_t> last_sizes(const std::vector<std::int64_t>& shard_sizes,
                                     const std::vector<std::int64_t>& ends,
                                     std::int64_t granularity) {
  std::vector<std::int64_t> last(shard_sizes.size());
  for (std::size_t i = 0; i < shard_sizes.size(); ++i) {
    const std::int64_t piece = (ends[i] == 0 ? ends.back() : ends[i]) - 1;
    const auto owner = std::upper_bound(ends.begin(), ends.end(), piece) - ends.begin();
    last[static_cast<std::size_t>(owner)] =
        shard_sizes[i] - (pieces_of(shard_sizes[i], granularity) - 1) * granularity;
  }
  return last;
}

}  // namespace

template <class Id>
std::vector<std::int64_t> choose_per_shard(const std::vector<std::int64_t>& shard_sizes,
                                           std::int64_t choose, std::int64_t granularity,
                                           std::uint64_t seed) {
  const std::int64_t total =
      std::accumulate(shard_sizes.begin(), shard_sizes.end(), std::int64_t{0});
  std::vector<std::int64_t> chosen;
  for (const std::int64_t size : shard_sizes) chosen.push_back(size * (choose / total));
  choose %= total;
  if (choose == 0) return chosen;
  std::vector<std::int64_t> ends;  // of each shard's pieces
  std::vector<Id> shards;          // of each piece
  for (std::size_t i = 0; i < shard_sizes.size(); ++i) {
    shards.resize(shards.size() + static_cast<std::size_t>(pieces_of(shard_sizes[i], granularity)),
                  static_cast<Id>(i));
    ends.push_back(std::ssize(shards));
  }
  const std::vector<std::int64_t> last = last_sizes(shard_sizes, ends, granularity);
  std::vector<Id> order(shards.size());
  std::iota(order.begin(), order.end(), Id{0});
  NumpyRng(seed).shuffle(std::span(order));
  for (const Id piece : order) {
    const auto shard = static_cast<std::size_t>(shards[static_cast<std::size_t>(piece)]);
    const std::int64_t size =
        std::min(choose, piece + std::int64_t{1} == ends[shard] ? last[shard] : granularity);
    chosen[shard] += size;
    choose -= size;
    if (choose == 0) break;
  }
  return chosen;
}

template std::vector<std::int64_t> choose_per_shard<std::int32_t>(const std::vector<std::int64_t>&,
                                                                  std::int64_t, std::int64_t,
                                                                  std::uint64_t);
template std::vector<std::int64_t> choose_per_shard<std::int64_t>(const std::vector<std::int64_t>&,
                                                                  std::int64_t, std::int64_t,
                                                                  std::uint64_t);

}  // namespace dropless::train
