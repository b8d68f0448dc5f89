// The `peft_config` of a model: which matrices have low-rank adapters (train/nn/lora.h), and of what
// size.
#pragma once

#include <cstdint>
#include <set>

#include "train/base/yaml.h"

namespace dropless::train {

// The matrices that may have an adapter; kWqkv: queries, keys and values by one, else each by its own.
enum class LoraTarget { kWqkv, kQ, kK, kV, kOut, kGate, kUp, kDown };

struct LoraConfig {
  std::int64_t r = 8;
  double alpha = 8;
  double dropout = 0;  // of the adapters' input, in training
  bool rslora = false;
  std::set<LoraTarget> targets;

  // Reads PEFT's LoraConfig as LLM Foundry's `peft_config` has it; target_modules takes the names of
  // LLM Foundry and of Hugging Face's families. `glu`: the feed-forward layers have a gate; where they
  // do not, all-linear means none and w1 is the up projection. Throws Error(kInvalidArgument).
  static LoraConfig from_yaml(const YamlMap& map, bool glu);

  double scale() const;
  bool has(LoraTarget target) const { return targets.contains(target); }
};

// LLM Foundry's name of a target: "Wqkv", "q_proj" ...
const char* lora_target_name(LoraTarget target);

}  // namespace dropless::train
