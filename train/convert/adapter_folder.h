// A LoRA adapter that PEFT saved: adapter_config.json and adapter_model.safetensors, read for a model of
// ours.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "train/bridge/torch.h"
#include "train/nn/model_config.h"

namespace dropless::train {

struct AdapterFolder {
  LoraConfig lora;
  std::string base;                           // base_model_name_or_path, may be empty
  std::map<std::string, at::Tensor> tensors;  // fp32 on the CPU, by our names
};

// Whether the folder holds adapter_config.json.
bool is_adapter_folder(const std::string& path);

// `model`: the one beside which it stands; `kept`: config.json of its origin, or null. A matrix of a kind
// that has adapters elsewhere, and itself none, gets one of zeros, which adds nothing and gets no gradient.
// Throws Error: kInvalidArgument for a model that has adapters, a folder that is none, a key that makes
// another function of the tensors, and tensors that are not of this model; kDamaged for a damaged file.
AdapterFolder open_adapter_folder(const std::string& folder, const ModelConfig& model,
                                  const nlohmann::json& kept);

// `peft_config` of a config.yaml, as JSON.
std::string peft_config_of(const LoraConfig& lora, const std::string& base);

}  // namespace dropless::train
