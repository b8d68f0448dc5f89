#include "train/data/verify.h"

#include <fmt/format.h>

#include <optional>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/signals.h"
#include "train/data/compression.h"
#include "train/data/file_hash.h"
#include "train/data/mds_reader.h"
#include "train/data/sample_line.h"

namespace dropless::train {
namespace {

constexpr const char* kIndexName = "index.json";

void check_hashes(const std::string& path, const MdsFile& entry) {
  for (const auto& [name, want] : entry.hashes) check_file_hash(path, entry, name);
}

// Of the raw file, of the compressed one, or of both where both are there; where the compressed one is alone, of
// what is in it too. The samples are read from the raw file if it is.
void check_files(const std::string& folder, const MdsShard& shard) {
  const std::string raw_path = join_path(folder, shard.raw.basename);
  if (!shard.zip || path_exists(raw_path)) check_hashes(raw_path, shard.raw);
  if (!shard.zip) return;
  const std::string zip_path = join_path(folder, shard.zip->basename);
  if (!path_exists(zip_path)) return;
  if (const std::uint64_t bytes = file_bytes(zip_path); bytes != shard.zip->bytes) {
    throw Error(ErrorKind::kDamaged, fmt::format("{}: {} bytes, but the index says {}", zip_path,
                                                 bytes, shard.zip->bytes));
  }
  check_hashes(zip_path, *shard.zip);
  if (path_exists(raw_path) || shard.raw.hashes.empty()) return;
  const std::string raw =
      decompress(Compression::parse(*shard.compression), read_file(zip_path), shard.raw.bytes);
  for (const auto& [name, want] : shard.raw.hashes) {
    const std::string got = hash_hex(name, {raw});
    if (got == want) continue;
    throw Error(ErrorKind::kDamaged,
                fmt::format("{}: unpacked, its {} is {}, but the index says {}", zip_path, name,
                            got, want));
  }
}

void check_samples(MdsReader& reader, std::int64_t begin, std::int64_t end) {
  for (std::int64_t sample = begin; sample < end; ++sample) {
    check_interrupted();
    const auto& columns = reader.columns(sample);
    const auto values = reader.read(sample);
    for (std::size_t i = 0; i < columns.size(); ++i) {
      if (columns[i].encoding.kind == EncodingKind::kPickle) continue;
      sample_line(std::span(&columns[i], 1), values.subspan(i, 1), sample);
    }
  }
}

}  // namespace

std::vector<std::pair<std::string, std::string>> verify_set(const std::string& folder) {
  std::vector<std::pair<std::string, std::string>> damage;
  std::optional<MdsReader> reader;
  try {
    reader.emplace(folder);
    for (const MdsShard& shard : reader->index().shards) {
      for (const auto& [name, hex] : shard.raw.hashes) check_hash_name(name);
    }
  } catch (const Error& error) {
    // A folder without an index is no set; one that this version cannot read is as little use as a broken one.
    const std::string path = join_path(folder, kIndexName);
    if (error.kind() == ErrorKind::kInterrupted || !path_exists(path)) throw;
    std::string reason = error.what();
    if (reason.starts_with(path + ": ")) reason.erase(0, path.size() + 2);
    damage.emplace_back(kIndexName, reason);
    return damage;
  }
  std::int64_t begin = 0;
  for (std::size_t number = 0; number < reader->index().shards.size(); ++number) {
    const MdsShard& shard = reader->index().shards[number];
    try {
      reader->check_shard(number);
      check_files(folder, shard);
      check_samples(*reader, begin, begin + shard.samples);
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kInterrupted) throw;
      std::string reason = error.what();
      std::string basename = shard.raw.basename;
      for (const MdsFile* file : {&shard.raw, shard.zip ? &*shard.zip : nullptr}) {
        if (file == nullptr) continue;
        const std::string prefix = join_path(folder, file->basename) + ": ";
        if (!reason.starts_with(prefix)) continue;
        basename = file->basename;
        reason.erase(0, prefix.size());
        break;
      }
      damage.emplace_back(basename, reason);
    }
    begin += shard.samples;
  }
  return damage;
}

}  // namespace dropless::train
