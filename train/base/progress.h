// One line of progress on standard error.
//
//   terminal: train [=== 25%      ] 1200/4800 ETA 1h02m loss 3.2145 ...
//   piped:    train  1200/4800   25%  ETA 1h02m  loss 3.2145  ...
//
// On a terminal the line is redrawn in place (at most ten times a second) and fitted to its width:
// the label, then the last figures, then the bar make room. Log messages clear it first, so that
// nothing tears. Piped, or with `redraw` off, it is a plain line at the first and last step and
// every `plain_seconds` between. One line at a time in a process.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace dropless::train {

class ProgressLine {
 public:
  struct Options {
    std::string label;
    std::uint64_t total = 0;  // 0: unknown; no % and no ETA
    std::uint64_t start = 0;  // where a resumed run begins: the ETA counts only steps made here
    double plain_seconds = 10;
    bool redraw = true;   // false: plain lines on a terminal too
    bool enabled = true;  // false (ranks but 0, --quiet): everything below does nothing
    int fd = 2;
  };
  explicit ProgressLine(Options options);
  ~ProgressLine();  // as finish()
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // True when update() would print now: lets the caller skip making the figures.
  bool due(std::uint64_t done) const;
  // `figures` such as "loss 3.2145", the most needed first.
  void update(std::uint64_t done, std::vector<std::string> figures);
  // Leaves the last state standing as a line of its own; later calls do nothing.
  void finish();

 private:
  std::string eta() const;
  std::string plain_line() const;
  std::string fitted_line(std::size_t width) const;
  void draw();
  static void clear_active();

  using Clock = std::chrono::steady_clock;
  Options options_;
  bool terminal_ = false;
  bool finished_ = false;
  bool drawn_ = false;  // the line stands on the terminal right now
  bool printed_ = false;
  std::uint64_t done_ = 0;
  std::vector<std::string> figures_;
  Clock::time_point begin_;
  Clock::time_point last_;
};

// "45s", "12m05s", "1h02m", "3d04h".
std::string format_seconds(double seconds);

}  // namespace dropless::train
