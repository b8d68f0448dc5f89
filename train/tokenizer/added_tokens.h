// Tokens that are found in the text before anything else is done to it: special ones ("<|endoftext|>")
// and others that a vocabulary got later (runs of spaces).
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "train/tokenizer/vocabulary.h"

namespace dropless::train {

struct AddedToken {
  std::string text;
  TokenId id = kNoToken;
  bool special = false;
  bool single_word = false;                      // not inside a word
  bool strip_left = false, strip_right = false;  // takes the white space beside it
  bool normalized = false;                       // looked for in the normalised text
};

class AddedTokens {
 public:
  AddedTokens() = default;
  explicit AddedTokens(std::vector<AddedToken> tokens);

  // The longest token at the earliest place, again and again: calls `token` for each and `piece` for
  // what stands between them, in order.
  void split(std::string_view text, const std::function<void(std::string_view)>& piece,
             const std::function<void(TokenId)>& token) const;

 private:
  struct Node {
    std::vector<std::pair<char, std::uint32_t>> children;
    std::int32_t token = -1;
  };
  // The longest token that begins at `at`, or null.
  const AddedToken* match(std::string_view text, std::size_t at) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  bool begins_[256] = {};
};

}  // namespace dropless::train
