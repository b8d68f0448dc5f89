// config.json of a Hugging Face folder, to our `model` block and back.
//
// Every key that changes what the weights compute is honoured or refused by name; so is one that
// nobody here has heard of.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/convert/family.h"
#include "train/nn/model_config.h"

namespace dropless::train {

struct ReleasedModel {
  Family family;
  ModelConfig config;
  nlohmann::ordered_json block;  // the `model` block that gives `config`
  // Sentences on what is not read as its author may think.
  std::vector<std::string> oddities = {};
};

// `path` starts the messages. Throws Error: kInvalidArgument for a broken file, an unknown
// model_type or key; kUnsupported for a value that this version has no counterpart for.
ReleasedModel read_hf_config(const nlohmann::json& json, const std::string& path);

// The family whose config.json can say all of `config`; where two can, the one of `kept`, the
// config.json that the model came with, or null. Throws Error(kUnsupported) naming the key that
// none can say.
Family hf_family_of(const ModelConfig& config, const nlohmann::json& kept);
// `dtype` is transformers' name of the weights' type ("bfloat16"); token ids are those of `kept`.
nlohmann::ordered_json make_hf_config(const ModelConfig& config, const std::string& dtype,
                                      const nlohmann::json& kept);

}  // namespace dropless::train
