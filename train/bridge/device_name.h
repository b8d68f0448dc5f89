// The names of devices, for those who read configs and stand without libtorch.
#pragma once

#include <optional>
#include <string>

namespace dropless::train {

// "cpu", "cuda" or "gpu", "cuda:N", or "auto" (a GPU where there is one): the index of the GPU that it
// asks for, nullopt for the CPU. Throws Error(kInvalidArgument).
std::optional<int> parse_device_name(const std::string& name);

}  // namespace dropless::train
