#include "train/bridge/device_name.h"

#include "dropless/error.h"

namespace dropless::train {

std::optional<int> parse_device_name(const std::string& name) {
  if (name == "cpu") return std::nullopt;
  if (name == "auto" || name == "cuda" || name == "gpu") return 0;
  const std::string digits = name.starts_with("cuda:") ? name.substr(5) : "";
  if (digits.empty() || digits.size() > 3 ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    throw Error(ErrorKind::kInvalidArgument, "unknown device " + name,
                "one of: auto, cpu, cuda, cuda:N");
  }
  return std::stoi(digits);
}

}  // namespace dropless::train
