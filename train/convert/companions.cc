#include "train/convert/companions.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>

#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/convert/released_folder.h"

namespace dropless::train {
namespace {

constexpr const char* kTokenizerNames[] = {"tokenizer.json",
                                           "tokenizer.model",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "added_tokens.json",
                                           "vocab.json",
                                           "merges.txt",
                                           "chat_template.jinja",
                                           "chat_template.json"};
constexpr std::uint64_t kMaxBytes = 256 << 20;

const char* origin_name(const std::string& folder) {
  return is_released_folder(folder) ? kHfConfigFile : kKeptConfig;
}

void add(const std::string& path, const std::string& name, std::vector<Companion>& found) {
  if (path_exists(path)) found.push_back({name, read_file(path, kMaxBytes)});
}

std::vector<Companion> tokenizer_files_in(const std::string& folder) {
  std::vector<Companion> found;
  for (const char* name : kTokenizerNames) add(join_path(folder, name), name, found);
  return found;
}

}  // namespace

std::vector<Companion> read_companions(const std::string& folder) {
  std::vector<Companion> found;
  add(join_path(folder, origin_name(folder)), kKeptConfig, found);
  add(join_path(folder, kGenerationConfig), kGenerationConfig, found);
  for (Companion& file : tokenizer_files_in(folder)) found.push_back(std::move(file));
  return found;
}

bool is_tokenizer_file(const std::string& name) {
  return std::find(std::begin(kTokenizerNames), std::end(kTokenizerNames), name) !=
         std::end(kTokenizerNames);
}

std::vector<Companion> tokenizer_files(const std::string& name) {
  if (!path_exists(name)) return {};
  if (is_folder(name)) return tokenizer_files_in(name);
  if (is_tokenizer_file(base_name(name))) return tokenizer_files_in(parent_folder(name));
  std::vector<Companion> found;
  if (name.ends_with(".json")) add(name, "tokenizer.json", found);
  if (name.ends_with(".model")) add(name, "tokenizer.model", found);
  return found;
}

nlohmann::json read_origin_config(const std::string& folder) {
  const std::string path = join_path(folder, origin_name(folder));
  if (!path_exists(path)) return {};
  return parse_json(read_file(path, 16 << 20), path);
}

}  // namespace dropless::train
