#include "train/base/log.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <string>
#include <utility>

#include "train/base/utf8.h"

namespace dropless::train {
namespace {
std::atomic<void (*)()> hook{nullptr};
std::string* held = nullptr;

// One write, so that lines of several threads or ranks do not mix. A closed standard error is no
// reason to stop a training run: what cannot be written is dropped.
void write_out(std::string_view text) {
  while (!text.empty()) {
    const ssize_t wrote = ::write(STDERR_FILENO, text.data(), text.size());
    if (wrote <= 0) return;
    text.remove_prefix(static_cast<std::size_t>(wrote));
  }
}

}  // namespace

std::string in_one_line(std::string_view text) {
  // Besides \n what Unicode has for line breaks, and what turns the direction of text.
  constexpr std::pair<std::string_view, std::string_view> kEscapes[] = {
      {"\n", "\\n"},         {"\u0085", "\\u0085"}, {"\u2028", "\\u2028"}, {"\u2029", "\\u2029"},
      {"\u202a", "\\u202a"}, {"\u202b", "\\u202b"}, {"\u202c", "\\u202c"}, {"\u202d", "\\u202d"},
      {"\u202e", "\\u202e"}, {"\u2066", "\\u2066"}, {"\u2067", "\\u2067"}, {"\u2068", "\\u2068"},
      {"\u2069", "\\u2069"}};
  std::string line;
  for (std::size_t i = 0; i < text.size();) {
    const auto* found =
        std::find_if(std::begin(kEscapes), std::end(kEscapes),
                     [&](const auto& escape) { return text.substr(i).starts_with(escape.first); });
    if (found != std::end(kEscapes)) {
      line += found->second;
      i += found->first.size();
    } else {
      line += text[i++];
    }
  }
  return line;
}

HeldLog::HeldLog() { held = &lines_; }

HeldLog::~HeldLog() { held = nullptr; }

void HeldLog::write() {
  held = nullptr;
  write_out(lines_);
  lines_.clear();
}

void set_log_hook(void (*before)()) { hook = before; }

void log_line(std::string_view prefix, std::string_view text) {
  if (void (*before)() = hook.load()) before();
  std::string line;
  line.reserve(prefix.size() + text.size() + 1);
  line.append(prefix);
  // Names and words out of files may hold anything: a terminal must not obey them, and what reads a
  // log must be able to decode it.
  std::size_t invalid = find_invalid_utf8(text);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const auto byte = static_cast<unsigned char>(c);
    const bool control = (byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f;
    if (control || i == invalid) {
      line += fmt::format("\\x{:02x}", byte);
    } else {
      line += c;
    }
    if (i == invalid) {
      const std::size_t next = find_invalid_utf8(text.substr(i + 1));
      invalid = next == std::string_view::npos ? next : i + 1 + next;
    }
  }
  line += '\n';
  if (held != nullptr) {
    held->append(line);
  } else {
    write_out(line);
  }
}

}  // namespace dropless::train
