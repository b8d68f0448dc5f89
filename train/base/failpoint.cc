#include "train/base/failpoint.h"

#include <signal.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <string_view>

namespace dropless::train {
namespace {
std::atomic<long> reached{0};
}  // namespace

int fail_point(const char* operation, const std::string& path) {
  const char* variable = std::getenv("DROPLESS_FAIL_AT");
  if (variable == nullptr || *variable == '\0') return 0;
  std::string_view wanted = variable;
  constexpr std::string_view kFull = ":ENOSPC";
  const bool full = wanted.ends_with(kFull);
  if (full) wanted.remove_suffix(kFull.size());

  const std::string number = std::to_string(++reached);
  const std::string name = std::string(operation) + " " + path.substr(path.rfind('/') + 1);
  if (wanted != number && wanted != name) return 0;
  if (full) return ENOSPC;
  raise(SIGKILL);
  return 0;
}

}  // namespace dropless::train
