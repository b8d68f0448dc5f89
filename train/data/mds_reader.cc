#include "train/data/mds_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "dropless/error.h"
#include "train/base/hash.h"

static_assert(std::endian::native == std::endian::little, "MDS files are little-endian");

namespace dropless::train {
namespace {

[[noreturn]] void damaged(const std::string& path, const std::string& reason,
                          const std::string& hint) {
  throw Error(ErrorKind::kDamaged, fmt::format("{}: {}", path, reason), hint);
}

// The offset table, checked: it grows, starts behind itself and ends at the end of the file.
std::vector<std::uint32_t> read_offsets(const ShardBytes& file, const MdsShard& shard,
                                        const std::string& hint) {
  const std::uint64_t count = static_cast<std::uint64_t>(shard.samples) + 1;
  const std::uint64_t table_bytes = 4 + 4 * count;
  if (file.bytes() < table_bytes) damaged(file.path(), "shorter than its table of offsets", hint);
  std::uint32_t samples = 0;
  file.read(0, &samples, sizeof samples);
  if (samples != shard.samples) {
    damaged(file.path(), fmt::format("{} samples, but the index says {}", samples, shard.samples),
            hint);
  }
  std::vector<std::uint32_t> offsets(count);
  file.read(4, offsets.data(), 4 * count);
  if (offsets.front() < table_bytes || !std::is_sorted(offsets.begin(), offsets.end()) ||
      offsets.back() != file.bytes()) {
    damaged(file.path(), "its table of offsets does not fit the file", hint);
  }
  return offsets;
}

}  // namespace

MdsReader::MdsReader(std::shared_ptr<ShardStore> store) : store_(std::move(store)) {
  first_sample_.push_back(0);
  for (const MdsShard& shard : index().shards) {
    first_sample_.push_back(first_sample_.back() + shard.samples);
  }
  // Fixed from here on, so that references into it stay good.
  open_.reserve(kOpenShards);
}

std::size_t MdsReader::shard_of(std::int64_t sample) const {
  if (sample < 0 || sample >= num_samples()) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: no sample {}, the set has {}", folder(), sample, num_samples()));
  }
  const auto after = std::upper_bound(first_sample_.begin(), first_sample_.end(), sample);
  return static_cast<std::size_t>(after - first_sample_.begin()) - 1;
}

MdsReader::OpenShard& MdsReader::open(std::size_t number) {
  ++uses_;
  for (OpenShard& shard : open_) {
    if (shard.number == number) {
      shard.last_use = uses_;
      return shard;
    }
  }
  ShardBytes bytes = store_->open(number);
  std::vector<std::uint32_t> offsets =
      read_offsets(bytes, index().shards[number], store_->damage_hint());
  // A file that is evicted while it is open keeps its room on the disk.
  const std::size_t most = store_->is_limited() ? 2 : kOpenShards;
  std::uint64_t memory = bytes.memory_bytes();
  for (const OpenShard& shard : open_) memory += shard.bytes.memory_bytes();
  while (!open_.empty() && (open_.size() >= most || memory > kMemoryBytes)) {
    memory -= close_oldest();
  }
  open_.push_back({number, uses_, std::move(bytes), std::move(offsets)});
  return open_.back();
}

// The bytes of memory that it held.
std::uint64_t MdsReader::close_oldest() {
  const auto oldest =
      std::min_element(open_.begin(), open_.end(),
                       [](const auto& a, const auto& b) { return a.last_use < b.last_use; });
  const std::uint64_t memory = oldest->bytes.memory_bytes();
  if (oldest != open_.end() - 1) *oldest = std::move(open_.back());
  open_.pop_back();
  return memory;
}

std::span<const std::string_view> MdsReader::read(std::int64_t sample) {
  const std::size_t number = shard_of(sample);
  const std::size_t row = static_cast<std::size_t>(sample - first_sample_[number]);
  const OpenShard& shard = open(number);
  const std::uint32_t begin = shard.offsets[row], end = shard.offsets[row + 1];
  buffer_.resize(end - begin);
  shard.bytes.read(begin, buffer_.data(), buffer_.size());
  split_values(shard, static_cast<std::int64_t>(row));
  return values_;
}

void MdsReader::split_values(const OpenShard& open, std::int64_t row) {
  const MdsShard& shard = index().shards[open.number];
  const auto broken = [&] {
    damaged(
        open.bytes.path(),
        fmt::format("the column sizes of sample {} do not fit its {} bytes", row, buffer_.size()),
        store_->damage_hint());
  };
  std::size_t head = 0;
  for (const MdsColumn& column : shard.columns) head += column.size ? 0 : 4;
  if (buffer_.size() < head) broken();
  values_.clear();
  std::string_view sizes(buffer_.data(), head);
  std::string_view rest = std::string_view(buffer_).substr(head);
  for (const MdsColumn& column : shard.columns) {
    std::uint32_t size = column.size.value_or(0);
    if (!column.size) {
      std::memcpy(&size, sizes.data(), 4);
      sizes.remove_prefix(4);
    }
    if (size > rest.size()) broken();
    values_.push_back(rest.substr(0, size));
    rest.remove_prefix(size);
  }
  if (!rest.empty()) broken();
}

std::string MdsReader::fingerprint() const {
  std::string text;
  for (const MdsShard& shard : index().shards) {
    text += fmt::format("{} {} {}\n", shard.raw.basename, shard.samples, shard.raw.bytes);
    for (const auto& [name, hex] : shard.raw.hashes) text += fmt::format("{} {}\n", name, hex);
  }
  return xxh3_hex(text);
}

}  // namespace dropless::train
