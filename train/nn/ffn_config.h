// What a dense feed-forward network is, and the activations that `ffn_act_fn` names.
#pragma once

#include <cstdint>
#include <optional>

#include "train/base/yaml.h"
#include "train/bridge/moe_config.h"
#include "train/nn/lora_config.h"

namespace dropless::train {

struct FfnConfig {
  std::int64_t d_model = 0;
  std::int64_t d_ffn = 0;
  Activation activation = Activation::kGelu;
  bool glu = false;
  bool bias = true;
  std::optional<LoraConfig> lora = std::nullopt;
};

// `ffn_act_fn: {name: silu}` or `ffn_act_fn: silu`; absent: `fallback`.
Activation activation_from_yaml(const YamlMap& map, Activation fallback);

const char* activation_name(Activation activation);  // as `ffn_act_fn` takes it

}  // namespace dropless::train
