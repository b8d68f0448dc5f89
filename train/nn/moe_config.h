// What a mixture of experts is: `ffn_config` with MegaBlocks' keys.
#pragma once

#include <cstdint>
#include <optional>

#include "train/base/yaml.h"
#include "train/bridge/moe_config.h"
#include "train/nn/lora_config.h"

namespace dropless::train {

enum class MoEBackend {
  kAuto,       // libdropless where it has kernels for the device, type and widths, else libtorch
  kDropless,   // libdropless, an error where it has none
  kReference,  // libdropless's plain loops
  kTorch,      // libtorch's grouped products, a loop over experts where they refuse
};

struct MoELayerConfig {
  MoEConfig moe;  // its shared expert and expert biases stay unused: the ones here are beside it
  MoEBackend backend = MoEBackend::kAuto;
  double jitter_eps = 0;  // training multiplies the router's input by U(1 - eps, 1 + eps); 0: off
  // Of the selection bias (MoEConfig::selection_bias) after every step, up for experts below the
  // mean load and down for those above (DeepSeek-V3, arXiv:2412.19437).
  double bias_update_rate = 0.001;
  bool bias = false;              // one output bias [D], not weighted by the router
  std::int64_t shared_d_ffn = 0;  // width of the shared expert; 0: none
  bool shared_weighted = false, shared_gate = false;
  double loss_weight = 0.1;
  double zloss_weight = 0.0;
  std::optional<LoraConfig> lora;

  // Whether the experts have adapters.
  bool adapts_experts() const;
  // Reads an `ffn_config` with ffn_type mb_dmoe, torch_dmoe or mb_moe (the one whose experts have a
  // capacity). Throws Error(kInvalidArgument).
  static MoELayerConfig from_yaml(const YamlMap& map, std::int64_t d_model,
                                  std::int64_t default_d_ffn, bool bias);
};

const char* moe_backend_name(MoEBackend backend);

}  // namespace dropless::train
