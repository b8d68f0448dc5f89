// LoRA adapters of a model of ours: merged into its weights, or in PEFT's format (adapter_config.json,
// adapter_model.safetensors).
//
// PEFT's tensors are base_model.model.MODULE.lora_A.weight [r, in] and lora_B.weight [out, r], MODULE being
// the linear layer that Hugging Face's class had before transformers 5 stacked experts; PEFT brings these
// names into the form of the class it loads.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "train/convert/tensor_folder.h"
#include "train/convert/tensor_map.h"
#include "train/nn/model_config.h"

namespace dropless::train {

inline constexpr const char* kAdapterConfig = "adapter_config.json";
inline const FileNames kAdapterFiles{"adapter_model"};

// The names of the adapters' parameters.
std::vector<std::string> adapter_names(const ModelConfig& config);

// From now on the weights of `folder`, a checkpoint of ours with adapters, are read with those added:
// W + s B A, in fp32.
void merge_adapters(const ModelConfig& config, TensorFolder& folder);

// The tensors of the adapters on both sides, and which bytes are which.
struct PeftLayout {
  std::vector<TensorShape> ours, theirs;
  std::vector<Link> links;
};
// Throws Error(kUnsupported) where PEFT has no form for an adapter.
PeftLayout peft_layout(const ModelConfig& config, Family family);
// The family whose modules PEFT's names are: LLM Foundry's where it is none of Hugging Face's. `kept`:
// config.json of the model's origin, or null.
Family peft_family_of(ModelConfig config, const nlohmann::json& kept);

// Why peft_tensors() will refuse the adapters of such a model; nullopt where it will not.
std::optional<std::string> peft_obstacle(const ModelConfig& config, const nlohmann::json& kept);

// PEFT's tensors for a model of `family`, and where ours has their bytes. Throws Error(kUnsupported) where
// PEFT has no form for an adapter.
std::vector<MappedTensor> peft_tensors(const ModelConfig& config, Family family);
// `base`: where the model beside which the adapters were trained is.
nlohmann::ordered_json make_adapter_config(const ModelConfig& config, Family family,
                                           const std::string& base);

}  // namespace dropless::train
