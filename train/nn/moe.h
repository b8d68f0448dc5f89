// The mixture-of-experts feed-forward layer of the model: MegaBlocks' dMoE by name, shape and
// formula.
//
// With m(x) the experts' sum (dropless/moe.h) and the bias, a shared expert s, which is a dense
// network that every token goes through, makes it
//
//   y = s(x) + m(x),      or weighted      y = s(x) / (K + 1) + K / (K + 1) m(x),
//
// where a gate puts sigmoid(g . x) s(x) in the place of s(x) (Qwen2-MoE's).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/bridge/moe.h"
#include "train/nn/ffn.h"
#include "train/nn/init.h"

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

// What the routers of one forward pass leave for the loss and the logs, one entry a layer.
struct RouterRecord {
  bool want_entropy = false;
  std::vector<at::Tensor> losses_2;             // load-balancing loss and z-loss, unweighted
  std::vector<at::Tensor> tokens_per_expert_E;  // int32
  std::vector<at::Tensor> entropy;              // router_entropy, where it is wanted
};

// How undecided a router is: the entropy of its probabilities over log E, averaged over tokens; 0:
// always one expert, 1: all alike. fp32, without gradient.
at::Tensor router_entropy(const at::Tensor& x_TD, const at::Tensor& router_ED);

struct BackendChoice {
  MoEBackend backend;  // never kAuto
  std::string reason;  // why it is libtorch although libdropless would have been taken, or empty
};

// What runs products of `type` on `device`; the one place where the choice is made. Throws
// Error(kUnsupported) where what is demanded, or with kAuto everything, cannot run the layer.
BackendChoice resolve_backend(const MoELayerConfig& config, at::ScalarType type, at::Device device);
const char* moe_backend_name(MoEBackend backend);

class MoE {
 public:
  // Parameters NAME.router.layer.weight [E, D], NAME.router.selection_bias [E] (no gradient trains
  // it), NAME.experts.mlp.{w1,v1,w2} [E * F, D],
  // NAME.experts.bias [D]; NAME.shared_expert.{up_proj,down_proj,gate_proj} as a dense network's,
  // NAME.shared_expert_gate.weight [1, D]; of adapters NAME.experts.mlp.w1.lora_A ...
  // (make_expert_adapters).
  MoE(const MoELayerConfig& config, const std::string& name, ParameterMaker& maker);
  at::Tensor forward(const at::Tensor& x_BSD, RouterRecord& record, bool training = false) const;
  // After a step in which the experts were chosen so often, int64 [E].
  void update_selection_bias(const at::Tensor& tokens_per_expert_E);

 private:
  struct Resolved {
    at::ScalarType type;
    at::Device device;
    MoEBackend backend;
  };
  at::Tensor add_shared_expert(const at::Tensor& x_TD, const at::Tensor& experts_TD,
                               bool training) const;
  ExpertAdapters adapters_in_compute_dtype() const;

  MoELayerConfig config_;
  mutable std::optional<Resolved> resolved_;  // by the last forward pass
  at::Tensor router_, selection_bias_, w1_, v1_, w2_, bias_, shared_gate_;
  ExpertAdapters adapters_;
  std::optional<Ffn> shared_;
};

}  // namespace dropless::train
