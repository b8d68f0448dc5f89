// Messages to standard error. Results never go through here: they belong on standard output.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

namespace dropless::train {

void log_line(std::string_view prefix,
              std::string_view text);  // "prefix" + text + newline, one write
// Lines are kept back for as long as one of these lives, in one thread; dropped with it unless written.
class HeldLog {
 public:
  HeldLog();
  ~HeldLog();
  HeldLog(const HeldLog&) = delete;
  HeldLog& operator=(const HeldLog&) = delete;
  // Writes them out, and all that follow as they come.
  void write();

 private:
  std::string lines_;
};
// While a progress line stands on the terminal, log_line clears it first through this hook.
void set_log_hook(void (*before)());

// With \n for its line breaks: what names and words out of files hold is no line of its own.
std::string in_one_line(std::string_view text);

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line("", fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_line("warning: ", in_one_line(fmt::format(format, std::forward<Args>(args)...)));
}

}  // namespace dropless::train
