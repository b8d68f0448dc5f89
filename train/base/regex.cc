#include "train/base/regex.h"

#include <fmt/format.h>

#include "dropless/error.h"

namespace dropless::train {
namespace {

// libstdc++ matches by backtracking, which "(.*)*(.*)*x" keeps busy for ever, unless told to follow all ways at once.
constexpr auto kSyntax = std::regex::ECMAScript
#ifdef __GLIBCXX__
                         | std::regex_constants::__polynomial
#endif
    ;

}  // namespace

std::regex user_regex(const std::string& expression) {
  constexpr std::size_t kMostCharacters = 1000;  // it is compiled recursively
  const auto refuse = [](const std::string& why) {
    throw Error(ErrorKind::kInvalidArgument, "is no regular expression: " + why);
  };
  if (expression.size() > kMostCharacters) {
    refuse(fmt::format("it has more than {} characters", kMostCharacters));
  }
  if (expression.find_first_of("*+?") == 0) refuse("there is nothing to repeat");
  try {
    return std::regex(expression, kSyntax);
  } catch (const std::regex_error& error) {
    refuse(error.what());
  }
  return {};
}

}  // namespace dropless::train
