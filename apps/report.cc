// `dropless report RUN... [--out FILE]`: one page without network access that shows and compares runs.
#include <CLI/CLI.hpp>

#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "apps/verbs.h"
#include "train/base/fs.h"
#include "train/base/signals.h"
#include "train/report/report.h"

namespace dropless::apps {

using namespace train;

namespace {

void run_report(const std::vector<std::string>& runs, std::string out) {
  install_signal_handlers(SignalMode::kExit);
  if (out.empty()) out = runs.size() == 1 ? join_path(runs[0], "report.html") : "report.html";
  write_report(out, report_of_folders(runs));
  std::cout << out << "\n";
}

}  // namespace

void add_report_verb(CLI::App& app) {
  struct Options {
    std::vector<std::string> runs;
    std::string out;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("report", "Write a page that shows runs, or compares them");
  verb->add_option("RUN", options->runs, "run folders")->required();
  verb->add_option("--out", options->out, "the page; RUN/report.html, of several runs report.html");
  verb->footer("Example: dropless report runs/a runs/b --out a-b.html");
  verb->callback([options] { run_report(options->runs, options->out); });
}

}  // namespace dropless::apps
