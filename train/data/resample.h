// Which samples of a stream are in an epoch: whole shards as often as they are asked for, and of the
// rest random ones, as MosaicML StreamingDataset picks them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dropless::train {

// How many samples of each shard, for `choose` of the stream in all; what is no multiple of the
// stream is picked in pieces of `granularity`. Id: of what holds the number of pieces.
template <class Id>
std::vector<std::int64_t> choose_per_shard(const std::vector<std::int64_t>& shard_sizes,
                                           std::int64_t choose, std::int64_t granularity,
                                           std::uint64_t seed);

// The samples of one or more streams that are in an epoch. As long as they are 0, 1, 2, ... only
// their number is kept.
template <class Id>
class Resampled {
 public:
  const std::vector<std::int64_t>& units() const { return units_; }
  std::size_t size() const { return size_; }
  std::int64_t operator[](std::size_t i) const {
    return written_ ? static_cast<std::int64_t>(ids_[i]) : static_cast<std::int64_t>(i);
  }

  // A unit is what is shuffled as one: a whole shard, or what was picked of one.
  void add_unit(std::int64_t first, std::int64_t count) {
    units_.push_back(count);
    if (!written_ && first != static_cast<std::int64_t>(size_)) write_out();
    size_ += static_cast<std::size_t>(count);
    if (!written_) return;
    for (std::int64_t i = 0; i < count; ++i) ids_.push_back(static_cast<Id>(first + i));
  }
  void add_unit(std::int64_t first, const std::vector<std::int64_t>& picked) {
    units_.push_back(static_cast<std::int64_t>(picked.size()));
    if (!written_) write_out();
    size_ += picked.size();
    for (const std::int64_t id : picked) ids_.push_back(static_cast<Id>(first + id));
  }

 private:
  void write_out() {
    written_ = true;
    for (std::size_t i = 0; i < size_; ++i) ids_.push_back(static_cast<Id>(i));
  }
  std::vector<std::int64_t> units_;
  std::vector<Id> ids_;
  std::size_t size_ = 0;
  bool written_ = false;
};

}  // namespace dropless::train
