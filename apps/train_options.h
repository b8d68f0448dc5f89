// The arguments of `dropless train`, and its config: without libtorch, so that bin/dropless can
// refuse a broken one before it is loaded.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "train/run/config.h"

namespace CLI {
class App;
}

namespace dropless::apps {

struct TrainOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::optional<int> serve;  // a port
};

void add_train_verb(CLI::App& app, const std::function<void(const TrainOptions&)>& run);

// Reads the config, with a line on standard error that says which. Throws Error(kInvalidArgument).
train::TrainConfig read_train_config(const TrainOptions& options);

}  // namespace dropless::apps
