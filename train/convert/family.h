// The families of released models, each with a layout of its own.
#pragma once

namespace dropless::train {

enum class Family {
  kMixtral,
  kOlmoe,
  kQwen3Moe,
  kDbrx,
  kLlama,
  kMistral,
  kQwen3,
  kQwen2,
  kQwen2Moe,
  kMpt,            // LLM Foundry's own
  kMptFusedNorms,  // with fuse_norm_attn_norm, which renames norms and attention
  kMistralNative,  // Mistral's layout: params.json, consolidated.safetensors
};

const char* family_name(Family family);  // config.json's model_type

}  // namespace dropless::train
