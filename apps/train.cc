// `dropless train CONFIG.yaml [key.path=value ...]`
#include "apps/train.h"

#include <csignal>
#include <memory>
#include <utility>

#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/report/serve.h"
#include "train/run/trainer.h"

namespace dropless::apps {

using namespace train;

void run_train(const TrainOptions& options) {
  // Whoever reads the progress may go away; the run goes on.
  std::signal(SIGPIPE, SIG_IGN);
  install_signal_handlers(SignalMode::kFinishStep);
  TrainConfig config = read_train_config(options);
  std::unique_ptr<ReportServer> server;
  if (options.serve) {
    server = std::make_unique<ReportServer>(config.save_folder, config.yaml, *options.serve);
    log_info("the report, as training goes: http://127.0.0.1:{}/", server->port());
  }
  Trainer trainer(std::move(config));
  trainer.run();
}

}  // namespace dropless::apps
