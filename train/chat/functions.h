// The functions, methods, filters and tests of chat templates: those of Jinja and transformers that the common
// templates use. Others are Error(kUnsupported).
#pragma once

#include <string>
#include <vector>

#include "train/chat/value.h"

namespace dropless::train::chat {

struct NamedValue {
  std::string keyword;  // empty: by position
  Value value;
};
using Arguments = std::vector<NamedValue>;

bool is_function(const std::string& name);  // of those that call_function knows
bool is_method(const std::string& name);    // of Python's mappings
// raise_exception throws Error(kInvalidArgument) with its message.
Value call_function(const std::string& name, const Arguments& arguments);
Value call_method(const Value& whole, const std::string& name, const Arguments& arguments);
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments);
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments);

// The elements of a list, the keys of a mapping, the characters of a string.
List iterate(const Value& whole);

}  // namespace dropless::train::chat
