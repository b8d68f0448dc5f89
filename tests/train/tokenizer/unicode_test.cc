// Which Unicode tokenizers cut by: 16.0, as tiktoken 0.14.0 and tokenizers 0.22.2, whichever
// utf8proc knows. The cuts here are those packages'.
#include "train/tokenizer/unicode.h"

#include <gtest/gtest.h>

#include <bit>
#include <nlohmann/json.hpp>

#include "train/tokenizer/pattern.h"
#include "train/tokenizer/split_steps.h"

namespace dropless::train {
namespace {

using Words = std::vector<std::string>;

constexpr const char* kCl100k =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+$|)"
    R"(\s*[\r\n]|\s+(?!\S)|\s)";
// Upper and lower case of o200k.
constexpr const char* kCases =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n/]*)";

Words cut(const char* pattern, std::string_view text) {
  const Pattern made(pattern);
  Words words;
  std::size_t at = 0, begin = 0, end = 0;
  for (; made.find(text, at, begin, end); at = end)
    words.emplace_back(text.substr(begin, end - begin));
  return words;
}

Words cut_by_step(const nlohmann::json& step, std::string_view text) {
  Words words;
  split_steps_from_json(step).split(text, true,
                                    [&](std::string_view word) { words.emplace_back(word); });
  return words;
}

TEST(Unicode, CategoriesAreThoseOfVersion16) {
  std::array<int, 32> counts{};
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c < 0xd800 || c > 0xdfff) ++counts[std::countr_zero(category_of(c))];
  }
  // Cn, Lu, Ll, ... in the order of the bits; the last two are of Cc and So.
  counts[26] += counts[30];
  counts[22] += counts[31];
  counts[30] = counts[31] = 0;
  EXPECT_EQ(counts,
            (std::array<int, 32>{819533, 1858, 2258, 31, 404, 136477, 2020, 468,    13,  760, 236,
                                 915,    10,   27,   79, 77,  12,     10,   640,    950, 63,  125,
                                 7376,   17,   1,    1,  65,  170,    0,    137468, 0,   0}));
}

TEST(Unicode, LettersAndDigitsAssignedSince15AreCutAsThePackagesDo) {
  EXPECT_EQ(cut(kCl100k, "\U0002ebf0.w"), (Words{"\U0002ebf0", ".w"}));  // of 15.1
  EXPECT_EQ(cut(kCl100k, "a\U000139a8.w"), (Words{"a\U000139a8", ".w"}));
  EXPECT_EQ(cut(kCl100k, "\ua7cb1"), (Words{"\ua7cb", "1"}));
  EXPECT_EQ(cut(kCl100k, "b\U00016d70\U00016d711"), (Words{"b", "\U00016d70\U00016d711"}));
  EXPECT_EQ(cut(kCl100k, "a\u2ffc.w"), (Words{"a", "\u2ffc.", "w"}));
  EXPECT_EQ(cut(kCl100k, "a\ua7d2.w"), (Words{"a", "\ua7d2.", "w"}));  // of 17.0
  EXPECT_EQ(cut(kCases, "\u1c89\u1c8aA\ua7cba"), (Words{"\u1c89\u1c8a", "A\ua7cba"}));
  EXPECT_EQ(cut(R"(\p{Mc}|\p{Mn})", "a\U0001171e"), (Words{"\U0001171e"}));
  EXPECT_EQ(cut(R"(\p{Mn})", "a\U0001171e"), Words{});  // so of 15.0
}

TEST(Unicode, StepsCutByTheVersionOfThePackages) {
  EXPECT_EQ(cut_by_step({{"type", "Whitespace"}}, "a\ua7cb.\U00011de0"),
            (Words{"a\ua7cb", ".\U00011de0"}));
  EXPECT_EQ(cut_by_step({{"type", "ByteLevel"}, {"add_prefix_space", false}},
                        "a\ua7cb1\U00016d70.\U00011de0"),
            (Words{"a\ua7cb", "1\U00016d70", ".\U00011de0"}));
  // Rust's own numbers are of 17.0.
  EXPECT_EQ(cut_by_step({{"type", "Digits"}, {"individual_digits", true}},
                        "a\U00016d70\U00011de0b\U00016ff4c"),
            (Words{"a", "\U00016d70", "\U00011de0", "b", "\U00016ff4", "c"}));
  // Punctuation is that of an old table.
  for (const char* type : {"Punctuation", "BertPreTokenizer"}) {
    EXPECT_EQ(cut_by_step({{"type", type}}, "a\u2e43b\u166dc\U000111c9d\U00010d6ee\u2014f"),
              (Words{"a\u2e43b", "\u166d", "c", "\U000111c9", "d\U00010d6ee", "\u2014", "f"}))
        << type;
  }
}

// Not by the newer categories: the package's marks are older still.
TEST(Unicode, AccentsAreThoseThatUtf8procKnows) {
  EXPECT_EQ(strip_accents("a\u0301\u0897"), "a\u0897");
}

}  // namespace
}  // namespace dropless::train
