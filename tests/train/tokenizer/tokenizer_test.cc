#include "train/tokenizer/tokenizer.h"

#include "tests/train/data/fixture.h"

namespace dropless::train {
namespace {

TEST(BytesTokenizer, RoundTripsAnyBytes) {
  const auto tokenizer = make_tokenizer("bytes");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->eos_id(), 256);
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  auto ids = tokenizer->encode(all);
  ASSERT_EQ(ids.size(), 256u);
  EXPECT_EQ(ids[200], 200);
  EXPECT_EQ(tokenizer->decode_bytes(ids), all);
  ids.push_back(256);
  EXPECT_EQ(tokenizer->decode_bytes(ids), all);
}

TEST(BytesTokenizer, RefusesIdsOutsideTheVocabulary) {
  const auto tokenizer = make_tokenizer("bytes");
  for (const TokenId id : {-1, 257}) {
    expect_error(ErrorKind::kInvalidArgument, {std::to_string(id), "257"},
                 [&] { tokenizer->decode(std::span(&id, 1)); });
  }
}

TEST(Tokenizer, UnknownNamesAreRefused) {
  expect_error(ErrorKind::kInvalidArgument, {"gpt2"}, [] { make_tokenizer("gpt2"); });
}

// Pairs from Python: bytes.decode('utf-8', errors='replace').
TEST(Utf8, ReplacesAsPythonDoes) {
  const std::string r = "\xef\xbf\xbd";
  const std::pair<std::string, std::string> cases[] = {
      {"plain \xc3\xa4", "plain \xc3\xa4"},
      {"\xff", r},
      {"\xc3", r},
      {"a\xe2\x82z", "a" + r + "z"},
      {"\xe2\x82\xe2\x82\xac", r + "\xe2\x82\xac"},
      {"\xf0\x9f\x98", r},
      {"\xf0\x9f\x98x", r + "x"},
      {"\xed\xa0\x80", r + r + r},  // a surrogate
      {"\xc0\xaf", r + r},          // overlong
      {"\xe0\x80\x80", r + r + r},
      {"\xf4\x90\x80\x80", r + r + r + r},
      {"\x80\x80", r + r},
  };
  for (const auto& [bytes, want] : cases) EXPECT_EQ(replace_invalid_utf8(bytes), want);
}

}  // namespace
}  // namespace dropless::train
