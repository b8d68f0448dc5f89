#include "train/base/progress.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>

#include "train/base/log.h"
#include "train/base/utf8.h"

namespace dropless::train {
namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr std::size_t kLeastBar = 8;  // "[ 100% ]"
constexpr std::size_t kMostBar = 32;

// The line that log messages must clear. The mutex also keeps its drawing apart from them.
std::mutex active_mutex;
ProgressLine* active = nullptr;

int terminal_width(int fd) {
  winsize size = {};
  if (::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

void write_text(int fd, const std::string& text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const ssize_t wrote = ::write(fd, text.data() + at, text.size() - at);
    if (wrote <= 0) return;  // a closed terminal must not stop the run
    at += static_cast<std::size_t>(wrote);
  }
}

std::uint64_t percent(std::uint64_t done, std::uint64_t total) {
  return std::min<std::uint64_t>(100, 100 * done / total);
}

// "[=== 25%      ]", `width` columns in all.
std::string bar(std::uint64_t done, std::uint64_t total, std::size_t width) {
  const std::size_t inner = width - 2;
  std::string line(inner, ' ');
  std::fill_n(line.begin(), inner * percent(done, total) / 100, '=');
  const std::string number = fmt::format(" {}% ", percent(done, total));
  return "[" + line.replace((inner - number.size()) / 2, number.size(), number) + "]";
}

}  // namespace

std::string format_seconds(double seconds) {
  if (!(seconds >= 0) || seconds > 1e9) return "?";
  const auto total = std::llround(seconds);
  if (total < 60) return fmt::format("{}s", total);
  if (total < 3600) return fmt::format("{}m{:02}s", total / 60, total % 60);
  if (total < 86400) return fmt::format("{}h{:02}m", total / 3600, total / 60 % 60);
  return fmt::format("{}d{:02}h", total / 86400, total / 3600 % 24);
}

ProgressLine::ProgressLine(Options options)
    : options_(std::move(options)), done_(options_.start), begin_(Clock::now()), last_(begin_) {
  terminal_ = options_.enabled && options_.redraw && ::isatty(options_.fd) == 1;
  finished_ = !options_.enabled;
  if (!terminal_) return;
  const std::lock_guard lock(active_mutex);
  active = this;
  set_log_hook(&ProgressLine::clear_active);
}

ProgressLine::~ProgressLine() { finish(); }

bool ProgressLine::due(std::uint64_t done) const {
  if (finished_) return false;
  if (!printed_ || (options_.total != 0 && done >= options_.total)) return true;
  const std::chrono::duration<double> since = Clock::now() - last_;
  return since.count() >= (terminal_ ? kRedrawSeconds : options_.plain_seconds);
}

void ProgressLine::update(std::uint64_t done, std::vector<std::string> figures) {
  if (finished_) return;
  const bool now = due(done);
  const std::lock_guard lock(active_mutex);
  done_ = done;
  figures_ = std::move(figures);
  if (!now) return;
  last_ = Clock::now();
  printed_ = true;
  draw();
}

void ProgressLine::draw() {
  if (!terminal_) {
    write_text(options_.fd, plain_line() + "\n");
    return;
  }
  // One column stays free: a full last column makes some terminals wrap. \x1b[K clears what was
  // longer.
  const auto width = static_cast<std::size_t>(std::max(terminal_width(options_.fd) - 1, 1));
  write_text(options_.fd, "\r" + fitted_line(width) + "\x1b[K");
  drawn_ = true;
}

std::string ProgressLine::eta() const {
  const double elapsed = std::chrono::duration<double>(Clock::now() - begin_).count();
  if (options_.total == 0) return format_seconds(elapsed);
  const std::uint64_t made = done_ > options_.start ? done_ - options_.start : 0;
  const std::uint64_t left = done_ < options_.total ? options_.total - done_ : 0;
  const double eta =
      made == 0 ? -1 : elapsed / static_cast<double>(made) * static_cast<double>(left);
  return "ETA " + format_seconds(eta);
}

std::string ProgressLine::plain_line() const {
  std::string line = options_.label + "  ";
  if (options_.total == 0) {
    line += fmt::format("{}  {}", done_, eta());
  } else {
    const std::size_t digits = std::to_string(options_.total).size();
    line += fmt::format("{:>{}}/{}  {:>3}%  {}", done_, digits, options_.total,
                        percent(done_, options_.total), eta());
  }
  for (const std::string& figure : figures_) line += "  " + figure;
  return line;
}

std::string ProgressLine::fitted_line(std::size_t width) const {
  const bool counts_up = options_.total == 0;
  std::vector<std::string> parts{
      counts_up ? std::to_string(done_) : fmt::format("{}/{}", done_, options_.total), eta()};
  const std::size_t needed = parts.size();
  parts.insert(parts.end(), figures_.begin(), figures_.end());
  const auto text_width = [&] {
    std::size_t columns = parts.size() - 1;
    for (const std::string& part : parts) columns += part.size();
    return columns;
  };
  const std::size_t least_bar = counts_up ? 0 : kLeastBar + 1;  // and its space
  while (parts.size() > needed && text_width() + least_bar > width) parts.pop_back();
  std::string line = fmt::format("{}", fmt::join(parts, " "));
  if (!counts_up && line.size() + least_bar <= width) {
    const std::size_t bar_width = std::min(width - line.size() - 1, kMostBar);
    line = bar(done_, options_.total, bar_width) + " " + line;
  }
  if (options_.label.size() + 1 + line.size() <= width) line = options_.label + " " + line;
  return cut_to_width(line, width);
}

void ProgressLine::finish() {
  if (finished_) return;
  finished_ = true;
  if (!terminal_) return;
  const std::lock_guard lock(active_mutex);
  if (active == this) {
    active = nullptr;
    set_log_hook(nullptr);
  }
  if (!printed_) return;
  draw();
  write_text(options_.fd, "\n");
}

void ProgressLine::clear_active() {
  const std::lock_guard lock(active_mutex);
  if (active == nullptr || !active->drawn_) return;
  write_text(active->options_.fd, "\r\x1b[K");
  active->drawn_ = false;
}

}  // namespace dropless::train
