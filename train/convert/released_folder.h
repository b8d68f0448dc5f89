// A released model's folder: its config and safetensors.
#pragma once

#include <string>
#include <vector>

#include "train/convert/released_config.h"
#include "train/convert/tensor_folder.h"
#include "train/convert/tensor_map.h"

namespace dropless::train {

struct ReleasedFolder {
  ReleasedModel model;
  TensorFolder weights;
  TensorMap map;  // of the form that the folder has
  // Sentences on what is odd in it, for whoever opens it.
  std::vector<std::string> oddities = {};
};
// Throws Error where tensors are missing, left over or of other shapes than config.json says.
ReleasedFolder open_released_folder(const std::string& folder);

}  // namespace dropless::train
