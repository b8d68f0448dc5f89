#include "train/base/yaml_syntax.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace dropless::train {
namespace {

// "LINE:COLUMN KEY", from 0, for a parser that gives up at the end of `text` with `message`, and what is said instead.
std::string locate(const std::string& text, const char* message = "") {
  const auto line = static_cast<int>(std::count(text.begin(), text.end(), '\n'));
  const auto column = static_cast<int>(text.size() - (text.rfind('\n') + 1));
  const YamlSyntaxPlace place = locate_syntax_error(text, line, column, message);
  const std::string said = place.message.empty() ? "" : ": " + place.message;
  return std::to_string(place.line) + ":" + std::to_string(place.column) + " " + place.key + said;
}
constexpr const char* kQuote = "illegal EOF in scalar";
constexpr const char* kMap = "end of map flow not found";
constexpr const char* kList = "end of sequence flow not found";
const std::string kOpen = ": a quote is opened and not closed";

TEST(YamlSyntax, FindsTheQuoteThatIsOpen) {
  EXPECT_EQ(locate("a: 1\nb: 'x\nc: 2\n", kQuote), "1:3 b" + kOpen);
  EXPECT_EQ(locate("a: 'it''s'\nb: \"x\\\"\nc: 2", kQuote), "1:3 b" + kOpen);
  EXPECT_EQ(locate("a: it's\nb: [x, 'y\nc: 2", kQuote), "1:7 b.1" + kOpen);
  EXPECT_EQ(locate("# don't\na: 1 # isn't\nm:\n  b: \"x\n", kQuote), "3:5 m.b" + kOpen);
  EXPECT_EQ(locate("- a: |\n    it's\n  b: 'y\n", kQuote), "2:5 0.b" + kOpen);
  EXPECT_EQ(locate("{\"a\":\"x ]\n", kQuote), "0:5 a" + kOpen);
  EXPECT_EQ(locate("m: {a: 1, b: \"x}\n", kQuote), "0:13 m.b" + kOpen);
}

TEST(YamlSyntax, FindsTheQuoteThatTheNextOneClosed) {
  EXPECT_EQ(locate("a: \"b\nc: \"d", "end of map not found"), "0:3 a: a quote that ends in line 2");
  EXPECT_EQ(locate("l:\n- 'b\n- 'c", "end of map not found"), "1:2 l: a quote that ends in line 3");
  EXPECT_EQ(locate("\"a: 3\nb: \"x", "illegal map value"), "0:0 : a quote that ends in line 2");
  EXPECT_EQ(locate("a: [1, \"x]\nb: \"y", kList), "0:7 a.1: a quote that ends in line 2");
}

TEST(YamlSyntax, FindsTheBracketThatIsOpen) {
  EXPECT_EQ(locate("a: [1, 2]\nb: {c: [3], d: 4\ne: 5", kMap), "1:3 b");
  EXPECT_EQ(locate("a: x[1\nb: {c: [3, d: 4}", kMap), "1:7 b.c");
  EXPECT_EQ(locate("text: |\n  [ {\n  '\nb: [1\n", kList), "3:3 b");
  EXPECT_EQ(locate("a: &n [1\nb: !t 'y'\n", kList), "0:6 a");
  // Closed, but for what stands in it.
  const std::string comma = "a: {b: c d: e}";
  EXPECT_EQ(locate_syntax_error(comma, 0, 10, kMap).column, 10);
  EXPECT_EQ(locate_syntax_error(comma, 0, 10, kMap).hint.substr(0, 18), "a comma is missing");
  EXPECT_EQ(locate("o: {a: 1, b: [1, 2", "illegal flow end"), "0:13 o.b");
  EXPECT_EQ(locate("m:\n  b:\t[1,\n  c: 2\n", kList), "1:5 m.b");
  EXPECT_EQ(locate("l:\n  - [1,\n  ", "illegal block entry"), "1:4 l: a [ is not closed");
  EXPECT_EQ(locate_syntax_error("a: {", 0, 0, kMap).column, 3);
  const std::string lines = "m:\n  f: {\n    a: 1\n    b: 2\n  }\n";
  const YamlSyntaxPlace place = locate_syntax_error(lines, 3, 4, kMap);
  EXPECT_EQ(place.line, 3);
  EXPECT_EQ(place.hint.substr(0, 18), "a comma is missing");
  const std::string quotes = "a: {b: \"x, c: \"y\"}";
  EXPECT_EQ(locate_syntax_error(quotes, 0, 15, kMap).column, 7);
}

TEST(YamlSyntax, NamesWhatPeopleForget) {
  EXPECT_EQ(locate("seed:17\nmodel", "illegal map value"), "0:5 seed: no space behind the colon");
  EXPECT_EQ(locate("url: http://x\nmodel: 1\nb", "illegal map value"), "2:1 ");
  EXPECT_EQ(locate("a:\n  \tb: 1", "illegal map value"), "1:2 a.b: a tab in the indentation");
  EXPECT_EQ(locate("a: \"x\" ", "end of map not found"), "0:7 a: text behind a closing quote");
}

TEST(YamlSyntax, StaysWhereNothingIsOpen) {
  EXPECT_EQ(locate("a: [1]\nb: 2", kList), "1:4 b");
  EXPECT_EQ(locate("a: [1, 'b', 'c", "not valid UTF-8"), "0:14 a.2");
}

TEST(YamlSyntax, NamesTheKeyByIndentation) {
  EXPECT_EQ(locate("m:\n  f:\n    k: 1\n  g:\n    l: x"), "4:8 m.g.l");
  EXPECT_EQ(locate("m:\n  f: 1\n\n  # of g\n  g: {a: 1,\n      b: 2"), "5:10 m.g.b");
  EXPECT_EQ(locate("m:\n  f: 1\n  }"), "2:3 m");
  EXPECT_EQ(locate("m: 1\n}"), "1:1 ");
  EXPECT_EQ(locate(""), "0:0 ");
  EXPECT_EQ(locate("- a\n- b"), "1:3 ");
}

TEST(YamlSyntax, CountsTheItemsOfSequences) {
  EXPECT_EQ(locate("e:\n- a: 1\n  b: 2\n- c: 3\n  d:\n    f: x"), "5:8 e.1.d.f");
  EXPECT_EQ(locate("e:\n  - a: 1\n  # one\n  - - b: 2\n    - c: x"), "4:10 e.1.1.c");
  EXPECT_EQ(locate("e:\n  - - a: 1\n  - - b: 2\n    - c: x"), "3:10 e.1.1.c");
  std::string deep;
  for (int i = 0; i < 300'000; ++i) deep += "- ";
  EXPECT_EQ(locate(deep + "\n" + deep + "k: x"), "1:600004 ");
}

}  // namespace
}  // namespace dropless::train
