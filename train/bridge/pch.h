// Precompiled for the rooms above (12 s of parsing a file otherwise).
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "train/bridge/torch.h"
