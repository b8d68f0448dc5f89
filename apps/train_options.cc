#include "apps/train_options.h"

#include <CLI/CLI.hpp>

#include <cstdlib>
#include <memory>
#include <string_view>

#include "dropless/error.h"
#include "dropless/version.h"
#include "train/base/log.h"

namespace dropless::apps {

using namespace train;

TrainConfig read_train_config(const TrainOptions& options) {
  log_info("dropless {}: train {}", DROPLESS_VERSION, in_one_line(options.config));
  if (const char* world = std::getenv("WORLD_SIZE"); world && std::string_view(world) != "1") {
    throw Error(ErrorKind::kInvalidArgument,
                std::string("WORLD_SIZE is ") + world + ", but this version trains in one process",
                "start it without a launcher, or unset WORLD_SIZE");
  }
  return TrainConfig::from_yaml(YamlDocument::load(options.config, options.overrides));
}

void add_train_verb(CLI::App& app, const std::function<void(const TrainOptions&)>& run) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* verb = app.add_subcommand("train", "Train a model from a YAML config");
  verb->add_option("config", options->config, "LLM-Foundry-style YAML file")->required();
  verb->add_option("overrides", options->overrides, "key.path=value, replaces what the file says");
  constexpr int kLastPort = 65535;
  verb->add_option("--serve", options->serve,
                   "show the report on this port of 127.0.0.1; 0: any that is free")
      ->type_name("PORT")
      ->check(CLI::Range(0, kLastPort));
  verb->footer(
      "Ctrl-C or SIGTERM saves a checkpoint and stops; autoresume=true goes on from it.\n"
      "Example: dropless train configs/demo.yaml max_duration=100ba optimizer.lr=1e-3");
  verb->callback([options, run] { run(*options); });
}

}  // namespace dropless::apps
