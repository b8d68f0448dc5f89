// The one exception type of dropless: what went wrong, where, and how to mend it.
//
// The library throws it on bad arguments before it touches any output; the `dropless` command
// prints message and hint and turns the kind into its exit code.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace dropless {

enum class ErrorKind {
  kInvalidArgument,  // the caller's shapes, types or options are wrong; a path is absent; a format
                     // is unknown
  kUnsupported,      // valid, but there is no kernel for this device, type or size
  kDamaged,          // data that an index or manifest names is missing, truncated or altered
  kResource,         // out of memory, disk full, an operating-system call failed
  kNonFinite,        // a loss or gradient became infinite or not a number
  kInterrupted,      // stopped by a signal before the work was done
  kInternal,         // a broken invariant: a bug in dropless
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message, std::string hint = {}, const char* file = "",
        int line = 0)
      : std::runtime_error(message),
        kind_(kind),
        hint_(std::move(hint)),
        file_(file),
        line_(line) {}

  ErrorKind kind() const noexcept { return kind_; }
  // What the reader can do about it; empty where nothing useful can be said.
  const std::string& hint() const noexcept { return hint_; }
  // Where in the source the check stands; empty for errors about the user's own files.
  const char* file() const noexcept { return file_; }
  int line() const noexcept { return line_; }

 private:
  ErrorKind kind_;
  std::string hint_;
  const char* file_;
  int line_;
};

}  // namespace dropless
