#include "train/tokenizer/bpe.h"

#include <algorithm>
#include <queue>

#include "train/tokenizer/unicode.h"

namespace dropless::train {
namespace {

constexpr std::uint32_t kNever = UINT32_MAX;

struct Symbol {
  TokenId id;
  std::uint32_t begin, end;  // in the word
  std::uint32_t rank;        // of the pair with the next symbol; kNever: they do not join
  TokenId joined;            // what the pair becomes
};

void rank_pair(const BpeModel& model, std::string_view word, Symbol& left, const Symbol& right) {
  left.rank = kNever;
  if (model.merges) {
    if (const auto* merge = model.merges->find(left.id, right.id)) {
      left.rank = merge->rank;
      left.joined = merge->id;
    }
    return;
  }
  const TokenId id = model.vocabulary.find(word.substr(left.begin, right.end - left.begin));
  if (id == kNoToken) return;
  left.rank = model.ranks.empty() ? static_cast<std::uint32_t>(id)
                                  : model.ranks[static_cast<std::size_t>(id)];
  left.joined = id;
}

// For words of a few symbols: looks through all pairs each time.
void join_few(const BpeModel& model, std::string_view word, std::vector<Symbol>& symbols) {
  for (;;) {
    std::size_t best = 0;
    std::uint32_t rank = kNever;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      if (symbols[i].rank < rank) {
        rank = symbols[i].rank;
        best = i;
      }
    }
    if (rank == kNever) return;
    symbols[best].id = symbols[best].joined;
    symbols[best].end = symbols[best + 1].end;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    if (best + 1 < symbols.size()) rank_pair(model, word, symbols[best], symbols[best + 1]);
    if (best > 0) rank_pair(model, word, symbols[best - 1], symbols[best]);
  }
}

// For long ones: a queue of pairs over a list of symbols. An entry whose symbols have joined with
// others since is passed over.
void join_many(const BpeModel& model, std::string_view word, std::vector<Symbol>& symbols) {
  struct Pair {
    std::uint32_t rank, left;
    std::uint32_t end;  // of the pair in the word
    bool operator<(const Pair& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  const auto count = static_cast<std::uint32_t>(symbols.size());
  std::vector<std::uint32_t> next(count), before(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1;
    before[i] = i - 1;
  }
  std::priority_queue<Pair> queue;
  const auto look_at = [&](std::uint32_t left) {
    const std::uint32_t right = next[left];
    if (right == count) return;
    rank_pair(model, word, symbols[left], symbols[right]);
    if (symbols[left].rank != kNever) queue.push({symbols[left].rank, left, symbols[right].end});
  };
  for (std::uint32_t i = 0; i + 1 < count; ++i) look_at(i);
  while (!queue.empty()) {
    const Pair pair = queue.top();
    queue.pop();
    Symbol& left = symbols[pair.left];
    const std::uint32_t right = next[pair.left];
    const bool gone = left.begin == left.end;
    if (gone || right == count || left.rank != pair.rank || symbols[right].end != pair.end)
      continue;
    left.id = left.joined;
    left.end = symbols[right].end;
    symbols[right].end = symbols[right].begin;
    next[pair.left] = next[right];
    if (next[right] != count) before[next[right]] = pair.left;
    look_at(pair.left);
    if (pair.left > 0) look_at(before[pair.left]);
  }
  std::erase_if(symbols, [](const Symbol& symbol) { return symbol.begin == symbol.end; });
}

}  // namespace

void BpeModel::encode(std::string_view word, std::vector<TokenId>& out) const {
  if (whole_words) {
    if (const TokenId id = vocabulary.find(word); id != kNoToken) {
      out.push_back(id);
      return;
    }
  }
  thread_local std::vector<Symbol> symbols;
  symbols.clear();
  for (std::size_t at = 0; at < word.size();) {
    const std::size_t bytes = byte_level ? 1 : code_point_at(word, at).bytes;
    const TokenId id = byte_level ? byte_tokens[static_cast<std::uint8_t>(word[at])]
                                  : vocabulary.find(word.substr(at, bytes));
    symbols.push_back({id, static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(at + bytes),
                       kNever, kNoToken});
    at += bytes;
  }
  constexpr std::size_t kFew = 64;
  if (symbols.size() <= kFew) {
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i)
      rank_pair(*this, word, symbols[i], symbols[i + 1]);
    join_few(*this, word, symbols);
  } else {
    join_many(*this, word, symbols);
  }
  bool after_unknown = false;
  for (const Symbol& symbol : symbols) {
    if (symbol.id != kNoToken) {
      out.push_back(symbol.id);
      after_unknown = false;
      continue;
    }
    const std::string_view text = word.substr(symbol.begin, symbol.end - symbol.begin);
    const auto token_of = [&](char byte) { return byte_tokens[static_cast<std::uint8_t>(byte)]; };
    const bool as_bytes = !byte_level && std::all_of(text.begin(), text.end(), [&](char byte) {
      return token_of(byte) != kNoToken;
    });
    if (as_bytes) {
      for (const char byte : text) out.push_back(token_of(byte));
    } else if (unknown != kNoToken && !(fuse_unknown && after_unknown)) {
      out.push_back(unknown);
    }
    after_unknown = !as_bytes;
  }
}

}  // namespace dropless::train
