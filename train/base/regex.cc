#include "train/base/regex.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "dropless/error.h"

namespace dropless::train {
namespace {

// libstdc++ matches by backtracking, which "(.*)*(.*)*x" keeps busy for ever, unless told to follow all ways at once.
constexpr auto kSyntax = std::regex::ECMAScript
#ifdef __GLIBCXX__
                         | std::regex_constants::__polynomial
#endif
    ;

constexpr std::uint64_t kMostRepetition = 1000;

// By how much counted repetitions ("{20}", "{2,5}") may lengthen an expression: each is a copy of what it repeats.
std::uint64_t repetition(const std::string& expression) {
  std::uint64_t product = 1;
  for (std::size_t i = 0; i < expression.size() && product <= kMostRepetition; ++i) {
    if (expression[i] == '\\') {
      ++i;
    } else if (expression[i] == '{') {
      std::uint64_t most = 0, count = 0;
      for (++i; i < expression.size() && expression[i] != '}'; ++i) {
        const char c = expression[i];
        count = c >= '0' && c <= '9' ? std::min(count * 10 + static_cast<std::uint64_t>(c - '0'),
                                                kMostRepetition + 1)
                                     : 0;
        most = std::max(most, count);
      }
      product *= std::max<std::uint64_t>(most, 1);
    }
  }
  return product;
}

}  // namespace

std::regex user_regex(const std::string& expression) {
  constexpr std::size_t kMostCharacters = 1000;  // it is compiled recursively
  const auto refuse = [](const std::string& why) {
    throw Error(ErrorKind::kInvalidArgument, "is no regular expression: " + why);
  };
  if (expression.size() > kMostCharacters) {
    refuse(fmt::format("it has more than {} characters", kMostCharacters));
  }
  if (repetition(expression) > kMostRepetition) {
    refuse(fmt::format("its counts repeat more than {} times", kMostRepetition));
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
