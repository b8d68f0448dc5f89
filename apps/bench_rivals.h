// The mixture-of-experts layer as a PyTorch program writes it, in the formulations found in the field:
// what `bench moe` times dropless against on the CPU.
#pragma once

#include <string>
#include <vector>

#include "train/bridge/torch.h"

namespace dropless::apps {

enum class ExpertProducts {
  kGroupedMm,  // at::_grouped_mm over rows sorted by expert
  kLoop,       // one product for each expert
};

enum class Combination {
  kIndexAdd,   // out.index_add_(0, token, weight * row)
  kUnpermute,  // rows back in token order, weighted, summed over K
  kMergedBmm,  // gate and up in one product ([E, 2F, D]); K weighted rows by a batched product
};

struct RivalLayer {
  std::string name;
  ExpertProducts products;
  Combination combination;
};

// Every formulation.
std::vector<RivalLayer> rival_layers();

// SwiGLU, softmax in fp32, top-k without normalisation; differentiable. `w13_E2FD` (gate, then up) is
// read by the merged formulation only, w1 and v1 by the others.
struct RivalInputs {
  at::Tensor x_TD, router_ED, w1_EFD, v1_EFD, w13_E2FD, w2_EFD;
};
at::Tensor rival_forward(const RivalLayer& layer, const RivalInputs& inputs, std::int64_t top_k);

}  // namespace dropless::apps
