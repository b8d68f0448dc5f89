// Runs a chat template.
#pragma once

#include <string>

#include "train/chat/syntax.h"

namespace dropless::train::chat {

// The text that `block` makes of the variables. Throws Error: kUnsupported "NAME:LINE: ..." for a filter, test,
// function or use of a value that is not in the subset, kInvalidArgument where the template raises an
// exception of its own (raise_exception).
std::string render(const Block& block, const Dict& variables, const std::string& name);

}  // namespace dropless::train::chat
