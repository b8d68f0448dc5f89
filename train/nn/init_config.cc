#include "train/nn/init_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <vector>

namespace dropless::train {
namespace {

constexpr std::pair<const char*, InitScheme> kSchemes[] = {
    {"kaiming_normal_", InitScheme::kKaimingNormal},
    {"kaiming_uniform_", InitScheme::kKaimingUniform},
    {"xavier_normal_", InitScheme::kXavierNormal},
    {"xavier_uniform_", InitScheme::kXavierUniform},
    {"small_init_", InitScheme::kSmall},
    {"neox_init_", InitScheme::kNeox},
    {"baseline_", InitScheme::kBaseline},
};

// What keeps the spread of activations (He et al. 2015, arXiv:1502.01852), by PyTorch's names.
double squared_kaiming_gain(const YamlMap& map) {
  const auto name = map.get<std::string>("init_nonlinearity", "relu");
  const auto slope = map.non_negative<double>("init_gain", 0.0);
  if (name != "leaky_relu") {
    map.no_effect("init_gain", "kaiming takes it as the slope of leaky_relu only");
  }
  if (name == "relu") return 2;
  if (name == "leaky_relu") return 2 / (1 + slope * slope);
  if (name == "linear" || name == "sigmoid") return 1;
  if (name == "tanh") return 25.0 / 9;
  if (name == "selu") return 9.0 / 16;
  map.fail("init_nonlinearity", "unknown init_nonlinearity " + name,
           "one of: relu, leaky_relu, linear, sigmoid, tanh, selu");
}

// `true`, `false` or a number.
double read_residual_divisor(const YamlMap& map) {
  const char* key = "init_div_is_residual";
  const auto text = map.get<std::string>(key, "true");
  if (text == "true") return 0;
  if (text == "false") return 1;
  return map.positive<double>(key);
}

void read_embedding(const YamlMap& map, InitConfig& config) {
  config.emb_init_std = map.find<double>("emb_init_std");
  if (config.emb_init_std && *config.emb_init_std < 0) {
    map.fail("emb_init_std", fmt::format("{} is below 0", *config.emb_init_std));
  }
  const char* key = "emb_init_uniform_lim";
  if (map.is_sequence(key)) {
    const auto limits = map.get<std::vector<double>>(key);
    if (limits.size() != 2 || !(limits[0] < limits[1])) {
      map.fail(key, "it is a number, or a lower and a higher limit");
    }
    config.emb_uniform = {limits[0], limits[1]};
  } else if (const auto limit = map.find_positive<double>(key)) {
    config.emb_uniform = {-*limit, *limit};
  }
  if (config.emb_uniform && config.emb_init_std) {
    map.fail(key, "emb_init_uniform_lim and emb_init_std exclude each other", "keep one of them");
  }
}

}  // namespace

bool is_kaiming(InitScheme scheme) {
  return scheme == InitScheme::kKaimingNormal || scheme == InitScheme::kKaimingUniform;
}
bool is_xavier(InitScheme scheme) {
  return scheme == InitScheme::kXavierNormal || scheme == InitScheme::kXavierUniform;
}

InitConfig InitConfig::from_yaml(const YamlMap& map) {
  InitConfig config;
  const auto name = map.get<std::string>("name", "kaiming_normal_");
  std::vector<std::string> known;
  bool found = false;
  for (const auto& [candidate, scheme] : kSchemes) {
    known.push_back(candidate);
    if (name != candidate) continue;
    config.scheme = scheme;
    found = true;
  }
  if (name == "default_") {
    map.fail("name", "default_ is what PyTorch's modules do, and there are none",
             "kaiming_uniform_ with init_nonlinearity leaky_relu, init_gain 2.2360679775 and "
             "init_div_is_residual false draws matrices alike");
  }
  if (!found) {
    map.fail("name", "unknown initialisation " + name,
             fmt::format("one of: {}", fmt::join(known, ", ")));
  }
  const bool kaiming = is_kaiming(config.scheme), xavier = is_xavier(config.scheme);
  if (kaiming) {
    config.squared_gain = squared_kaiming_gain(map);
    const auto mode = map.get<std::string>("fan_mode", "fan_in");
    if (mode != "fan_in" && mode != "fan_out") {
      map.fail("fan_mode", "unknown fan_mode " + mode, "one of: fan_in, fan_out");
    }
    config.fan_out = mode == "fan_out";
  } else {
    map.no_effect("fan_mode", "only kaiming schemes have it");
    map.no_effect("init_nonlinearity", "only kaiming schemes have it");
  }
  if (xavier) {
    const auto gain = map.positive<double>("init_gain", 1.0);
    config.squared_gain = gain * gain;
  } else if (!kaiming) {
    map.no_effect("init_gain", "only kaiming and xavier schemes have it");
  }
  if (config.scheme == InitScheme::kBaseline) {
    config.init_std = map.positive<double>("init_std", 0.02);
  } else {
    map.find_positive<double>("init_std");
    map.no_effect("init_std", name + " derives it from sizes");
  }
  if (config.scheme == InitScheme::kNeox) {
    map.no_effect("init_div_is_residual", "neox_init_ has a divisor of its own");
  } else {
    config.residual_divisor = read_residual_divisor(map);
  }
  read_embedding(map, config);
  map.no_effect("verbose", "nothing more is printed");
  map.finish();
  return config;
}

}  // namespace dropless::train
