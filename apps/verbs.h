// The verbs of the command: each function adds one subcommand whose callback runs it.
//
// A callback throws dropless::Error; main turns it into a message and an exit code. A callback that
// has reported damage by itself (`data verify`) throws CLI::RuntimeError(1).
#pragma once

namespace CLI {
class App;
}

namespace dropless::apps {

void add_bench_verb(CLI::App& app);    // bench moe
void add_bench_data(CLI::App& bench);  // bench data
void add_convert_verb(CLI::App& app);
void add_data_verb(CLI::App& app);  // data text | json | cat | info | write | verify | ...
void add_eval_verb(CLI::App& app);
void add_generate_verb(CLI::App& app);
void add_info_verb(CLI::App& app);
void add_report_verb(CLI::App& app);
void add_version_verb(CLI::App& app);

}  // namespace dropless::apps
