// JSON as text, for what a parsed tree cannot keep: integers of any size, NaN and Infinity
// (Python's json writes and reads them), key order, and the exact text of a member.
//
// All readers here are strict (RFC 8259 plus those three words, at most 100 levels) and throw
// Error(kInvalidArgument) naming the position.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dropless::train {

struct JsonMember {
  std::string key;
  std::string_view value;  // its text, a view into the input
};

// The members of one JSON object, in order. A key that stands twice is an error.
std::vector<JsonMember> split_json_object(std::string_view text);
// The texts of one JSON array's elements.
std::vector<std::string_view> split_json_array(std::string_view text);

// The same document without white space between its tokens: one line.
std::string compact_json(std::string_view text);
// What Python's json.dumps(json.loads(text)) gives: ", " and ": ", ASCII only, floats by repr.
std::string python_json(std::string_view text);

// A string literal. `text` must be valid UTF-8.
std::string json_quote(std::string_view text);
std::string json_quote_ascii(std::string_view text);  // as Python writes it: \u00e4
// The value of a string literal as UTF-8; half a surrogate pair is an error.
std::string json_unquote(std::string_view literal);

// Python's repr(float): the shortest digits that read back, "1e+300", "inf", "-0.0".
std::string python_float_repr(double value);
std::string python_float_repr(float value);  // str(numpy.float32)

}  // namespace dropless::train
