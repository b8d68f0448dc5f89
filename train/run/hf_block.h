// `model: {name: hf_causal_lm, ...}`: the model of a Hugging Face folder, by LLM Foundry's keys.
#pragma once

#include <string>

#include "train/base/yaml.h"
#include "train/nn/model_config.h"

namespace dropless::train {

struct HfBlock {
  ModelConfig model;
  std::string block;    // the `model` block of mpt_causal_lm that is the same model, as JSON
  std::string weights;  // the folder, where training starts from its weights; else empty
};

// Whether the `model` block names one.
bool is_hf_block(const YamlMap& model);

// Reads the block and the folder's config.json, with `config_overrides` in its place. Throws
// Error(kInvalidArgument) with the place; a name of the hub is no folder, and nothing is fetched.
// `loads`: load_path names the weights instead.
HfBlock read_hf_block(const YamlMap& model, bool loads);

}  // namespace dropless::train
