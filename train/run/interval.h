// How often something is done in training.
#pragma once

#include <optional>

#include "train/base/time.h"
#include "train/base/yaml.h"

namespace dropless::train {

// A count of 0 or less: never.
using Interval = Time;

// As YamlMap::time(). Throws Error(kInvalidArgument) at seconds, too.
Interval interval_from_yaml(const YamlMap& map, const char* key,
                            const std::optional<Interval>& fallback = std::nullopt);

}  // namespace dropless::train
