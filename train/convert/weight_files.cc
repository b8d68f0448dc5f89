#include "train/convert/weight_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"

namespace dropless::train {
namespace {

constexpr std::uint64_t kMaxIndexBytes = 256 << 20;

bool is_pickle(const std::string& name) {
  return name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth") ||
         name.ends_with(".ckpt");
}

// The line of Python that makes safetensors of the folder's pickles, `ending` being how their names end:
// transformers knows the form of its own, and brings the rest of the folder along; Mistral's hold the
// tensors under the names that are read here.
std::string line_for_pickles(const std::string& folder, const std::string& ending, bool mistral) {
  if (mistral) {
    return fmt::format(
        "python -c \"import glob, torch; from safetensors.torch import save_file; "
        "[save_file({{k: v.contiguous().clone() for k, v in torch.load(f, map_location='cpu', "
        "weights_only=True).items()}}, f.removesuffix('{1}') + '.safetensors') "
        "for f in glob.glob('{0}/consolidated*{1}')]\"",
        folder, ending);
  }
  return fmt::format(
      "python -c \"import shutil; from transformers import AutoModelForCausalLM as M; "
      "shutil.copytree('{0}', '{0}-safetensors', ignore=shutil.ignore_patterns('*{1}*')); "
      "M.from_pretrained('{0}', dtype='auto').save_pretrained('{0}-safetensors')\"",
      folder, ending);
}

[[noreturn]] void no_weights(const std::string& folder) {
  for (const std::string& name : list_folder(folder)) {
    if (!is_pickle(name)) continue;
    const bool mistral = name.starts_with(kMistralFiles.stem);
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("{} is a pickle, which could run any code when it is read",
                    join_path(folder, name)),
        "where you trust it: " + line_for_pickles(folder, name.substr(name.rfind('.')), mistral));
  }
  throw Error(ErrorKind::kInvalidArgument, fmt::format("{} holds neither {} nor {}", folder,
                                                       kModelFiles.single(), kModelFiles.index()));
}

// The first releases' consolidated.00.safetensors, consolidated.01.safetensors ... have no index.
std::vector<std::string> files_without_index(const std::string& folder) {
  if (path_exists(join_path(folder, kModelFiles.single()))) return {kModelFiles.single()};
  std::vector<std::string> names;
  for (const std::string& name : list_folder(folder)) {
    if (name.starts_with(kMistralFiles.stem) && name.ends_with(".safetensors")) {
      names.push_back(name);
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

std::string FileNames::shard(std::size_t i, std::size_t n) const {
  return fmt::format("{}-{:05}-of-{:05}.safetensors", stem, i + 1, n);
}

std::string weight_index_path(const std::string& folder) {
  const auto has = [&](const std::string& name) { return path_exists(join_path(folder, name)); };
  if (has(kModelFiles.index())) return join_path(folder, kModelFiles.index());
  if (has(kModelFiles.single()) || !has(kMistralFiles.index())) return {};
  return join_path(folder, kMistralFiles.index());
}

WeightIndex read_weight_index(const std::string& path) {
  const auto fail = [&](const std::string& message) {
    throw Error(ErrorKind::kDamaged, fmt::format("{}: {}", path, message));
  };
  const nlohmann::json json =
      parse_json(read_file(path, kMaxIndexBytes), path, ErrorKind::kDamaged);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    fail("no weight_map");
  }
  WeightIndex index;
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    // A name with a slash could lead anywhere.
    if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos) {
      fail(fmt::format("{} is in no plain file name", tensor));
    }
    index.files[tensor] = file.get<std::string>();
  }
  const nlohmann::json metadata = json.value("metadata", nlohmann::json::object());
  if (metadata.is_object() && metadata.contains("total_size") &&
      metadata["total_size"].is_number_unsigned()) {
    index.total_size = metadata["total_size"].get<std::uint64_t>();
  }
  return index;
}

bool has_weight_files(const std::string& folder) {
  return !weight_index_path(folder).empty() || !files_without_index(folder).empty();
}

bool has_pickled_weights(const std::string& folder) {
  const std::vector<std::string> names = list_folder(folder);
  return std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return is_pickle(name) &&
           (name.starts_with("pytorch_model") || name.starts_with(kMistralFiles.stem));
  });
}

std::vector<std::string> weight_files(const std::string& folder) {
  if (const std::string index = weight_index_path(folder); !index.empty()) {
    std::set<std::string> names;
    for (const auto& [tensor, file] : read_weight_index(index).files) names.insert(file);
    return {names.begin(), names.end()};
  }
  const std::vector<std::string> names = files_without_index(folder);
  if (names.empty()) no_weights(folder);
  return names;
}

}  // namespace dropless::train
