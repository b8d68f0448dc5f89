// Standard input line by line.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <string>

#include "train/base/fs.h"
#include "train/base/signals.h"

namespace dropless::apps {

// A wait for more of it ends at a signal.
class StandardInput {
 public:
  // False at the end; a last line may lack its newline.
  bool next_line(std::string& line) {
    std::size_t searched = 0, end;
    while ((end = buffer_.find('\n', begin_ + searched)) == std::string::npos) {
      searched = buffer_.size() - begin_;
      if (!fill()) {
        line = buffer_.substr(begin_);
        begin_ = buffer_.size();
        return !line.empty();
      }
    }
    line = buffer_.substr(begin_, end - begin_);
    begin_ = end + 1;
    return true;
  }

  // All that was not handed out yet.
  std::string rest() {
    while (fill()) {
    }
    std::string out = buffer_.substr(begin_);
    begin_ = buffer_.size();
    return out;
  }

 private:
  bool fill() {
    constexpr std::size_t kBytes = 1 << 16;
    buffer_.erase(0, begin_);
    begin_ = 0;
    train::wait_readable(STDIN_FILENO);
    const std::size_t kept = buffer_.size();
    buffer_.resize(kept + kBytes);
    const ssize_t got = ::read(STDIN_FILENO, buffer_.data() + kept, kBytes);
    if (got == -1) train::throw_errno("read", "standard input", errno);
    buffer_.resize(kept + static_cast<std::size_t>(got));
    return got > 0;
  }

  std::string buffer_;
  std::size_t begin_ = 0;  // of what is not yet handed out
};

}  // namespace dropless::apps
