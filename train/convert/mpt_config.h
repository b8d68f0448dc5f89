// config.json of LLM Foundry's own models (model_type mpt), as its hf_checkpointer and
// convert_composer_to_hf write it: MPTConfig's keys, which are those of our `model` block.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "train/convert/hf_config.h"

namespace dropless::train {

// alibi_bias_max of transformers' MptForCausalLM, whatever its config says.
inline constexpr int kHfAlibiBiasMax = 8;

// The five sizes that LLM Foundry's and DBRX's config.json name alike: d_model to vocab_size.
nlohmann::ordered_json foundry_sizes(const ModelConfig& config);

// As read_hf_config, which calls it for model_type mpt.
ReleasedModel read_mpt_config(const nlohmann::json& json, const std::string& path);

// As make_hf_config. Throws Error(kUnsupported) naming the first key that LLM Foundry cannot say.
nlohmann::ordered_json make_mpt_config(const ModelConfig& config, const std::string& dtype,
                                       const nlohmann::json& kept);

// The keys of transformers' own MptConfig; nullopt for a model that its MptForCausalLM does not compute: that
// has ALiBi, LayerNorm, a plain GELU of four times the width, no biases and tied embeddings.
std::optional<nlohmann::ordered_json> hf_mpt_config(const ModelConfig& config);

}  // namespace dropless::train
