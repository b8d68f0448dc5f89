// The `init_config` of a model: LLM Foundry's schemes, a spread per matrix from its fans, and the
// projections that write into the residual stream divided by sqrt(2 n_layers).
#pragma once

#include <optional>
#include <utility>

#include "train/base/yaml.h"

namespace dropless::train {

// Standard deviations s; a uniform scheme draws from [-sqrt(3) s, sqrt(3) s].
enum class InitScheme {
  kKaimingNormal,  // gain / sqrt(fan), fan_in or fan_out; gain as of init_nonlinearity
  kKaimingUniform,
  kXavierNormal,  // gain sqrt(2 / (fan_in + fan_out))
  kXavierUniform,
  kSmall,     // sqrt(2 / (5 d_model)) (Nguyen and Salazar 2019, arXiv:1910.05895)
  kNeox,      // as kSmall, and n_layers / sqrt(10) divides the residual's (arXiv:2204.06745)
  kBaseline,  // init_std
};

bool is_kaiming(InitScheme scheme);
bool is_xavier(InitScheme scheme);

struct InitConfig {
  InitScheme scheme = InitScheme::kKaimingNormal;
  double init_std = 0;      // kBaseline
  double squared_gain = 2;  // kKaiming* (2 is relu's), kXavier*
  bool fan_out = false;     // kKaiming*
  // 0: sqrt(2 n_layers), n_layers / sqrt(10) for kNeox; 1: nothing
  double residual_divisor = 0;
  // Of the embedding tables, where it is not as of a matrix: one of them.
  std::optional<double> emb_init_std;
  std::optional<std::pair<double, double>> emb_uniform;

  // Reads `init_config`. Throws Error(kInvalidArgument).
  static InitConfig from_yaml(const YamlMap& map);
};

}  // namespace dropless::train
