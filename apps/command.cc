#include "apps/command.h"

#include <malloc.h>

#include <CLI/CLI.hpp>

#include <csignal>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "apps/output.h"
#include "dropless/error.h"
#include "dropless/version.h"
#include "train/base/log.h"
#include "train/base/suggest.h"

namespace dropless::apps {
namespace {

using train::log_line;

int exit_code(ErrorKind kind) {
  return kind == ErrorKind::kInvalidArgument || kind == ErrorKind::kUnsupported ? 2 : 1;
}

int report(const Error& error) {
  std::string text = "error: " + train::in_one_line(error.what());
  if (error.file()[0] != '\0') {
    text += " (" + std::string(error.file()) + ":" + std::to_string(error.line()) + ")";
  }
  if (!error.hint().empty()) text += "\nhint: " + train::in_one_line(error.hint());
  log_line("", text);
  return exit_code(error.kind());
}

// Training frees and takes the same tensors in every step: handed back to the kernel in between,
// the pages fault in anew each time (9 % of a small model's step).
void keep_freed_memory() {
  constexpr int kLargestAllowed = 32 << 20;
  ::mallopt(M_MMAP_THRESHOLD, kLargestAllowed);
  ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

// A verb that is none, said before CLI11 does, which names neither the word nor the nearest verb.
void check_verbs(const CLI::App& app, const std::string& path, int argc, char** argv) {
  // Groups of options are subcommands too, without a name.
  const auto verbs =
      app.get_subcommands([](const CLI::App* verb) { return !verb->get_name().empty(); });
  if (verbs.empty() || argc < 2) return;
  const std::string word = argv[1];
  if (word.starts_with("-")) {
    if (word == "-h" || word == "--help" || word == "--version") return;
    throw Error(ErrorKind::kInvalidArgument, path + " has no option " + word,
                "options follow a verb; " + path + " --help lists the verbs");
  }
  std::vector<std::string> names;
  for (const CLI::App* verb : verbs) {
    if (verb->get_name() == word) return check_verbs(*verb, path + " " + word, argc - 1, argv + 1);
    names.push_back(verb->get_name());
  }
  const std::string nearest = train::nearest_word(word, names);
  std::string hint = "did you mean '" + path + " " + nearest + "'?";
  if (nearest.empty()) {
    hint = "its verbs:";
    for (const std::string& name : names) hint += " " + name;
  }
  throw Error(ErrorKind::kInvalidArgument, path + " has no verb '" + word + "'", hint);
}

// What CLI11 asks to leave with: help (0), a complaint (2), or the code of a verb that has reported
// by itself.
int run(CLI::App& app, int argc, char** argv) {
  try {
    check_verbs(app, "dropless", argc, argv);
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    // CLI11 prints help on standard output, complaints on standard error.
    return app.exit(error) == 0 ? 0 : 2;
  }
  return 0;
}

}  // namespace

int report_exception(std::string (*describe)()) {
  try {
    throw;
  } catch (const Error& error) {
    return report(error);
  } catch (const std::bad_alloc&) {
    log_line("", "error: out of memory");
  } catch (const std::exception& error) {
    const std::string known = describe != nullptr ? describe() : "";
    log_line("", "error: " + (known.empty()
                                  ? std::string(error.what()) + "\nhint: this is a bug in dropless"
                                  : known));
  }
  return 1;
}

void set_up(CLI::App& app) {
  app.set_version_flag("--version", DROPLESS_VERSION);
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return std::string("error: ") + error.what() + "\nhint: --help shows what it takes\n";
  });
  app.footer("Example: dropless train configs/demo.yaml max_duration=100ba");
}

int run_command(CLI::App& app, int argc, char** argv, std::string (*describe)()) {
  // A file-size limit is then an error of the write, like a full disk, and not the end of the process.
  std::signal(SIGXFSZ, SIG_IGN);
  keep_freed_memory();
  try {
    const int code = run(app, argc, argv);
    flush_output();
    return code;
  } catch (...) {
    return report_exception(describe);
  }
}

}  // namespace dropless::apps
