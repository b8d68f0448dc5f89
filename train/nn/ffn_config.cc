#include "train/nn/ffn_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <utility>
#include <vector>

namespace dropless::train {
namespace {

constexpr std::pair<const char*, Activation> kActivations[] = {
    {"silu", Activation::kSilu},
    {"gelu", Activation::kGelu},
    {"gelu_tanh", Activation::kGeluTanh},
    {"relu", Activation::kRelu},
    {"quick_gelu", Activation::kQuickGelu},
};

}  // namespace

const char* activation_name(Activation activation) {
  for (const auto& [name, candidate] : kActivations) {
    if (candidate == activation) return name;
  }
  return "unknown";
}

Activation activation_from_yaml(const YamlMap& map, Activation fallback) {
  if (!map.has("ffn_act_fn")) {
    map.skip("ffn_act_fn");
    return fallback;
  }
  std::string name;
  if (map.is_map("ffn_act_fn")) {
    const YamlMap act = map.map("ffn_act_fn");
    name = act.get<std::string>("name");
    const std::string approximate = act.get<std::string>("approximate", "none");
    if (approximate != "none" && approximate != "tanh") {
      act.fail("approximate", "approximate is `none` or `tanh`, not " + approximate);
    }
    if (name == "gelu" && approximate == "tanh") name = "gelu_tanh";
    act.finish();
  } else {
    name = map.get<std::string>("ffn_act_fn");
  }
  std::vector<std::string> known;
  for (const auto& [candidate, activation] : kActivations) {
    if (name == candidate) return activation;
    known.push_back(candidate);
  }
  map.fail("ffn_act_fn", "unknown activation " + name,
           fmt::format("one of: {}", fmt::join(known, ", ")));
}

}  // namespace dropless::train
