// `dropless train CONFIG.yaml [key.path=value ...]`
#include <CLI/CLI.hpp>

#include <csignal>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "apps/verbs.h"
#include "dropless/error.h"
#include "dropless/version.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/report/serve.h"
#include "train/run/config.h"
#include "train/run/trainer.h"

namespace dropless::apps {

using namespace train;

namespace {

struct TrainOptions {
  std::string config;
  std::vector<std::string> overrides;
  std::optional<int> serve;  // a port
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
  TrainConfig config =
      TrainConfig::from_yaml(YamlDocument::load(options.config, options.overrides));
  std::unique_ptr<ReportServer> server;
  if (options.serve) {
    server = std::make_unique<ReportServer>(config.save_folder, config.yaml, *options.serve);
    log_info("the report, as training goes: http://127.0.0.1:{}/", server->port());
  }
  Trainer trainer(std::move(config));
  trainer.run();
}

}  // namespace

void add_train_verb(CLI::App& app) {
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
  verb->callback([options] { run_train(*options); });
}

}  // namespace dropless::apps
