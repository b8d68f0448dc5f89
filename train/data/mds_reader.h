// Samples of an MDS set, by their index.
//
// Shard: u32 N | u32 offset[N + 1], absolute | config JSON | samples, all little-endian. Sample: a
// u32 size for each column without a fixed one, then all values, both in column order. Every number
// is checked against the file before it is used.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/data/mds_index.h"
#include "train/data/shard_store.h"

namespace dropless::train {

// Not for several threads at once: each takes its own reader.
class MdsReader {
 public:
  explicit MdsReader(std::shared_ptr<ShardStore> store);
  // A set in a folder, into which nothing is written. Reads the index only. Throws as
  // MdsIndex::load does.
  explicit MdsReader(const std::string& folder)
      : MdsReader(std::make_shared<ShardStore>(folder, "")) {}

  const std::string& folder() const { return store_->folder(); }
  const MdsIndex& index() const { return store_->index(); }
  ShardStore& store() const { return *store_; }
  std::int64_t num_samples() const { return first_sample_.back(); }

  std::size_t shard_of(std::int64_t sample) const;
  const std::vector<MdsColumn>& columns(std::int64_t sample) const {
    return index().shards[shard_of(sample)].columns;
  }

  // The stored bytes of each column, valid until the next call. One pread; up to kOpenShards files
  // and their offsets stay open, two where the store's cache is limited. Throws Error: kDamaged naming the shard and why; kInvalidArgument
  // out of range.
  std::span<const std::string_view> read(std::int64_t sample);

  // Opens one shard and checks its head against the index; kDamaged as read() throws it.
  void check_shard(std::size_t number) { open(number); }

  // Same samples, same fingerprint: a hash over the shards' names, sizes and sample counts.
  std::string fingerprint() const;

  static constexpr std::size_t kOpenShards = 64;
  // Of shards decompressed in memory; one of any size is always kept.
  static constexpr std::uint64_t kMemoryBytes = std::uint64_t{512} << 20;

 private:
  struct OpenShard {
    std::size_t number;
    std::uint64_t last_use;
    ShardBytes bytes;
    std::vector<std::uint32_t> offsets;  // N + 1
  };

  OpenShard& open(std::size_t number);
  std::uint64_t close_oldest();
  void split_values(const OpenShard& open, std::int64_t row);

  std::shared_ptr<ShardStore> store_;
  std::vector<std::int64_t> first_sample_;  // of each shard, then the total
  std::vector<OpenShard> open_;
  std::uint64_t uses_ = 0;
  std::string buffer_;
  std::vector<std::string_view> values_;
};

}  // namespace dropless::train
