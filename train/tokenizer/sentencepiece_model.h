// What a SentencePiece `.model` file holds (a protobuf), and its normalizer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dropless::train {

enum class PieceType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

struct Piece {
  std::string text;
  float score = 0;
  PieceType type = PieceType::kNormal;
};

struct SentencePieceModel {
  std::vector<Piece> pieces;
  bool unigram = true;  // else BPE
  bool byte_fallback = false;
  bool space_as_suffix = false;
  bool add_dummy_prefix = true;
  bool remove_extra_spaces = true;
  bool escape_spaces = true;
  int bos = 1, eos = 2, pad = -1;
  std::string unknown_surface = " \xe2\x81\x87 ";
  std::string charsmap;  // replacements: a double-array trie, then their texts

  // Throws Error(kInvalidArgument): not a model, another type, a damaged file.
  static SentencePieceModel parse(std::string_view bytes, const std::string& path);

  // Text as the pieces spell it, spaces as U+2581. `frozen` gives the bytes at the front of a text that
  // are a user-defined piece, or 0: those stay as they are.
  template <class Frozen>
  std::string normalize(std::string_view text, Frozen frozen) const;

 private:
  // The replacement of what stands at the front of `text`, and how many bytes it replaces.
  std::string_view replacement(std::string_view text, std::size_t& bytes) const;
  void check_charsmap(const std::string& path) const;
};

constexpr std::string_view kSpaceMark = "\xe2\x96\x81";

template <class Frozen>
std::string SentencePieceModel::normalize(std::string_view text, Frozen frozen) const {
  const auto next = [&](std::string_view& rest) {
    std::size_t bytes = frozen(rest);
    std::string_view part = rest.substr(0, bytes);
    if (bytes == 0) part = replacement(rest, bytes);
    rest.remove_prefix(bytes);
    return part;
  };
  while (remove_extra_spaces && !text.empty()) {
    std::string_view rest = text;
    if (next(rest) != " ") break;
    text = rest;
  }
  std::string out;
  if (text.empty()) return out;
  const std::string_view space = escape_spaces ? kSpaceMark : std::string_view(" ");
  if (add_dummy_prefix && !space_as_suffix) out += space;
  bool after_space = remove_extra_spaces;
  while (!text.empty()) {
    std::string_view part = next(text);
    while (after_space && part.starts_with(' ')) part.remove_prefix(1);
    if (part.empty()) continue;
    for (const char c : part) {
      if (c == ' ') {
        out += space;
      } else {
        out += c;
      }
    }
    after_space = remove_extra_spaces && part.ends_with(' ');
  }
  while (remove_extra_spaces && out.ends_with(space)) out.erase(out.size() - space.size());
  if (add_dummy_prefix && space_as_suffix) out += space;
  return out;
}

}  // namespace dropless::train
