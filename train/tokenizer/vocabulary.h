// Tokens by their bytes and by their ids.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dropless::train {

using TokenId = std::int32_t;
constexpr TokenId kNoToken = -1;

class Vocabulary {
 public:
  Vocabulary() = default;
  // Ids need not be dense. Throws Error(kInvalidArgument): one id or text twice, ids from 2^22 on.
  // `name` (a path) starts its messages.
  Vocabulary(std::vector<std::pair<std::string, TokenId>> tokens, const std::string& name);

  TokenId find(std::string_view bytes) const;  // kNoToken where there is none
  // Its bytes; empty for an id that no token has.
  std::string_view bytes(TokenId id) const;
  bool has(TokenId id) const { return id >= 0 && id < size() && ids_[at(id)].known; }
  TokenId size() const { return static_cast<TokenId>(ids_.size()); }  // the largest id + 1

 private:
  struct Entry {
    std::size_t begin = 0;
    std::uint32_t bytes = 0;
    bool known = false;
  };
  static std::size_t at(TokenId id) { return static_cast<std::size_t>(id); }

  std::string arena_;
  std::vector<Entry> ids_;
  std::vector<TokenId> slots_;  // a power of two, at most half full
};

// Which pairs of tokens become one, and how early.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank;
    TokenId id;
  };
  void reserve(std::size_t merges);
  void add(TokenId left, TokenId right, Merge merge);  // a pair's first one stays
  const Merge* find(TokenId left, TokenId right) const;

 private:
  struct Slot {
    std::uint64_t pair;
    Merge merge;
  };
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  std::size_t slot_of(std::uint64_t pair) const;
  std::vector<Slot> slots_;
};

// Short words and their ids: text repeats its words. Of fixed size: a new word takes the place of the
// one that has its slot.
class WordCache {
 public:
  WordCache() : entries_(kEntries) {}
  // Appends the word's ids if it is known.
  bool find(std::string_view word, std::vector<TokenId>& out) const;
  void add(std::string_view word, std::span<const TokenId> ids);

 private:
  static constexpr std::size_t kEntries = 1 << 15;
  struct Entry {
    std::uint8_t bytes = 0, count = 0;
    char word[30];
    TokenId ids[8];
  };
  static std::size_t slot_of(std::string_view word);
  std::vector<Entry> entries_;
};

}  // namespace dropless::train
