#include "train/data/json_text.h"

#include "tests/train/data/fixture.h"

namespace dropless::train {
namespace {

TEST(JsonText, CompactKeepsNumbersAndEscapes) {
  EXPECT_EQ(compact_json(" { \"b\" : [ 1.50 , NaN,-Infinity ,12345678901234567890123 "
                         "],\n\"a\":\"\\u00e4 \\/\" } "),
            "{\"b\":[1.50,NaN,-Infinity,12345678901234567890123],\"a\":\"\\u00e4 \\/\"}");
}

// Right-hand sides: json.dumps(json.loads(left)) of Python 3.11.
TEST(JsonText, PythonForm) {
  const std::pair<const char*, const char*> cases[] = {
      {"{\"b\":[1.50,null],\"a\":{}}", "{\"b\": [1.5, null], \"a\": {}}"},
      {"[1e5,1E400,-0,-0.0,1e16,0.0001,0.00001]",
       "[100000.0, Infinity, 0, -0.0, 1e+16, 0.0001, 1e-05]"},
      {"\"\xc3\xa4\xf0\x9f\x98\x80\\u0041\\/\x7f\"", "\"\\u00e4\\ud83d\\ude00A/\\u007f\""},
      {"\"\\ud800\"", "\"\\ud800\""},
      {"[]", "[]"},
  };
  for (const auto& [text, want] : cases) EXPECT_EQ(python_json(text), want);
}

TEST(JsonText, QuoteAndUnquote) {
  const std::string text = "\xc3\xa4\xe8\xaa\x9e\xf0\x9f\x98\x80 \"\\\n\x01\x7f";
  EXPECT_EQ(json_unquote(json_quote(text)), text);
  EXPECT_EQ(json_unquote(json_quote_ascii(text)), text);
  EXPECT_EQ(json_quote_ascii("\xc3\xa4"), "\"\\u00e4\"");
}

TEST(JsonText, FloatRepr) {
  EXPECT_EQ(python_float_repr(1e300), "1e+300");
  EXPECT_EQ(python_float_repr(0.1), "0.1");
  EXPECT_EQ(python_float_repr(0.1f), "0.1");
  EXPECT_EQ(python_float_repr(123456.75), "123456.75");
  EXPECT_EQ(python_float_repr(-0.0), "-0.0");
  EXPECT_EQ(python_float_repr(9999999999999998.0), "9999999999999998.0");
  EXPECT_EQ(python_float_repr(5e-324), "5e-324");
}

TEST(JsonText, MembersKeepTheirText) {
  const auto members = split_json_object("{\"a\\u0062\": [1, 2] , \"c\":{\"d\" : \"}\"}}");
  ASSERT_EQ(members.size(), 2u);
  EXPECT_EQ(members[0].key, "ab");
  EXPECT_EQ(members[0].value, "[1, 2]");
  EXPECT_EQ(members[1].value, "{\"d\" : \"}\"}");
}

TEST(JsonText, RefusesWhatIsNotJson) {
  const std::string deep = std::string(200, '[') + std::string(200, ']');
  for (const std::string& text :
       {std::string(""), std::string("{"), std::string("[1,]"), std::string("01"),
        std::string("1."), std::string("\"a"), std::string("\"\\x\""), std::string("\"\\u12g4\""),
        std::string("\"\n\""), std::string("\"\xff\""), std::string("{}x"), std::string("{a:1}"),
        std::string("nul"), std::string("\"\\"), std::string("-"), std::string("1e"),
        std::string("[1\0]", 4), deep}) {
    EXPECT_THROW(compact_json(text), Error) << text;
  }
  EXPECT_THROW(json_unquote("\"\\ud800\""), Error);
  EXPECT_THROW(split_json_object("{\"a\":1,\"a\":2}"), Error);
}

}  // namespace
}  // namespace dropless::train
