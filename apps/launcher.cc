// `bin/dropless`: does by itself what needs no libtorch (the verbs `data` and `report`, and to
// refuse a training config that is broken), and starts the command proper, `libexec/dropless`, for
// the rest, in what that needs to find and only a process before it can give.
//
// Loading libtorch takes 0.1-0.3 s and 120 MB in which no handler can stand: SIGINT, SIGTERM,
// SIGHUP and SIGUSR1 are blocked before, stay blocked across exec, and are let through once the
// verb has installed its handlers (train/base/signals.h). And the OpenMP runtime reads its settings
// while it is loaded: its threads that wait spin, by default for milliseconds, so that beside
// another busy program two threads on two cores train ten times slower; a short spin costs nothing
// on an idle machine.
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include <initializer_list>
#include <string_view>

#include "apps/command.h"
#include "apps/train_options.h"
#include "apps/verbs.h"
#include "train/base/log.h"

namespace {

using namespace dropless::apps;

constexpr char kCommand[] = "/libexec/dropless";

// Replaces the two last parts of PREFIX/bin/dropless by the command's place; false where this
// program has no such path.
bool find_command(char (&path)[PATH_MAX]) {
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  if (length <= 0 || static_cast<size_t>(length) >= sizeof path - sizeof kCommand) return false;
  path[length] = '\0';
  for (int part = 0; part < 2; ++part) {
    char* slash = strrchr(path, '/');
    if (slash == nullptr) return false;
    *slash = '\0';
  }
  strcat(path, kCommand);
  return true;
}

void block_signals() {
  sigset_t blocked;
  sigemptyset(&blocked);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1}) sigaddset(&blocked, number);
  sigprocmask(SIG_BLOCK, &blocked, nullptr);
}

int start_command(char** argv) {
  if (getenv("OMP_WAIT_POLICY") == nullptr) setenv("GOMP_SPINCOUNT", "10000", /*overwrite=*/0);
  char path[PATH_MAX];
  if (!find_command(path)) {
    fputs("error: /proc/self/exe does not say where dropless lies\nhint: mount /proc\n", stderr);
    return 1;
  }
  execv(path, argv);
  fprintf(stderr,
          "error: cannot start %s: %s\nhint: it belongs to bin/dropless; build or install both\n",
          path, strerror(errno));
  return 1;
}

// Warnings are left to the command, which reads the config again; what it refuses is refused here.
void check_train_config(const TrainOptions& options) {
  signal(SIGPIPE, SIG_IGN);  // the exit code counts, whoever reads the message
  dropless::train::HeldLog log;
  try {
    read_train_config(options);
  } catch (...) {
    log.write();
    throw;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view verb = argc > 1 ? argv[1] : "";
  const bool plain = verb == "data" || verb == "report";
  if (!plain) block_signals();
  if (!plain && verb != "train") return start_command(argv);
  CLI::App app{"", "dropless"};
  set_up(app);
  bool checked = false;
  add_train_verb(app, [&](const TrainOptions& options) {
    check_train_config(options);
    checked = true;
  });
  add_data_verb(app);
  add_report_verb(app);
  const int code = run_command(app, argc, argv);
  return checked ? start_command(argv) : code;
}
