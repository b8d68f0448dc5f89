// What a plain YAML scalar means: YAML 1.2's core schema, plus `1_000` between digits.
//
// Integers: [-+]?[0-9]+ (no leading zero: 010 is 8 for some readers and 10 for others), 0x.., 0o...
// Floats: 1.5, .5, 1., 1e-3, 6.0e-4, 3e4, .inf, -.inf, .nan. Bools: true, True, TRUE and the same
// of false; YAML 1.1's yes, no, on, off are strings. Null: empty, ~, null, Null, NULL.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace dropless::train {

bool is_null_text(std::string_view text);
std::optional<bool> parse_bool_text(std::string_view text);
std::optional<std::int64_t> parse_int_text(std::string_view text);  // nullopt when out of range too
std::optional<double> parse_float_text(std::string_view text);      // takes integers as well
bool is_yaml11_bool(std::string_view text);                         // yes, no, on, off, y, n

}  // namespace dropless::train
