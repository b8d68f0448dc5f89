// The regular expressions that split text before BPE: those of tokenizer.json and tiktoken.
//
// Perl's syntax and its choice among matches (the first alternative that leads to one), on code
// points. Known: literals, escapes, `.`, classes with ranges and \p{..} \s \d \w, groups (?:..)
// (?i:..) (..) (?>..), alternatives, ? * + {m,n} greedy, lazy and possessive, lookahead, ^ and $.
// Anything else is refused by name: look-behind, back-references, \b and so on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace dropless::train {

class Pattern {
 public:
  // Throws Error(kInvalidArgument) with the position and what stands there.
  explicit Pattern(std::string_view source);
  ~Pattern();
  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;

  // The end of the match that begins at `at`; npos where none does. `text` is valid UTF-8. Throws
  // Error(kUnsupported) where a pattern tries more ways than any that is in use.
  std::size_t match_at(std::string_view text, std::size_t at) const;
  // The first match that is not empty, from `at` on: its begin and end. False where there is none.
  bool find(std::string_view text, std::size_t at, std::size_t& begin, std::size_t& end) const;

  struct Program;  // pattern.cc

 private:
  std::unique_ptr<const Program> program_;
};

}  // namespace dropless::train
