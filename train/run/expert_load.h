// How evenly the routers spread tokens: LLM Foundry's `mb_moe/..._tpe` figures.
#pragma once

#include <cstdint>

#include "train/bridge/torch.h"

namespace dropless::train {

struct ExpertLoad {
  // Over all experts of all layers, of tokens_e * K / sum_e tokens_e (K / E each at perfect
  // balance).
  double min = 0, max = 0, median = 0, std = 0;
  double max_over_mean = 0;  // the busiest expert's load over the mean, averaged over layers
};

// tokens_per_expert_LE: int64 on the CPU.
ExpertLoad expert_load(const at::Tensor& tokens_per_expert_LE, std::int64_t top_k);

}  // namespace dropless::train
