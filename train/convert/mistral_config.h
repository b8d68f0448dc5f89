// params.json of Mistral's own layout (mistral-inference), to our `model` block and back.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "train/convert/hf_config.h"

namespace dropless::train {

// Throws Error as read_hf_config does.
ReleasedModel read_mistral_params(const nlohmann::json& json, const std::string& path);

// Throws Error(kUnsupported) naming the key that params.json cannot say.
nlohmann::ordered_json make_mistral_params(const ModelConfig& config);

}  // namespace dropless::train
