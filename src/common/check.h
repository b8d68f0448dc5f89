// Argument and invariant checks. A failed check throws dropless::Error; nothing here ends the
// process.
//
//   DROPLESS_CHECK(k <= e, concat("top_k is ", k, " but there are ", e, " experts"), "hint");
//
// The message is evaluated only on failure. What the reader sees ends with the failed expression
// and its place in the source; the hint travels separately (Error::hint).
#pragma once

#include <sstream>
#include <string>

#include "dropless/error.h"
#include "dropless/view.h"

namespace dropless {

// "a", 1, 2.5 -> "a12.5"
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// "[4, 8] float32", or "absent".
std::string describe(const ConstTensorView& view);

[[noreturn]] void check_failed(ErrorKind kind, const char* expression, const char* file, int line,
                               const std::string& message, const std::string& hint = {});

}  // namespace dropless

#define DROPLESS_CHECK_KIND(kind, condition, ...)                                  \
  do {                                                                             \
    if (!(condition)) [[unlikely]] {                                               \
      ::dropless::check_failed(kind, #condition, __FILE__, __LINE__, __VA_ARGS__); \
    }                                                                              \
  } while (false)

// The caller's fault: wrong shapes, types or options.
#define DROPLESS_CHECK(condition, ...) \
  DROPLESS_CHECK_KIND(::dropless::ErrorKind::kInvalidArgument, condition, __VA_ARGS__)

// Our fault: a broken invariant, checked in debug builds only.
#ifdef NDEBUG
#define DROPLESS_DCHECK(condition) \
  do {                             \
    (void)sizeof(condition);       \
  } while (false)
#else
#define DROPLESS_DCHECK(condition) \
  DROPLESS_CHECK_KIND(::dropless::ErrorKind::kInternal, condition, "broken invariant")
#endif
