// JSON read strictly: duplicate keys, trailing bytes, NUL bytes, a byte-order mark and more than
// 100 levels are errors (nlohmann's reader alone keeps the last of two equal keys and stops at a
// NUL). Writing needs no help: dump() prints numbers that read back exactly and non-finite ones as
// null.
#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <string_view>

#include "dropless/error.h"

namespace dropless::train {

// `name` (a path) starts each message; `kind` is the kind of the error thrown.
nlohmann::json parse_json(std::string_view text, const std::string& name,
                          ErrorKind kind = ErrorKind::kInvalidArgument);

}  // namespace dropless::train
