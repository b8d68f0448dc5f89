#include "train/run/expert_load.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>

namespace dropless::train {
namespace {

// tokens_e * K / sum_e tokens_e: K / E each at perfect balance.
at::Tensor token_share(const at::Tensor& tokens_LE, std::int64_t top_k) {
  return tokens_LE / tokens_LE.sum(1, /*keepdim=*/true).clamp_min(1.0) * static_cast<double>(top_k);
}

void add_statistics(const at::Tensor& tpe, const std::string& prefix,
                    nlohmann::ordered_json& line) {
  line[prefix + "_min_tpe"] = tpe.min().item<double>();
  line[prefix + "_max_tpe"] = tpe.max().item<double>();
  line[prefix + "_median_tpe"] = tpe.median().item<double>();
  line[prefix + "_std_tpe"] = tpe.numel() > 1 ? tpe.std().item<double>() : 0.0;
}

}  // namespace

void add_expert_figures(const at::Tensor& tokens_per_expert_LE, std::int64_t top_k,
                        const ExpertMonitorConfig& config, std::int64_t step,
                        nlohmann::ordered_json& line) {
  at::Tensor tpe_LE = tokens_per_expert_LE.to(at::kDouble);
  if (config.normalize) tpe_LE = token_share(tpe_LE, top_k);
  add_statistics(tpe_LE, "mb_moe/all_layers", line);
  if (!config.log_every_layer || step % config.log_interval != 0) return;
  for (std::int64_t layer = 0; layer < tpe_LE.size(0); ++layer) {
    add_statistics(tpe_LE[layer], fmt::format("mb_moe/layer{}", layer), line);
  }
}

double max_over_mean(const at::Tensor& tokens_per_expert_LE) {
  const at::Tensor share = token_share(tokens_per_expert_LE.to(at::kDouble), /*top_k=*/1);
  return (share.amax(1) * static_cast<double>(share.size(1))).mean().item<double>();
}

}  // namespace dropless::train
