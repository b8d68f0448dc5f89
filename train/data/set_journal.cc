#include "train/data/set_journal.h"

#include <algorithm>
#include <exception>

#include "train/base/fs.h"
#include "train/base/hash.h"
#include "train/base/json.h"
#include "train/base/log.h"

namespace dropless::train {
namespace {

std::string path_in(const std::string& folder) { return join_path(folder, "journal.json"); }

bool is_whole(const std::string& folder, const MdsShard& shard) {
  const MdsFile& file = shard.zip ? *shard.zip : shard.raw;
  const std::string path = join_path(folder, file.basename);
  return path_exists(path) && file_bytes(path) == file.bytes;
}

}  // namespace

SetJournal SetJournal::load(const std::string& folder, const std::string& plan) {
  const std::string path = path_in(folder);
  if (!path_exists(path)) return {};
  try {
    const nlohmann::json json = parse_json(read_file(path), path);
    if (json.at("plan").get<std::string>() != xxh3_hex(plan)) return {};
    SetJournal journal{MdsIndex::parse(json.at("index").get<std::string>(), path),
                       json.at("state").get<std::string>()};
    const auto& shards = journal.index.shards;
    if (std::all_of(shards.begin(), shards.end(),
                    [&](const MdsShard& shard) { return is_whole(folder, shard); })) {
      return journal;
    }
    log_warning("{}: a shard is missing or of another size; the set is begun anew", folder);
  } catch (const std::exception& error) {
    log_warning("{} cannot be read, the set is begun anew: {}", path, error.what());
  }
  return {};
}

void SetJournal::store(const std::string& folder, const std::string& plan) const {
  const nlohmann::json json{{"plan", xxh3_hex(plan)}, {"index", index.dump()}, {"state", state}};
  write_file_durable(path_in(folder), json.dump() + "\n");
}

void SetJournal::remove(const std::string& folder) { remove_all(path_in(folder)); }

}  // namespace dropless::train
