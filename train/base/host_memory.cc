#include "train/base/host_memory.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace dropless::train {
namespace {

// The first number of the file; nullopt where there is none ("max" of a control group included).
std::optional<double> number_in(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

}  // namespace

std::optional<double> available_host_bytes() {
  std::ifstream file("/proc/meminfo");
  std::optional<double> bytes;
  std::string key;
  double kib = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    if (!(words >> key >> kib)) continue;
    if (key == "MemAvailable:" || key == "SwapFree:") bytes = bytes.value_or(0) + 1024.0 * kib;
  }
  // A control group's own limit, not what it leaves over: pages of files count as used there, and
  // are given up when asked for.
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    if (const auto limit = number_in(path)) bytes = std::min(bytes.value_or(*limit), *limit);
  }
  return bytes;
}

}  // namespace dropless::train
