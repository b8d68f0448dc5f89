#include "train/base/signals.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "dropless/error.h"
#include "train/base/fs.h"

namespace dropless::train {
namespace {

// Handlers may touch only lock-free atomics and async-signal-safe calls (kill, write, _exit).
std::atomic<int> stop{0};
std::atomic<bool> save{false};
std::atomic<int> group_to_end{0};
std::atomic<SignalMode> current_mode{SignalMode::kFinishStep};
static_assert(std::atomic<int>::is_always_lock_free);
static_assert(std::atomic<SignalMode>::is_always_lock_free);

const char* signal_text(int signal_number) {
  switch (signal_number) {
    case SIGINT:
      return "interrupted";
    case SIGHUP:
      return "the terminal is gone (SIGHUP)";
    default:
      return "terminated by SIGTERM";
  }
}

[[noreturn]] void exit_at_once(int signal_number) {
  // Before a write that may block, or end us where nobody reads.
  if (const int group = group_to_end; group > 0) ::kill(-group, SIGKILL);
  const bool train = current_mode == SignalMode::kFinishStep;
  for (const char* text :
       {train ? "\nstopped at once; nothing was saved after the last checkpoint" : "error: ",
        train ? "" : signal_text(signal_number), "\n"}) {
    [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, text, std::strlen(text));
  }
  _exit(1);
}

void on_signal(int signal_number) {
  if (signal_number == SIGUSR1) {
    save = true;
    return;
  }
  if (current_mode == SignalMode::kExit) exit_at_once(signal_number);
  int none = 0;
  if (stop.compare_exchange_strong(none, signal_number)) {
    if (signal_number == SIGINT && current_mode == SignalMode::kFinishStep) {
      constexpr char kText[] = "\nstopping after this step; Ctrl-C again stops at once, unsaved\n";
      [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, kText, sizeof(kText) - 1);
    }
    return;
  }
  // Launchers repeat SIGTERM while a checkpoint is being saved; only a person's Ctrl-C is
  // impatience.
  if (signal_number == SIGINT || current_mode == SignalMode::kThrow) {
    exit_at_once(signal_number);
  }
}

}  // namespace

void install_signal_handlers(SignalMode mode) {
  current_mode = mode;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigset_t handled;
  sigemptyset(&handled);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1}) {
    if (number == SIGUSR1 && mode != SignalMode::kFinishStep) continue;
    if (sigaction(number, &action, nullptr) == -1) throw_errno("handle", "signals", errno);
    sigaddset(&handled, number);
  }
  if (const int failed = pthread_sigmask(SIG_UNBLOCK, &handled, nullptr)) {
    throw_errno("unblock", "signals", failed);
  }
}

void end_group_with_us(int group) noexcept { group_to_end = group; }

int stop_signal() noexcept { return stop; }
bool take_save_request() noexcept { return save.exchange(false); }

void check_interrupted() {
  if (current_mode != SignalMode::kThrow || stop == 0) return;
  throw Error(ErrorKind::kInterrupted, signal_text(stop));
}

void wait_readable(int fd) {
  // In pieces, since a signal may be handled by another thread, or just before the wait begins.
  constexpr int kMilliseconds = 50;
  struct pollfd waiting = {fd, POLLIN, 0};
  int ready = 0;
  do {
    check_interrupted();
    ready = ::poll(&waiting, 1, kMilliseconds);
    if (ready == -1 && errno != EINTR) throw_errno("wait for", "input", errno);
  } while (ready <= 0);
}

void reset_signals() noexcept {
  stop = 0;
  save = false;
}

}  // namespace dropless::train
