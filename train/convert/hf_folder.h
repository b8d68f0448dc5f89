// A model folder of Hugging Face's transformers: config.json and safetensors.
#pragma once

#include <optional>
#include <string>

#include "train/convert/hf_config.h"
#include "train/convert/tensor_folder.h"

namespace dropless::train {

inline constexpr const char* kHfConfigFile = "config.json";

// Holds config.json, and no manifest of ours.
bool is_hf_folder(const std::string& path);

// What config.json holds.
nlohmann::json read_hf_json(const std::string& folder);
HfModel read_hf_folder_config(const std::string& folder);

struct HfFolder {
  HfModel model;
  TensorFolder weights;
  TensorMap map;  // of the form that the folder has
};
// Throws Error where tensors are missing, left over or of other shapes than config.json says.
HfFolder open_hf_folder(const std::string& folder);

}  // namespace dropless::train
