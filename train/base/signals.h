// SIGINT, SIGTERM, SIGHUP and SIGUSR1, turned into flags that the loops read.
//
// train (kFinishStep): the first SIGINT, SIGTERM or SIGHUP asks the loop to save and stop; a SIGINT after
// that exits 1 at once; SIGUSR1 asks for a save and goes on. Verbs that write files (kThrow): the
// first makes the next check_interrupted() throw Error(kInterrupted), so that destructors remove
// unfinished output; a second exits 1 at once. Verbs that only print (kExit): the first exits 1.
#pragma once

namespace dropless::train {

enum class SignalMode { kFinishStep, kThrow, kExit };

// Also unblocks the signals it handles: the launcher (apps/launcher.cc) blocks them while the
// program is being loaded.
void install_signal_handlers(SignalMode mode);
// Where a signal makes us exit at once, this process group is killed before (0: none), so that what we started does not
// outlive us. Of other ends, SIGQUIT and SIGKILL among them, it has to learn by itself.
void end_group_with_us(int group) noexcept;
// The signal that asked to stop (SIGINT, SIGTERM or SIGHUP), 0 as long as none did.
int stop_signal() noexcept;
// True once for each batch of SIGUSR1 since the last call.
bool take_save_request() noexcept;
// In kThrow mode, throws Error(kInterrupted) once a signal came; otherwise does nothing.
void check_interrupted();
// Waits until `fd` has bytes, its end or an error to read, and throws like check_interrupted() when
// a signal comes first: a read that blocks would go on waiting.
void wait_readable(int fd);
// Forgets signals that came (a test, or a second run in one process).
void reset_signals() noexcept;

}  // namespace dropless::train
