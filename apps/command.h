// What every program of the command does around its verbs: they are parsed and run, and an error
// becomes one message and an exit code (0 done; 2 arguments, config or paths; 1 damage, full disk,
// non-finite loss, interruption).
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace dropless::apps {

// Sets `app` up but for its verbs.
void set_up(CLI::App& app);
// Runs the verb that the arguments name; returns the exit code. `describe` gives the message for an
// exception that is none of the library's and is being handled, empty where it knows none either.
int run_command(CLI::App& app, int argc, char** argv, std::string (*describe)() = nullptr);
// The exit code for the exception that is being handled, which is reported.
int report_exception(std::string (*describe)() = nullptr);

}  // namespace dropless::apps
