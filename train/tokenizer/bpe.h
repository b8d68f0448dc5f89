// Byte-pair encoding of one word: its symbols (bytes or characters) are joined pair by pair, always
// the pair of the lowest rank, the leftmost of equals.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "train/tokenizer/vocabulary.h"

namespace dropless::train {

struct BpeModel {
  Vocabulary vocabulary;
  bool byte_level = true;  // symbols are bytes; else characters
  // Pairs join by this table; without one, where their bytes together are a token, whose rank is
  // ranks[id] (the id itself where `ranks` is empty).
  std::optional<MergeTable> merges;
  std::vector<std::uint32_t> ranks;
  bool whole_words = false;  // a word that is a token is not looked into
  // A character that is no token: its bytes' tokens where all are there, else `unknown` (one for
  // several in a row if `fuse_unknown`), else nothing.
  std::array<TokenId, 256> byte_tokens;
  TokenId unknown = kNoToken;
  bool fuse_unknown = false;

  BpeModel() { byte_tokens.fill(kNoToken); }

  // Appends the word's ids.
  void encode(std::string_view word, std::vector<TokenId>& out) const;
  // With words that were seen before taken from the cache.
  void encode(std::string_view word, WordCache& cache, std::vector<TokenId>& out) const {
    if (cache.find(word, out)) return;
    const std::size_t begin = out.size();
    encode(word, out);
    cache.add(word, std::span(out).subspan(begin));
  }
};

}  // namespace dropless::train
