// Regular expressions that users write: ECMAScript's, of bounded size, and matched in time that grows with the text
// and the expression alone.
#pragma once

#include <regex>
#include <string>

namespace dropless::train {

// Throws Error(kInvalidArgument) saying why it is none: a mistake, more than 1,000 characters, more than 2,000 parts once
// counts as in "{20}" are written out, or a back-reference (which has no such bound).
std::regex user_regex(const std::string& expression);

}  // namespace dropless::train
