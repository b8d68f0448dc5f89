// The `precision` of a run.
#pragma once

#include "train/base/yaml.h"

namespace dropless::train {

enum class Precision { kFp32, kAmpBf16, kAmpFp16, kFp64 };

const char* precision_name(Precision precision);
// Reads `precision`. Throws Error(kInvalidArgument).
Precision precision_from_yaml(const YamlMap& map);

}  // namespace dropless::train
