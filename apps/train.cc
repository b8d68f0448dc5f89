// `dropless train CONFIG.yaml [key.path=value ...]`
#include <CLI/CLI.hpp>

#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "apps/verbs.h"
#include "dropless/error.h"
#include "dropless/version.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/run/config.h"
#include "train/run/trainer.h"

namespace dropless::apps {

using namespace train;

namespace {

struct TrainOptions {
  std::string config;
  std::vector<std::string> overrides;
};

void run_train(const TrainOptions& options) {
  // Whoever reads the progress may go away; the run goes on.
  std::signal(SIGPIPE, SIG_IGN);
  log_info("dropless {}: train {}", DROPLESS_VERSION, options.config);
  install_signal_handlers(SignalMode::kFinishStep);
  if (const char* world = std::getenv("WORLD_SIZE"); world && std::string_view(world) != "1") {
    throw Error(ErrorKind::kInvalidArgument,
                std::string("WORLD_SIZE is ") + world + ", but this version trains in one process",
                "start it without a launcher, or unset WORLD_SIZE");
  }
  const YamlDocument document = YamlDocument::load(options.config, options.overrides);
  Trainer trainer(TrainConfig::from_yaml(document), document.dump());
  trainer.run();
}

}  // namespace

void add_train_verb(CLI::App& app) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* verb = app.add_subcommand("train", "Train a model from a YAML config");
  verb->add_option("config", options->config, "LLM-Foundry-style YAML file")->required();
  verb->add_option("overrides", options->overrides, "key.path=value, replaces what the file says");
  verb->footer(
      "Ctrl-C or SIGTERM saves a checkpoint and stops; autoresume=true goes on from it.\n"
      "Example: dropless train configs/demo.yaml max_duration=100ba optimizer.lr=1e-3");
  verb->callback([options] { run_train(*options); });
}

}  // namespace dropless::apps
