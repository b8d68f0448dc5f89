// How evenly a step used the experts.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "train/bridge/torch.h"
#include "train/run/monitors.h"

namespace dropless::train {

// mb_moe/all_layers_{min,max,median,std}_tpe and, where they are asked for, mb_moe/layer{i}_...
// (i counts the layers that are mixtures). tokens_per_expert_LE: int64 on the CPU.
void add_expert_figures(const at::Tensor& tokens_per_expert_LE, std::int64_t top_k,
                        const ExpertMonitorConfig& config, std::int64_t step,
                        nlohmann::ordered_json& line);
// The busiest expert's load over the mean, averaged over layers.
double max_over_mean(const at::Tensor& tokens_per_expert_LE);

}  // namespace dropless::train
