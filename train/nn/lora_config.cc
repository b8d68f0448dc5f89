#include "train/nn/lora_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace dropless::train {
namespace {

// LLM Foundry's and DBRX's names first; of those the first is lora_target_name().
constexpr std::pair<const char*, LoraTarget> kTargets[] = {
    {"Wqkv", LoraTarget::kWqkv},    {"q_proj", LoraTarget::kQ},
    {"k_proj", LoraTarget::kK},     {"v_proj", LoraTarget::kV},
    {"out_proj", LoraTarget::kOut}, {"gate_proj", LoraTarget::kGate},
    {"up_proj", LoraTarget::kUp},   {"down_proj", LoraTarget::kDown},
    {"o_proj", LoraTarget::kOut},   {"w1", LoraTarget::kGate},
    {"v1", LoraTarget::kUp},        {"w2", LoraTarget::kDown},
    {"w3", LoraTarget::kUp},
};

std::set<LoraTarget> read_targets(const YamlMap& map, bool glu) {
  const char* key = "target_modules";
  std::vector<std::string> names;
  if (map.is_sequence(key)) {
    names = map.get<std::vector<std::string>>(key);
  } else {
    names.push_back(map.get<std::string>(key));
    if (names[0] == "all-linear") {
      std::set<LoraTarget> all{LoraTarget::kQ,   LoraTarget::kK,  LoraTarget::kV,
                               LoraTarget::kOut, LoraTarget::kUp, LoraTarget::kDown};
      if (glu) all.insert(LoraTarget::kGate);
      return all;
    }
  }
  std::set<LoraTarget> targets;
  for (const std::string& name : names) {
    std::optional<LoraTarget> found;
    std::vector<std::string> known;
    for (const auto& [candidate, target] : kTargets) {
      if (name == candidate) found = target;
      known.push_back(candidate);
    }
    if (!found) {
      map.fail(key, "unknown module " + name,
               fmt::format("all-linear, or some of: {}", fmt::join(known, ", ")));
    }
    if (!glu && name == "w1") found = LoraTarget::kUp;
    if (!glu && *found == LoraTarget::kGate) {
      map.fail(key, name + " is of layers with a gate",
               "ffn_type mptglu or mlp_type glu has one; all-linear takes what there is");
    }
    targets.insert(*found);
  }
  if (targets.empty()) map.fail(key, "no module", "name one, or all-linear");
  const bool parts = targets.contains(LoraTarget::kQ) || targets.contains(LoraTarget::kK) ||
                     targets.contains(LoraTarget::kV);
  if (targets.contains(LoraTarget::kWqkv) && parts) {
    map.fail(key, "Wqkv is q_proj, k_proj and v_proj together", "name it or them");
  }
  return targets;
}

}  // namespace

LoraConfig LoraConfig::from_yaml(const YamlMap& map, bool glu) {
  LoraConfig config;
  const auto type = map.get<std::string>("peft_type", "LORA");
  map.refuse("peft_type", type != "LORA", "use LORA");
  const auto task = map.get<std::string>("task_type", "CAUSAL_LM");
  map.refuse("task_type", task != "CAUSAL_LM", "use CAUSAL_LM");
  config.r = map.positive<std::int64_t>("r", config.r);
  constexpr std::int64_t kMost = 1 << 16;
  if (config.r > kMost) map.fail("r", fmt::format("{} is above {}", config.r, kMost));
  config.alpha = map.positive<double>("lora_alpha", config.alpha);
  config.dropout = map.non_negative<double>("lora_dropout", 0.0);
  if (config.dropout >= 1) map.fail("lora_dropout", "not below 1: nothing would be left");
  config.rslora = map.get<bool>("use_rslora", false);
  config.targets = read_targets(map, glu);
  const auto bias = map.get<std::string>("bias", "none");
  map.refuse("bias", bias != "none", "use none");
  map.refuse("fan_in_fan_out", map.get<bool>("fan_in_fan_out", false));
  map.refuse("use_dora", map.get<bool>("use_dora", false));
  map.no_effect("inference_mode", "the verb says whether it trains");
  map.no_effect("base_model_name_or_path", "load_path names the base model");
  map.finish();
  return config;
}

double LoraConfig::scale() const {
  const auto rank = static_cast<double>(r);
  return alpha / (rslora ? std::sqrt(rank) : rank);
}

const char* lora_target_name(LoraTarget target) {
  for (const auto& [name, candidate] : kTargets) {
    if (candidate == target) return name;
  }
  return "unknown";
}

}  // namespace dropless::train
