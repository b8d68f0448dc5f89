// Time strings, suggestions, UTF-8, hashes, strict JSON.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "dropless/error.h"
#include "train/base/hash.h"
#include "train/base/json.h"
#include "train/base/regex.h"
#include "train/base/suggest.h"
#include "train/base/time.h"
#include "train/base/utf8.h"

namespace dropless::train {
namespace {

using ::testing::HasSubstr;

// ---- regular expressions ----

TEST(UserRegex, AreBounded) {
  const std::string name(200, 'a');
  for (const char* slow : {"(.*)*(.*)*(.*)*(.*)*x$", "(a+)+b", "(a|aa)+b", "^(([a-z])+.)+[A-Z]$"}) {
    EXPECT_FALSE(std::regex_search(name, user_regex(slow))) << slow;
  }
  EXPECT_TRUE(std::regex_search("model.blocks.3.wq", user_regex("blocks\\.[0-3]\\.(?!ffn)w[qk]$")));
  const auto refusal = [](const std::string& expression) -> std::string {
    try {
      user_regex(expression);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(refusal("*"), HasSubstr("nothing to repeat"));
  EXPECT_THAT(refusal("(a"), HasSubstr("regular expression"));
  EXPECT_THAT(refusal("(a)\\1"), HasSubstr("back-reference"));
  EXPECT_THAT(refusal(std::string(1001, 'a')), HasSubstr("more than 1000 characters"));
  EXPECT_THAT(refusal("(.?){5000}x"), HasSubstr("more than 2000 parts"));
  EXPECT_THAT(refusal("((a{2,20}){20}){20}"), HasSubstr("more than 2000 parts"));
  EXPECT_THAT(refusal("a{99999999999999999999}"), HasSubstr("more than 2000 parts"));
  for (const char* fine : {"blocks\\.\\d{1,2}\\.ffn\\{9999\\}", "[{]9999[}]", "a{40}b{40}",
                           "(a|b){30}c", "[\\]{9999]", "((a{2}){3}){100}"}) {
    EXPECT_EQ(refusal(fine), "accepted") << fine;
  }
  EXPECT_EQ(refusal(std::string(490, '(') + "a" + std::string(490, ')')), "accepted");
}

// ---- time ----

TEST(Time, Parses) {
  const std::pair<const char*, Time> cases[] = {
      {"10ba", {10, TimeUnit::kBatch}},      {"1ep", {1, TimeUnit::kEpoch}},
      {"3e4tok", {30000, TimeUnit::kToken}}, {"0.02dur", {0.02, TimeUnit::kDuration}},
      {"1dur", {1, TimeUnit::kDuration}},    {"500sp", {500, TimeUnit::kSample}},
      {"7", {7, TimeUnit::kEpoch}},          {"2iter", {2, TimeUnit::kIteration}},
      {"10BA", {10, TimeUnit::kBatch}},      {"90sec", {90, TimeUnit::kSecond}},
      {"1.5sec", {1.5, TimeUnit::kSecond}},  {"1h30m10s", {5410, TimeUnit::kSecond}},
      {"2m", {120, TimeUnit::kSecond}},      {"45s", {45, TimeUnit::kSecond}},
      {"1h5s", {3605, TimeUnit::kSecond}},   {"1_000ba", {1000, TimeUnit::kBatch}},
      {" 10 ba ", {10, TimeUnit::kBatch}},   {"0ba", {0, TimeUnit::kBatch}},
      {"10.0ba", {10, TimeUnit::kBatch}},
  };
  for (const auto& [text, expected] : cases) {
    EXPECT_EQ(Time::parse(text), expected) << text;
    EXPECT_EQ(Time::parse(expected.str()), expected) << text;
  }
}

TEST(Time, Refuses) {
  for (const char* text : {"", "ba", "ten ba", "1.5ba", "-1ba", "nanba", "infdur", ".infdur",
                           "1e400tok", "10bb", "10 20ba", "1m1h", "1e17tok", "0x", "1h30", "h"}) {
    EXPECT_THROW(Time::parse(text), Error) << text;
  }
}

// ---- suggestions ----

TEST(Suggest, Distance) {
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("abc", "abc"), 0);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("d_modle", "d_model"), 1);
}

TEST(Suggest, Nearest) {
  EXPECT_EQ(nearest_word("optimzer", {"model", "optimizer"}), "optimizer");
  EXPECT_EQ(nearest_word("lr", {"wd", "betas"}), "");
  EXPECT_EQ(nearest_word("max_seq", {"max_duration", "max_seq_len"}), "max_seq_len");
  EXPECT_EQ(nearest_word("zebra", {"model", "optimizer"}), "");
}

// ---- UTF-8 ----

TEST(Utf8, FindsTheFirstBadByte) {
  EXPECT_EQ(find_invalid_utf8("plain \xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"), std::string::npos);
  for (const char* bad :
       {"a\x80", "a\xc0\xaf", "a\xe0\x80\xaf", "a\xed\xa0\x80", "a\xf4\x90\x80\x80",
        "a\xf8\x88\x80\x80\x80", "a\xc3", "a\xe2\x82", "a\xff"}) {
    EXPECT_EQ(find_invalid_utf8(bad), 1u) << bad;
  }
  EXPECT_EQ(cut_to_width("\xc3\xa9\xc3\xa9x", 2), "\xc3\xa9\xc3\xa9");
  EXPECT_EQ(cut_to_width("ab", 9), "ab");
}

// ---- hashes ----

TEST(Hash, KnownValues) {
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(xxh3_hex(""), "99aa06d3014798d86001c324468d497f");  // as `xxhsum -H2` prints
}

TEST(Hash, PiecesEqualTheWhole) {
  std::mt19937 random(1);
  for (int round = 0; round < 50; ++round) {
    std::string bytes(random() % 5000, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    Xxh3Hash xxh3;
    Sha256Hash sha;
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t piece = std::min<std::size_t>(random() % 700 + 1, bytes.size() - at);
      xxh3.update(bytes.data() + at, piece);
      sha.update(bytes.data() + at, piece);
      at += piece;
      if (round % 10 == 0) sha.hex();  // looking does not disturb
    }
    EXPECT_EQ(xxh3.hex(), xxh3_hex(bytes));
    EXPECT_EQ(sha.hex(), sha256_hex(bytes));
  }
}

// ---- JSON ----

TEST(Json, StrictReading) {
  EXPECT_EQ(parse_json(R"({"a": [1, {"b": 2}], "c": {"a": 1}})", "j").at("a").at(1).at("b"), 2);
  for (const char* bad :
       {R"({"a": 1, "a": 2})", R"([{"x": {"a": 1, "a": 1}}])", "{", "", "[1] 2", "\xef\xbb\xbf{}",
        "{\"a\": NaN}", "[1,]", "{\"a\": \"\xff\"}", "// c\n{}"}) {
    EXPECT_THROW(parse_json(bad, "j"), Error) << bad;
  }
  EXPECT_THROW(parse_json(std::string_view("{}\0garbage", 10), "j"), Error);
  EXPECT_THROW(parse_json(std::string(200, '[') + std::string(200, ']'), "j"), Error);
  EXPECT_THROW(parse_json(std::string(300'000, '['), "j"), Error);
  try {
    parse_json(R"({"k": 1, "k": 2})", "file.json", ErrorKind::kDamaged);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kDamaged);
    EXPECT_THAT(error.what(), HasSubstr("file.json: key \"k\" stands twice"));
  }
}

TEST(Json, NumbersReadBackExactly) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 2000; ++i) {
    const std::uint64_t bits = random();
    double value;
    std::memcpy(&value, &bits, sizeof value);
    if (!std::isfinite(value)) continue;
    EXPECT_EQ(parse_json(nlohmann::json(value).dump(), "j").get<double>(), value);
  }
  EXPECT_EQ(nlohmann::json(std::numeric_limits<double>::infinity()).dump(), "null");
}

}  // namespace
}  // namespace dropless::train
