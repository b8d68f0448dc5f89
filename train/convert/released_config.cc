#include "train/convert/released_config.h"

#include <fmt/format.h>

#include <cstdint>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/manifest.h"
#include "train/convert/mistral_config.h"
#include "train/convert/weight_files.h"

namespace dropless::train {
namespace {

bool has(const std::string& folder, const std::string& name) {
  return path_exists(join_path(folder, name));
}

bool is_mistral_folder(const std::string& folder) {
  if (!has(folder, kMistralConfigFile)) return false;
  return !has(folder, kHfConfigFile) ||
         (!has(folder, kModelFiles.single()) && !has(folder, kModelFiles.index()));
}

nlohmann::json read_config_file(const std::string& path) {
  constexpr std::uint64_t kMaxBytes = 16 << 20;
  return parse_json(read_file(path, kMaxBytes), path);
}

}  // namespace

bool is_released_folder(const std::string& path) {
  return is_folder(path) && (has(path, kHfConfigFile) || has(path, kMistralConfigFile)) &&
         !has(path, kManifestName);
}

void require_some_config(const std::string& path) {
  if (!is_folder(path) || !(has_weight_files(path) || has_pickled_weights(path))) return;
  for (const char* name : {kHfConfigFile, kMistralConfigFile, kConfigFile, kManifestName}) {
    if (has(path, name)) return;
  }
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("no {} in {}, which holds weights", kHfConfigFile, path),
              "copy it from where the weights are from");
}

nlohmann::json read_hf_json(const std::string& folder) {
  return read_config_file(join_path(folder, kHfConfigFile));
}

std::string released_config_path(const std::string& folder) {
  return join_path(folder, is_mistral_folder(folder) ? kMistralConfigFile : kHfConfigFile);
}

ReleasedModel read_released_config(const std::string& folder) {
  const std::string path = released_config_path(folder);
  const nlohmann::json json = read_config_file(path);
  return is_mistral_folder(folder) ? read_mistral_params(json, path) : read_hf_config(json, path);
}

}  // namespace dropless::train
