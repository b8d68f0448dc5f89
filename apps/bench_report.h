// The JSON document of a bench verb: what has been measured is not lost with what fails later.
#pragma once

#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>

#include "train/base/signals.h"

namespace dropless::apps {

// Where `rows` has any. Names may hold bytes that are no UTF-8.
inline void print_report(const nlohmann::ordered_json& report) {
  if (report["rows"].empty()) return;
  std::cout << report.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n"
            << std::flush;
}

// Of a verb that prints one document at its end a signal ends what it is doing, so that the rows up to there are printed; of one
// that prints as it goes, the process.
inline void handle_signals(bool json) {
  train::install_signal_handlers(json ? train::SignalMode::kThrow : train::SignalMode::kExit);
}

// Runs `action`. Where it throws, the rows up to here are printed (if `json`), with the error as "error".
template <class Action>
void with_rows_kept(nlohmann::ordered_json& report, bool json, Action&& action) {
  try {
    action();
  } catch (const std::exception& error) {
    report["error"] = error.what();
    if (json) print_report(report);
    throw;
  }
}

}  // namespace dropless::apps
