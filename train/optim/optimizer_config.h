// The `optimizer` block: LLM Foundry's optimizers with their keys and defaults, torch's AdamW and
// SGD beside them, parameter groups and parameters that are not trained.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/base/yaml.h"

namespace dropless::train {

enum class OptimizerType {
  kDecoupledAdamW,
  kAdamW,
  kDecoupledLionW,
  kClipLion,
  kAdaLrLion,
  kSgd,
  kNoOp,
};

// What may differ from one group of parameters to another.
struct GroupConfig {
  double lr = 0;
  double beta1 = 0, beta2 = 0;  // Adam's and Lion's
  double eps = 0;               // Adam's
  double weight_decay = 0;
  double momentum = 0;  // SGD's
};

struct OptimizerConfig {
  // A group of parameters by a regular expression that is searched for in "model.NAME", the name
  // that LLM Foundry's models have, NAME being the one in checkpoints.
  struct NamedGroup {
    std::string param_str_match;
    GroupConfig config;
    std::string key = {};  // of the expression, in the whole config
  };

  OptimizerType type = OptimizerType::kDecoupledAdamW;
  GroupConfig all;                 // group 0: of what no other group takes
  std::vector<NamedGroup> groups;  // the first that matches takes a parameter
  // A regular expression, and its key in the whole config.
  struct Expression {
    std::string text, key;
  };
  std::vector<Expression> disable_grad;  // what matches is not trained
  std::vector<std::string> frozen;       // names as in checkpoints, or as LLM Foundry has them

  double dampening = 0;  // SGD's
  bool nesterov = false;
  double outlier_threshold = 0;  // clip_lion, adalr_lion
  std::int64_t timeout = 100;    // adalr_lion: steps
  double lr_penalty = 0.707, min_scale = 1e-4;

  // Throws Error(kInvalidArgument).
  static OptimizerConfig from_yaml(const YamlMap& map);

  // Learning rates times lr_scale, and of each group weight_decay = wd_pct times its new rate.
  void scale(double lr_scale, double wd_pct);

  // How many tensors of a parameter's size the optimizer keeps.
  int moments() const;
  // For each name the group it belongs to, -1 where disable_grad or frozen takes it. Throws
  // Error(kInvalidArgument) for an expression that takes none, and where nothing is left to train.
  std::vector<int> assign_groups(const std::vector<std::string>& names) const;
  // The key, in the whole config, of the expression for which assign_groups() throws; "optimizer"
  // where it is none's fault.
  std::string blamed_key(const std::vector<std::string>& names) const;

 private:
  std::vector<int> assign(const std::vector<std::string>& names, std::string& key) const;
};

// As in metric names: "DecoupledAdamW".
const char* optimizer_class_name(OptimizerType type);

}  // namespace dropless::train
