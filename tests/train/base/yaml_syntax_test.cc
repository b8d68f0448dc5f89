#include "train/base/yaml_syntax.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace dropless::train {
namespace {

// "LINE:COLUMN KEY", from 0, for the end of `text`.
std::string locate(const std::string& text, bool unclosed = true) {
  const auto line = static_cast<int>(std::count(text.begin(), text.end(), '\n'));
  const auto column = static_cast<int>(text.size() - (text.rfind('\n') + 1));
  const YamlSyntaxPlace place = locate_syntax_error(text, line, column, unclosed);
  return std::to_string(place.line) + ":" + std::to_string(place.column) + " " + place.key;
}

TEST(YamlSyntax, FindsTheQuoteThatIsOpen) {
  EXPECT_EQ(locate("a: 1\nb: 'x\nc: 2\n"), "1:3 b");
  EXPECT_EQ(locate("a: 'it''s'\nb: \"x\\\"\nc: 2"), "1:3 b");
  EXPECT_EQ(locate("a: it's\nb: [x, 'y\nc: 2"), "1:7 b");
  EXPECT_EQ(locate("# don't\na: 1 # isn't\nm:\n  b: \"x\n"), "3:5 m.b");
}

TEST(YamlSyntax, FindsTheBracketThatIsOpen) {
  EXPECT_EQ(locate("a: [1, 2]\nb: {c: [3], d: 4\ne: 5"), "1:3 b");
  EXPECT_EQ(locate("a: x[1\nb: {c: [3, d: 4}"), "1:7 b");
  EXPECT_EQ(locate("- a: |\n    it's\n  b: 'y\n"), "2:5 0.b");
  EXPECT_EQ(locate("{\"a\":\"x ]\n"), "0:5 ");
  EXPECT_EQ(locate("a: &n \"x\nb: !t 'y'\n"), "0:6 a");
  EXPECT_EQ(locate("text: |\n  [ {\n  '\nb: [1\n"), "3:3 b");
}

TEST(YamlSyntax, StaysWhereNothingIsOpen) {
  EXPECT_EQ(locate("a: [1]\nb: 2"), "1:4 b");
  EXPECT_EQ(locate("a: 'b\nc: 2", /*unclosed=*/false), "1:4 c");
}

TEST(YamlSyntax, NamesTheKeyByIndentation) {
  EXPECT_EQ(locate("m:\n  f:\n    k: 1\n  g:\n    l: x", false), "4:8 m.g.l");
  EXPECT_EQ(locate("m:\n  f: 1\n\n  # of g\n  g: {a: 1,\n      b: 2", false), "5:10 m.g.b");
  EXPECT_EQ(locate("", false), "0:0 ");
  EXPECT_EQ(locate("- a\n- b", false), "1:3 ");
}

TEST(YamlSyntax, CountsTheItemsOfSequences) {
  EXPECT_EQ(locate("e:\n- a: 1\n  b: 2\n- c: 3\n  d:\n    f: x", false), "5:8 e.1.d.f");
  EXPECT_EQ(locate("e:\n  - a: 1\n  # one\n  - - b: 2\n    - c: x", false), "4:10 e.1.1.c");
  EXPECT_EQ(locate("e:\n  - - a: 1\n  - - b: 2\n    - c: x", false), "3:10 e.1.1.c");
  const std::string deep(300'000, '-');
  EXPECT_EQ(locate(std::string(600'000, ' ').replace(0, 300'000, deep) + "k: x", false),
            "0:600004 ");
}

}  // namespace
}  // namespace dropless::train
