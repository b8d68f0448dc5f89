#include "train/data/merge.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/data/shard_store.h"

namespace dropless::train {
namespace {

constexpr const char* kIndexName = "index.json";

void find_below(const std::string& folder, std::vector<std::string>& found) {
  for (const std::string& name : list_folder(folder)) {
    const std::string path = join_path(folder, name);
    if (!is_folder(path) || std::filesystem::is_symlink(path)) continue;
    if (path_exists(join_path(path, kIndexName))) found.push_back(path);
    find_below(path, found);
  }
}

bool is_remote(const std::string& place) { return is_url(place) && !place.starts_with("file://"); }

// Of a set behind a URL, the index alone is fetched.
MdsIndex load_index(const std::string& place) {
  if (!is_remote(place)) return MdsIndex::load(place);
  const TemporaryFolder cache;
  ShardStoreOptions options;
  options.remote.knobs.clear();
  return ShardStore(place, cache.path(), options).index();
}

// How `out` names the set.
std::string relative_name(const std::string& folder, const std::string& out) {
  namespace fs = std::filesystem;
  if (is_remote(folder)) return base_name(folder);
  const fs::path relative =
      fs::weakly_canonical(folder).lexically_relative(fs::weakly_canonical(out));
  if (!relative.empty() && *relative.begin() != ".." && relative != ".") return relative.string();
  return base_name(fs::weakly_canonical(folder).string());
}

}  // namespace

std::vector<std::string> find_partitions(const std::string& root) {
  if (is_remote(root)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: what lies below a URL cannot be listed", root),
                "name each set, and with --out the folder of the merged index");
  }
  if (!is_folder(root)) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{} is not a folder", root),
                "name the folder that holds the sets to merge");
  }
  std::vector<std::string> found;
  find_below(root, found);
  if (found.empty()) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: no folder below it holds an {}", root, kIndexName),
                "name the folder that holds the sets to merge");
  }
  // By the paths of the files: "a-b/index.json" comes before "a/index.json".
  std::sort(found.begin(), found.end(), [](const std::string& a, const std::string& b) {
    return join_path(a, kIndexName) < join_path(b, kIndexName);
  });
  return found;
}

MdsIndex merge_indexes(const std::vector<std::string>& folders, const std::string& out) {
  MdsIndex merged;
  std::map<std::string, std::string> places;  // by the name in the merged index
  for (const std::string& given : folders) {
    std::string folder = strip_file_scheme(given);
    while (folder.size() > 1 && folder.ends_with('/')) folder.pop_back();
    if (base_name(folder) == kIndexName && !is_folder(folder)) folder = parent_folder(folder);
    const std::string name = relative_name(folder, out);
    const std::string place =
        is_remote(folder) ? folder : std::filesystem::weakly_canonical(folder).string();
    if (const auto [at, is_new] = places.emplace(name, place); !is_new) {
      if (at->second == place) continue;
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{} and {} would both be '{}' beside the merged index", at->second,
                              place, name),
                  "put the sets below the folder of --out, or give them names of their own");
    }
    for (MdsShard& shard : load_index(folder).shards) {
      shard.raw.basename = join_path(name, shard.raw.basename);
      if (shard.zip) shard.zip->basename = join_path(name, shard.zip->basename);
      merged.shards.push_back(std::move(shard));
    }
  }
  return merged;
}

MdsIndex write_merged_index(const std::vector<std::string>& folders, const std::string& out) {
  MdsIndex merged = merge_indexes(folders, out);
  make_folders(out);
  write_file_durable(join_path(out, kIndexName), merged.dump(true));
  return merged;
}

}  // namespace dropless::train
