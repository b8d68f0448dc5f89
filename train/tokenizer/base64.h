// Base64 (RFC 4648, with its padding), as token files hold it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace dropless::train {

std::optional<std::string> decode_base64(std::string_view text);

}  // namespace dropless::train
