#include "train/tokenizer/vocabulary.h"

#include <fmt/format.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "dropless/error.h"

namespace dropless::train {
namespace {

constexpr TokenId kMostIds = 1 << 22;

std::uint64_t hash_of(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string shown(std::string_view bytes) {
  std::string out;
  for (const char c : bytes.substr(0, 40)) {
    const bool plain = c >= 0x20 && c < 0x7f;
    out += plain ? std::string(1, c) : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  }
  return out;
}

}  // namespace

Vocabulary::Vocabulary(std::vector<std::pair<std::string, TokenId>> tokens,
                       const std::string& name) {
  const auto fail = [&](const std::string& message) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{}: {}", name, message));
  };
  TokenId largest = kNoToken;
  std::size_t bytes = 0;
  for (const auto& [text, id] : tokens) {
    if (id < 0 || id >= kMostIds)
      fail(fmt::format("token id {} is not in 0 to {}", id, kMostIds - 1));
    if (text.size() > UINT32_MAX) fail(fmt::format("token {} has {} bytes", id, text.size()));
    largest = std::max(largest, id);
    bytes += text.size();
  }
  arena_.reserve(bytes);
  ids_.resize(static_cast<std::size_t>(largest + 1));
  slots_.assign(std::bit_ceil(2 * tokens.size() + 2), kNoToken);
  for (const auto& [text, id] : tokens) {
    if (ids_[at(id)].known) fail(fmt::format("token id {} stands twice", id));
    std::size_t slot = hash_of(text) & (slots_.size() - 1);
    for (; slots_[slot] != kNoToken; slot = (slot + 1) & (slots_.size() - 1)) {
      if (this->bytes(slots_[slot]) == text)
        fail(fmt::format("token '{}' stands twice", shown(text)));
    }
    slots_[slot] = id;
    ids_[at(id)] = {arena_.size(), static_cast<std::uint32_t>(text.size()), true};
    arena_ += text;
  }
}

TokenId Vocabulary::find(std::string_view bytes) const {
  if (slots_.empty()) return kNoToken;
  std::size_t slot = hash_of(bytes) & (slots_.size() - 1);
  while (slots_[slot] != kNoToken && this->bytes(slots_[slot]) != bytes)
    slot = (slot + 1) & (slots_.size() - 1);
  return slots_[slot];
}

std::string_view Vocabulary::bytes(TokenId id) const {
  if (!has(id)) return {};
  const Entry& entry = ids_[at(id)];
  return std::string_view(arena_).substr(entry.begin, entry.bytes);
}

// ---- merges ----

void MergeTable::reserve(std::size_t merges) {
  slots_.assign(std::bit_ceil(2 * merges + 2), Slot{kEmpty, {}});
}

std::size_t MergeTable::slot_of(std::uint64_t pair) const {
  // Multiplied and folded: ids are small and in sequence.
  const auto product = static_cast<unsigned __int128>(pair) * 0x9e3779b97f4a7c15u;
  std::size_t slot = static_cast<std::uint64_t>(product >> 64 ^ product) & (slots_.size() - 1);
  while (slots_[slot].pair != kEmpty && slots_[slot].pair != pair)
    slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

namespace {
std::uint64_t pair_of(TokenId left, TokenId right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}
}  // namespace

void MergeTable::add(TokenId left, TokenId right, Merge merge) {
  Slot& slot = slots_[slot_of(pair_of(left, right))];
  if (slot.pair == kEmpty) slot = {pair_of(left, right), merge};
}

const MergeTable::Merge* MergeTable::find(TokenId left, TokenId right) const {
  if (left < 0 || right < 0) return nullptr;
  const Slot& slot = slots_[slot_of(pair_of(left, right))];
  return slot.pair == kEmpty ? nullptr : &slot.merge;
}

// ---- words ----

std::size_t WordCache::slot_of(std::string_view word) { return hash_of(word) & (kEntries - 1); }

bool WordCache::find(std::string_view word, std::vector<TokenId>& out) const {
  if (word.size() > sizeof(Entry::word)) return false;
  const Entry& entry = entries_[slot_of(word)];
  if (entry.bytes != word.size() || std::memcmp(entry.word, word.data(), word.size()) != 0)
    return false;
  out.insert(out.end(), entry.ids, entry.ids + entry.count);
  return true;
}

void WordCache::add(std::string_view word, std::span<const TokenId> ids) {
  if (word.empty() || word.size() > sizeof(Entry::word) || ids.size() > std::size(Entry{}.ids))
    return;
  Entry& entry = entries_[slot_of(word)];
  entry.bytes = static_cast<std::uint8_t>(word.size());
  entry.count = static_cast<std::uint8_t>(ids.size());
  std::memcpy(entry.word, word.data(), word.size());
  std::copy(ids.begin(), ids.end(), entry.ids);
}

}  // namespace dropless::train
