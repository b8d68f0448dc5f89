// A released model's folder: config.json (Hugging Face's transformers, LLM Foundry) or params.json (Mistral)
// and safetensors.
#pragma once

#include <optional>
#include <string>

#include "train/convert/hf_config.h"
#include "train/convert/tensor_folder.h"

namespace dropless::train {

inline constexpr const char* kHfConfigFile = "config.json";

inline constexpr const char* kMistralConfigFile = "params.json";

// Holds config.json or params.json, and no manifest of ours.
bool is_released_folder(const std::string& path);

// Throws Error(kInvalidArgument) for a folder of weights without any config.
void require_some_config(const std::string& path);

// What config.json holds.
nlohmann::json read_hf_json(const std::string& folder);
// Mistral releases folders of both layouts: config.json counts, unless its tensor files are not there.
ReleasedModel read_released_config(const std::string& folder);
// The file that says it.
std::string released_config_path(const std::string& folder);

struct ReleasedFolder {
  ReleasedModel model;
  TensorFolder weights;
  TensorMap map;  // of the form that the folder has
};
// Throws Error where tensors are missing, left over or of other shapes than config.json says.
ReleasedFolder open_released_folder(const std::string& folder);

}  // namespace dropless::train
