// index.json of an MDS set: which shards there are, what they hold.
//
// Format: {"shards": [...], "version": 2}; each shard has the keys column_encodings, column_names,
// column_sizes, compression, format, hashes, raw_data, samples, size_limit, version, zip_data.
// Written as MosaicML streaming does: keys sorted, ", " and ": ", ASCII, no final newline.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "train/data/encodings.h"

namespace dropless::train {

// Of an index.json: enough for three million shards.
inline constexpr std::uint64_t kMostIndexBytes = std::uint64_t{1} << 30;

struct MdsColumn {
  std::string name;
  Encoding encoding;
  std::optional<std::uint32_t> size;  // bytes of every value; nullopt: each value carries its size
};

struct MdsFile {
  std::string basename;  // relative to the set's folder; a merged index has folders in it
  std::uint64_t bytes = 0;
  std::vector<std::pair<std::string, std::string>> hashes;  // algorithm -> hex
};

struct MdsShard {
  std::vector<MdsColumn> columns;
  std::optional<std::string> compression;  // "zstd:7"
  std::vector<std::string> hashes;         // algorithm names
  MdsFile raw;
  std::optional<MdsFile> zip;
  std::int64_t samples = 0;
  std::optional<std::uint64_t> size_limit;
};

struct MdsIndex {
  std::vector<MdsShard> shards;

  // Reads FOLDER/index.json. Errors: absent, or an unknown version, format, encoding:
  // kInvalidArgument; text that is not an index, sizes that contradict each other, names that leave
  // the folder: kDamaged.
  static MdsIndex load(const std::string& folder);
  static MdsIndex parse(const std::string& text, const std::string& path);

  // Merged indexes begin with the version, as the package writes them.
  std::string dump(bool version_first = false) const;
  std::int64_t num_samples() const;
  std::vector<std::int64_t> shard_sizes() const;
};

// The JSON that stands in the head of a shard file, between the offsets and the samples.
std::string shard_config_json(const MdsShard& shard);

// FOLDER or FOLDER/SPLIT. Throws Error(kInvalidArgument) naming the splits there are when absent.
std::string split_folder(const std::string& folder, const std::string& split);

}  // namespace dropless::train
