// The layer as others run it, out of libtorch's operators: `bench moe` times these beside ours.
#pragma once

#include "train/bridge/moe.h"

namespace dropless::apps {

enum class RivalProducts {
  kGrouped,  // at::_grouped_mm; where it does not take the type, as kLoop
  kLoop,     // a product an expert, its rows counted on the host, as MegaBlocks' grouped path does
  kPadded,   // batched, every expert padded to the rows of the fullest
};

// SwiGLU, softmax scores, plain top-k; no losses.
at::Tensor rival_layer(RivalProducts products, const MoEConfig& config, const at::Tensor& x_TD,
                       const at::Tensor& router_ED, const at::Tensor& w1_EFD,
                       const at::Tensor& v1_EFD, const at::Tensor& w2_EFD);

}  // namespace dropless::apps
