#include "train/optim/optimizer_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <regex>

#include "dropless/error.h"
#include "train/base/log.h"
#include "train/base/regex.h"

namespace dropless::train {
namespace {

struct NamedType {
  const char* name;
  OptimizerType type;
  const char* class_name;
};

constexpr NamedType kTypes[] = {
    {"decoupled_adamw", OptimizerType::kDecoupledAdamW, "DecoupledAdamW"},
    {"adamw", OptimizerType::kAdamW, "AdamW"},
    {"decoupled_lionw", OptimizerType::kDecoupledLionW, "DecoupledLionW"},
    {"clip_lion", OptimizerType::kClipLion, "DecoupledClipLion"},
    {"adalr_lion", OptimizerType::kAdaLrLion, "DecoupledAdaLRLion"},
    {"sgd", OptimizerType::kSgd, "SGD"},
    {"no_op", OptimizerType::kNoOp, "NoOp"},
};

OptimizerType type_from_yaml(const YamlMap& map) {
  const std::string name = map.get<std::string>("name", kTypes[0].name);
  std::string known;
  for (const NamedType& candidate : kTypes) {
    if (name == candidate.name) return candidate.type;
    known += known.empty() ? "one of: " : ", ";
    known += candidate.name;
  }
  map.fail("name", "unknown optimizer " + name, known);
}

bool is_adam(OptimizerType type) {
  return type == OptimizerType::kDecoupledAdamW || type == OptimizerType::kAdamW;
}

bool is_lion(OptimizerType type) {
  return type == OptimizerType::kDecoupledLionW || type == OptimizerType::kClipLion ||
         type == OptimizerType::kAdaLrLion;
}

// Composer's, LLM Foundry's and torch's own.
GroupConfig defaults_of(OptimizerType type) {
  switch (type) {
    case OptimizerType::kDecoupledAdamW:
      return {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 1e-5};
    case OptimizerType::kAdamW:
      return {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 1e-2};
    case OptimizerType::kDecoupledLionW:
    case OptimizerType::kClipLion:
    case OptimizerType::kAdaLrLion:
      return {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.99};
    case OptimizerType::kSgd:
    case OptimizerType::kNoOp:
      return {.lr = 1e-3};
  }
  return {};
}

GroupConfig read_group(const YamlMap& map, OptimizerType type, const GroupConfig& defaults) {
  GroupConfig group = defaults;
  group.lr = map.positive<double>("lr", group.lr);
  group.weight_decay = map.non_negative<double>("weight_decay", group.weight_decay);
  if (is_adam(type) || is_lion(type)) {
    const auto betas = map.get<std::vector<double>>("betas", {group.beta1, group.beta2});
    if (betas.size() != 2) map.fail("betas", "betas takes two numbers", "for example [0.9, 0.95]");
    for (std::size_t i = 0; i < betas.size(); ++i) {
      if (betas[i] < 0 || betas[i] >= 1)
        map.fail(fmt::format("betas.{}", i), "betas must be in [0, 1)", "for example [0.9, 0.95]");
    }
    group.beta1 = betas[0];
    group.beta2 = betas[1];
  }
  if (is_adam(type)) group.eps = map.non_negative<double>("eps", group.eps);
  if (type == OptimizerType::kSgd) {
    group.momentum = map.non_negative<double>("momentum", group.momentum);
  }
  // Lion's decay takes this part off every weight in every step, whatever the learning rate.
  if (is_lion(type) && group.weight_decay >= 1e-3) {
    log_warning(
        "{}: weights lose {} of their size in every step; Lion's decay is not multiplied "
        "by the learning rate",
        map.where("weight_decay"), group.weight_decay);
  }
  return group;
}

std::string checked_expression(const YamlMap& map, const std::string& key,
                               const std::string& text) {
  try {
    user_regex(text);
  } catch (const Error& error) {
    constexpr std::size_t kShown = 100;
    map.fail(
        key,
        fmt::format("'{}{}' {}", text.substr(0, kShown), text.size() > kShown ? "..." : "",
                    error.what()),
        "write \\ before a bracket or a sign that is meant as it stands; '.*' matches anything");
  }
  return text;
}

void read_groups(const YamlMap& map, OptimizerConfig& config) {
  const std::string frozen = "disable_grad";
  const auto freeze = [&](const std::string& key, const std::string& text) {
    config.disable_grad.push_back({checked_expression(map, key, text), map.path() + "." + key});
  };
  if (map.is_sequence(frozen)) {
    const auto texts = map.get<std::vector<std::string>>(frozen);
    for (std::size_t i = 0; i < texts.size(); ++i)
      freeze(fmt::format("{}.{}", frozen, i), texts[i]);
  } else if (const auto text = map.find<std::string>(frozen)) {
    freeze(frozen, *text);
  }
  for (const YamlMap& group : map.maps("param_groups")) {
    const auto text = group.get<std::string>("param_str_match");
    config.groups.push_back({checked_expression(group, "param_str_match", text),
                             read_group(group, config.type, config.all),
                             group.path() + ".param_str_match"});
    group.finish();
  }
}

}  // namespace

OptimizerConfig OptimizerConfig::from_yaml(const YamlMap& map) {
  OptimizerConfig config;
  config.type = type_from_yaml(map);
  config.all = read_group(map, config.type, defaults_of(config.type));
  if (config.type == OptimizerType::kSgd) {
    config.dampening = map.non_negative<double>("dampening", 0.0);
    config.nesterov = map.get<bool>("nesterov", false);
    if (config.nesterov && (config.all.momentum == 0 || config.dampening != 0)) {
      map.fail("nesterov", "nesterov needs a momentum above 0 and dampening 0");
    }
  }
  if (is_adam(config.type)) map.refuse("amsgrad", map.get<bool>("amsgrad", false));
  if (config.type == OptimizerType::kClipLion || config.type == OptimizerType::kAdaLrLion) {
    const double threshold = config.type == OptimizerType::kClipLion ? 5.0 : 10.0;
    config.outlier_threshold = map.positive<double>("outlier_threshold", threshold);
  }
  if (config.type == OptimizerType::kAdaLrLion) {
    config.timeout = map.non_negative<std::int64_t>("timeout", config.timeout);
    config.lr_penalty = map.positive<double>("lr_penalty", config.lr_penalty);
    config.min_scale = map.non_negative<double>("min_scale", config.min_scale);
  }
  read_groups(map, config);
  map.finish();
  return config;
}

void OptimizerConfig::scale(double lr_scale, double wd_pct) {
  const auto scale_group = [&](GroupConfig& group) {
    group.lr *= lr_scale;
    group.weight_decay = group.lr * wd_pct;
  };
  scale_group(all);
  for (NamedGroup& group : groups) scale_group(group.config);
}

int OptimizerConfig::moments() const {
  const auto has_momentum = [](const GroupConfig& group) { return group.momentum > 0; };
  switch (type) {
    case OptimizerType::kDecoupledAdamW:
    case OptimizerType::kAdamW:
      return 2;
    case OptimizerType::kDecoupledLionW:
    case OptimizerType::kClipLion:
    case OptimizerType::kAdaLrLion:
      return 1;
    case OptimizerType::kSgd:
      return has_momentum(all) || std::any_of(groups.begin(), groups.end(), [&](const auto& group) {
               return has_momentum(group.config);
             });
    case OptimizerType::kNoOp:
      break;
  }
  return 0;
}

std::vector<int> OptimizerConfig::assign_groups(const std::vector<std::string>& names) const {
  std::string key;
  return assign(names, key);
}

std::string OptimizerConfig::blamed_key(const std::vector<std::string>& names) const {
  std::string key;
  try {
    assign(names, key);
  } catch (const Error&) {
    if (!key.empty()) return key;
  }
  return "optimizer";
}

// `key`: of the expression at hand.
std::vector<int> OptimizerConfig::assign(const std::vector<std::string>& names,
                                         std::string& key) const {
  std::vector<int> group_of(names.size(), 0);
  for (std::size_t i = 0; i < frozen.size(); ++i) {
    const std::string& name = frozen[i];
    key = fmt::format("callbacks.layer_freezing.layer_names.{}", i);
    const std::string bare = name.starts_with("model.") ? name.substr(6) : name;
    const auto found = std::find(names.begin(), names.end(), bare);
    if (found == names.end()) {
      throw Error(ErrorKind::kInvalidArgument, "no parameter to freeze is called " + name,
                  names.empty() ? "" : "parameters are called like model." + names.back());
    }
    group_of[static_cast<std::size_t>(found - names.begin())] = -1;
  }
  // disable_grad first, then the groups, each taking from what those before it left.
  const auto take = [&](const std::string& expression, int group) {
    const std::regex compiled = user_regex(expression);  // which may take as long as to match it
    bool any = false, left = false;
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!std::regex_search("model." + names[i], compiled)) continue;
      any = true;
      if (group_of[i] != 0) continue;
      group_of[i] = group;
      left = true;
    }
    if (left || (any && group < 0)) return;
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("'{}' takes no parameter{}", expression,
                            any ? ": all that match belong to an earlier group" : ""),
                names.empty() ? "" : "parameters are called like model." + names.back());
  };
  for (const Expression& expression : disable_grad) {
    key = expression.key;
    take(expression.text, -1);
  }
  for (std::size_t i = 0; i < groups.size(); ++i) {
    key = groups[i].key;
    take(groups[i].param_str_match, static_cast<int>(i) + 1);
  }
  key = !disable_grad.empty() ? "optimizer.disable_grad"
        : !frozen.empty()     ? "callbacks.layer_freezing.layer_names"
                              : "";
  if (std::all_of(group_of.begin(), group_of.end(), [](int group) { return group < 0; })) {
    throw Error(ErrorKind::kInvalidArgument, "nothing is left to train: all parameters are frozen",
                "leave out an expression or a name");
  }
  key.clear();
  return group_of;
}

const char* optimizer_class_name(OptimizerType type) {
  for (const NamedType& candidate : kTypes) {
    if (candidate.type == type) return candidate.class_name;
  }
  return "unknown";
}

}  // namespace dropless::train
