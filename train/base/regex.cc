#include "train/base/regex.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dropless/error.h"

namespace dropless::train {
namespace {

// libstdc++ matches by backtracking, which "(.*)*(.*)*x" keeps busy for ever, unless told to follow all ways at once.
constexpr auto kSyntax = std::regex::ECMAScript
#ifdef __GLIBCXX__
                         | std::regex_constants::__polynomial
#endif
    ;

constexpr std::uint64_t kMostAtoms = 2000;

// The expression's atoms once counted repetitions ("{20}", "{2,5}") are written out, which is what compiling it does;
// at most kMostAtoms + 1.
std::uint64_t atoms_of(const std::string& expression) {
  std::vector<std::uint64_t> sums{0};  // of the groups that are open
  std::uint64_t last = 0;              // of what stands before a count
  const auto add = [&](std::uint64_t atoms) {
    sums.back() = std::min(sums.back() + atoms, kMostAtoms + 1);
  };
  for (std::size_t i = 0; i < expression.size(); ++i) {
    switch (expression[i]) {
      case '(':
        sums.push_back(0);
        last = 0;
        break;
      case ')':
        if (sums.size() == 1) return 0;  // a mistake, which compiling it tells
        last = sums.back();
        sums.pop_back();
        add(last);
        break;
      case '{': {
        std::uint64_t most = 1, count = 0;
        for (++i; i < expression.size() && expression[i] != '}'; ++i) {
          const char c = expression[i];
          const bool digit = c >= '0' && c <= '9';
          count = digit ? std::min<std::uint64_t>(count * 10 + static_cast<std::uint64_t>(c - '0'),
                                                  kMostAtoms + 1)
                        : 0;
          most = std::max(most, count);
        }
        add((most - 1) * last);
        last = std::min(most * last, kMostAtoms + 1);
        break;
      }
      case '[':
        while (i + 1 < expression.size() && expression[i + 1] != ']') {
          i += expression[i + 1] == '\\' ? 2 : 1;
        }
        ++i;
        add(last = 1);
        break;
      case '\\':
        ++i;
        add(last = 1);
        break;
      default:
        add(last = 1);
    }
  }
  return *std::max_element(sums.begin(), sums.end());
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
  if (atoms_of(expression) > kMostAtoms) {
    refuse(fmt::format("with its counts written out it has more than {} parts", kMostAtoms));
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
