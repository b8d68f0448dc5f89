#include "train/convert/companions.h"

#include <cstdint>

#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/convert/released_folder.h"

namespace dropless::train {
namespace {

constexpr const char* kNames[] = {
    kGenerationConfig,         "tokenizer.json",    "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json",      "merges.txt",
    "chat_template.jinja",     "chat_template.json"};
constexpr std::uint64_t kMaxBytes = 256 << 20;

const char* origin_name(const std::string& folder) {
  return is_released_folder(folder) ? kHfConfigFile : kKeptConfig;
}

}  // namespace

std::vector<Companion> read_companions(const std::string& folder) {
  std::vector<Companion> found;
  const auto add = [&](const char* file, const char* name) {
    const std::string path = join_path(folder, file);
    if (path_exists(path)) found.push_back({name, read_file(path, kMaxBytes)});
  };
  add(origin_name(folder), kKeptConfig);
  for (const char* name : kNames) add(name, name);
  return found;
}

nlohmann::json read_origin_config(const std::string& folder) {
  const std::string path = join_path(folder, origin_name(folder));
  if (!path_exists(path)) return {};
  return parse_json(read_file(path, 16 << 20), path);
}

}  // namespace dropless::train
