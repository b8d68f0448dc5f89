// UTF-8 checks (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace dropless::train {

// Position of the first byte that is not part of valid UTF-8; npos when all is.
std::size_t find_invalid_utf8(std::string_view text);

// The longest prefix of valid UTF-8 that has at most `width` code points.
std::string cut_to_width(std::string_view text, std::size_t width);

}  // namespace dropless::train
