// The config of a released model's folder: config.json (Hugging Face's transformers, LLM Foundry) or
// params.json (Mistral).
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "train/convert/hf_config.h"

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

}  // namespace dropless::train
