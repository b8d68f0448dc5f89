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
#include "train/nn/moe_config.h"

namespace dropless::train {

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
