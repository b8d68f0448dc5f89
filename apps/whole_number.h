// A check for options that take whole numbers, with messages that say the range in short numbers.
#pragma once

#include <CLI/CLI.hpp>

#include <charconv>
#include <limits>
#include <string>

namespace dropless::apps {

// `least` to the largest that Int holds, or to `most`, in plain decimal digits. CLI11 puts the
// option's name before the message.
template <class Int>
CLI::Validator whole_number(Int least, Int most = std::numeric_limits<Int>::max()) {
  return CLI::Validator(
      [least, most](std::string& text) -> std::string {
        Int value{};
        const char* end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data(), end, value);
        const bool whole = stop == end && error != std::errc::invalid_argument;
        if (whole && error == std::errc() && value >= least && value <= most) return {};
        return "'" + text + "' is not a whole number from " + std::to_string(least) + " to " +
               std::to_string(most);
      },
      "");
}

}  // namespace dropless::apps
