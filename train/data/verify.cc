#include "train/data/verify.h"

#include <fmt/format.h>

#include <optional>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/hash.h"
#include "train/base/signals.h"
#include "train/data/mds_reader.h"
#include "train/data/sample_line.h"

namespace dropless::train {
namespace {

std::string sha256_file(const std::string& path) {
  const FileReader file(path);
  Sha256Hash hash;
  std::string buffer(std::size_t{1} << 20, '\0');
  for (std::uint64_t at = 0; at < file.bytes(); at += buffer.size()) {
    buffer.resize(std::min<std::uint64_t>(buffer.size(), file.bytes() - at));
    file.read(at, buffer.data(), buffer.size());
    hash.update(buffer.data(), buffer.size());
  }
  return hash.hex();
}

void check_hashes(const std::string& path, const MdsFile& entry) {
  for (const auto& [name, want] : entry.hashes) {
    std::string got;
    if (name == "sha256") got = sha256_file(path);
    if (name == "xxh128" || name == "xxh3_128") got = xxh3_file(path);
    if (!got.empty() && got != want) {
      throw Error(ErrorKind::kDamaged,
                  fmt::format("{} is {}, but the index says {}", name, got, want));
    }
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
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kDamaged) throw;
    damage.emplace_back("index.json", error.what());
    return damage;
  }
  std::int64_t begin = 0;
  for (std::size_t number = 0; number < reader->index().shards.size(); ++number) {
    const MdsShard& shard = reader->index().shards[number];
    const std::string path = join_path(folder, shard.raw.basename);
    try {
      reader->check_shard(number);
      check_hashes(path, shard.raw);
      check_samples(*reader, begin, begin + shard.samples);
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kInterrupted) throw;
      std::string reason = error.what();
      if (reason.starts_with(path + ": ")) reason.erase(0, path.size() + 2);
      damage.emplace_back(shard.raw.basename, reason);
    }
    begin += shard.samples;
  }
  return damage;
}

}  // namespace dropless::train
