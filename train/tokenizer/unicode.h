// Code points: UTF-8 both ways, general categories, normal forms. Categories are those of Unicode
// 16.0, which the packages cut text by; normal forms and cases are utf8proc's (15.0 of Debian 12).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dropless::train {

// One bit a general category, so that classes such as \p{L} are sets of bits. White space among the
// control characters (tab, line feed and others, U+0085) has a bit of its own beside Cc, and the circled letters one
// beside So: \s and \w too are sets of bits then.
using Categories = std::uint32_t;
// clang-format off
enum : Categories {
  kCn = 1u << 0, kLu = 1u << 1, kLl = 1u << 2, kLt = 1u << 3, kLm = 1u << 4, kLo = 1u << 5,
  kMn = 1u << 6, kMc = 1u << 7, kMe = 1u << 8, kNd = 1u << 9, kNl = 1u << 10, kNo = 1u << 11,
  kPc = 1u << 12, kPd = 1u << 13, kPs = 1u << 14, kPe = 1u << 15, kPi = 1u << 16, kPf = 1u << 17,
  kPo = 1u << 18, kSm = 1u << 19, kSc = 1u << 20, kSk = 1u << 21, kSo = 1u << 22, kZs = 1u << 23,
  kZl = 1u << 24, kZp = 1u << 25, kCc = 1u << 26, kCf = 1u << 27, kCs = 1u << 28, kCo = 1u << 29,
  kControlSpace = 1u << 30, kSymbolLetter = 1u << 31,
};
// clang-format on
constexpr Categories kLetters = kLu | kLl | kLt | kLm | kLo;
constexpr Categories kMarks = kMn | kMc | kMe;
constexpr Categories kNumbers = kNd | kNl | kNo;
constexpr Categories kPunctuation = kPc | kPd | kPs | kPe | kPi | kPf | kPo;
constexpr Categories kSymbols = kSm | kSc | kSk | kSo | kSymbolLetter;
constexpr Categories kSpaces = kZs | kZl | kZp | kControlSpace;
constexpr Categories kWordCharacters =
    kLetters | kMarks | kNd | kNl | kPc | kSymbolLetter;  // \w, of Rust's regex without the joiners
constexpr Categories kAnyCategory = ~Categories{0};

Categories category_of(char32_t code_point);
inline bool is_white_space(char32_t code_point) { return category_of(code_point) & kSpaces; }
// Rust's \w: with U+200C and U+200D, which are Cf.
inline bool is_word_character(char32_t code_point) {
  return (category_of(code_point) & kWordCharacters) || code_point == 0x200c ||
         code_point == 0x200d;
}

// The code point that begins at text[at], of valid UTF-8, and its length.
struct CodePoint {
  char32_t value;
  std::size_t bytes;
};
inline CodePoint code_point_at(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) {
    return static_cast<char32_t>(static_cast<std::uint8_t>(text[at + i]));
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xe0) return {(lead & 0x1f) << 6 | (byte(1) & 0x3f), 2};
  if (lead < 0xf0) return {(lead & 0xf) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f), 3};
  return {(lead & 7) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f), 4};
}
// Where the code point that ends before text[at] begins; at > 0.
inline std::size_t code_point_before(std::string_view text, std::size_t at) {
  do --at;
  while (at > 0 && (static_cast<std::uint8_t>(text[at]) & 0xc0) == 0x80);
  return at;
}
void append_utf8(std::string& out, char32_t code_point);

// Replaces every maximal ill-formed part by U+FFFD (Unicode 3.9, table 3-7; what Python does).
std::string replace_invalid_utf8(std::string_view bytes);
// `text` as it is where it is valid; else replace_invalid_utf8() of it, which `storage` then holds.
std::string_view valid_utf8(std::string_view text, std::string& storage);

enum class NormalForm { kC, kD, kKC, kKD };
// `text` must be valid UTF-8, and so of those below.
std::string normalize(NormalForm form, std::string_view text);
std::string lowercase(std::string_view text);
// Without the marks that utf8proc knows: here the package's table is older, not newer.
std::string strip_accents(std::string_view text);

}  // namespace dropless::train
