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

// How `out` names a folder in it; empty for one that lies elsewhere.
std::string name_within(const std::string& place, const std::string& out) {
  namespace fs = std::filesystem;
  if (is_remote(place)) return {};
  const fs::path relative = fs::path(place).lexically_relative(fs::weakly_canonical(out));
  const bool within = !relative.empty() && *relative.begin() != ".." && relative != ".";
  return within ? relative.string() : "";
}

// A folder without its spelling: no scheme of files, no index.json or "/" at its end, no links.
std::string place_of(const std::string& given) {
  std::string folder = strip_file_scheme(given);
  while (folder.size() > 1 && folder.ends_with('/')) folder.pop_back();
  if (base_name(folder) == kIndexName && !is_folder(folder)) folder = parent_folder(folder);
  namespace fs = std::filesystem;
  return is_remote(folder) ? folder : fs::weakly_canonical(fs::absolute(folder)).string();
}

// The length of what begins a path or a URL and is no folder of it: "/", "s3://bucket/".
std::size_t root_size(const std::string& place) {
  if (!is_remote(place)) return 1;
  return std::min(place.find('/', place.find("://") + 3), place.size() - 1) + 1;
}

// The deepest folder that both lie below, with "/" at its end; empty where there is none.
std::string common_parent(const std::string& a, const std::string& b) {
  const auto [end, other] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  const auto same = static_cast<std::size_t>(end - a.begin());
  if (same == 0) return {};
  const std::size_t slash = a.rfind('/', same - 1);
  if (slash == std::string::npos || slash + 1 < root_size(a)) return {};
  return a.substr(0, slash + 1);
}

// Of all that lie outside `out`; empty where none does.
std::string home_of(const std::vector<std::string>& places, const std::string& out) {
  std::string home, first;
  for (const std::string& place : places) {
    if (!name_within(place, out).empty()) continue;
    const std::string parent = common_parent(first.empty() ? place : home, place);
    if (parent.empty()) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("no folder holds both {} and {}, and an index names what lies below "
                              "its own",
                              first.empty() ? out : first, place),
                  "copy the sets to one place, or name both as streams of the config");
    }
    if (first.empty()) first = place;
    home = parent;
  }
  return home;
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

MergedIndex merge_indexes(const std::vector<std::string>& folders, const std::string& out) {
  std::vector<std::string> sets;
  for (const std::string& folder : folders) sets.push_back(place_of(folder));
  MergedIndex merged{{}, home_of(sets, out), false};
  std::map<std::string, std::string> places;  // by the name in the merged index
  for (const std::string& place : sets) {
    const std::string within = name_within(place, out);
    merged.holds_own |= !within.empty();
    const std::string name = within.empty() ? place.substr(merged.home.size()) : within;
    if (const auto [at, is_new] = places.emplace(name, place); !is_new) {
      if (at->second == place) continue;
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{} and {} would both be '{}' beside the merged index", at->second,
                              place, name),
                  "put the sets below the folder of --out, or give them names of their own");
    }
    for (MdsShard& shard : load_index(place).shards) {
      shard.raw.basename = join_path(name, shard.raw.basename);
      if (shard.zip) shard.zip->basename = join_path(name, shard.zip->basename);
      merged.index.shards.push_back(std::move(shard));
    }
  }
  return merged;
}

MergedIndex write_merged_index(const std::vector<std::string>& folders, const std::string& out) {
  MergedIndex merged = merge_indexes(folders, out);
  make_folders(out);
  write_file_durable(join_path(out, kIndexName), merged.index.dump(true));
  return merged;
}

}  // namespace dropless::train
