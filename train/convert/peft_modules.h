// The modules of an adapter that PEFT saved, brought into the form of peft_layout(): one A and one B for each
// linear layer, all of one rank and one scale.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "train/convert/tensor_folder.h"
#include "train/convert/tensor_map.h"
#include "train/nn/model_config.h"

namespace dropless::train {

// `file`: adapter_model.safetensors at `path`; `json`: adapter_config.json, of which alpha_pattern is read;
// `lora` begins with its r and lora_alpha and gets those of all modules. Ranks below the highest are filled up
// with zeros, and other scales become a factor of B: the sum W + s B A stays what it was. Throws Error
// (kInvalidArgument) for tensors that are no sides of adapters.
void unify_modules(const nlohmann::json& json, const std::string& path, const ModelConfig& model,
                   Family family, TensorFolder& file, LoraConfig& lora);

}  // namespace dropless::train
