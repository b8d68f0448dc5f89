// How much memory this process could get.
#pragma once

#include <optional>

namespace dropless::train {

// Free memory and swap within the control group's limit, in bytes; nullopt where the system does not say.
std::optional<double> available_host_bytes();

}  // namespace dropless::train
