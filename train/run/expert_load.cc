#include "train/run/expert_load.h"

namespace dropless::train {

ExpertLoad expert_load(const at::Tensor& tokens_per_expert_LE, std::int64_t top_k) {
  const at::Tensor tokens = tokens_per_expert_LE.to(at::kDouble);
  const at::Tensor share = tokens / tokens.sum(1, /*keepdim=*/true).clamp_min(1.0);
  const at::Tensor tpe = share * static_cast<double>(top_k);
  ExpertLoad load;
  load.min = tpe.min().item<double>();
  load.max = tpe.max().item<double>();
  load.median = tpe.median().item<double>();
  load.std = tpe.numel() > 1 ? tpe.std().item<double>() : 0.0;
  load.max_over_mean = (share.amax(1) * static_cast<double>(tokens.size(1))).mean().item<double>();
  return load;
}

}  // namespace dropless::train
