// Messages to standard error. Results never go through here: they belong on standard output.
#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace dropless::train {

void log_line(std::string_view prefix,
              std::string_view text);  // "prefix" + text + newline, one write
// While a progress line stands on the terminal, log_line clears it first through this hook.
void set_log_hook(void (*before)());

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line("", fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_line("warning: ", fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace dropless::train
