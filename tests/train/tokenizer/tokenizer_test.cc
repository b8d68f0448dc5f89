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

// mistral-common's files end in their versions: tokenizer.model.v1, ....model.v7m1.
TEST(Tokenizer, ModelFilesMayEndInAVersion) {
  const std::string model = slurp(fixture_path("tokenizer/bpe.model"));
  const auto want = make_tokenizer(fixture_path("tokenizer/bpe.model"))->encode("Hello world");
  for (const char* name : {"tokenizer.model.v1", "a.model.v7m1", "t.model.v15"}) {
    ScratchFolder scratch;
    spill(scratch / name, model);
    EXPECT_EQ(make_tokenizer(scratch / name)->encode("Hello world"), want) << name;
    EXPECT_EQ(make_tokenizer(scratch / "")->encode("Hello world"), want) << name;
  }
  for (const char* name : {"t.model.v", "t.model.vx", "t.model.v1.zip", "t.v1", "t.model.v1 (2)"}) {
    ScratchFolder scratch;
    spill(scratch / name, model);
    expect_error(ErrorKind::kInvalidArgument, {name, "no tokenizer that is known"},
                 [&] { make_tokenizer(scratch / name); });
  }
}

// A tokenizer.json of single characters, with the members that `change` alters.
std::shared_ptr<const Tokenizer> tokenizer_of(const std::function<void(nlohmann::json&)>& change) {
  ScratchFolder scratch;
  nlohmann::json json = {{"added_tokens", {{{"id", 3}, {"content", "fox"}, {"single_word", true}}}},
                         {"pre_tokenizer", {{"type", "Whitespace"}}},
                         {"model",
                          {{"type", "BPE"},
                           {"vocab", {{"a", 0}, {"\u200d", 1}, {"a\u200d", 2}}},
                           {"merges", {"a \u200d"}}}}};
  change(json);
  spill(scratch / "t.json", json.dump());
  return make_tokenizer(scratch / "t.json");
}

// What `tokenizers` 0.22.2 takes for a part of a word: besides letters, marks, digits and connectors the numbers that
// are letters, circled letters and the two joiners.
TEST(AddedTokens, SingleWordsEndWhereThePackagesDo) {
  const auto tokenizer = tokenizer_of([](auto&) {});
  for (const char* word :
       {"x", "\u00e4", "\u0301", "7", "_", "\u200c", "\u200d", "\u2167", "\u3007", "\u24b6",
        "\u24e9", "\U0001f130", "\U0001f169", "\U0001f189"}) {
    for (const std::string& text : {std::string(word) + "fox", std::string("fox") + word}) {
      const auto ids = tokenizer->encode(text);
      EXPECT_EQ(std::count(ids.begin(), ids.end(), 3), 0) << text;
    }
  }
  for (const char* other : {" ", "-", "\u00b2", "\u200b", "\u200e", "\u2070", "\u24b5", "\u24ea",
                            "\U0001f14a", "\U0001f44d"}) {
    EXPECT_EQ(tokenizer->encode(std::string(other) + "fox" + other), std::vector<TokenId>{3})
        << other;
  }
  // The pre-tokenizer Whitespace goes by the same.
  EXPECT_EQ(tokenizer->encode("a\u200d"), std::vector<TokenId>{2});
}

TEST(JsonTokenizer, NamesTheKeyThatIsOfAnotherType) {
  for (const auto& [pointer, value, said] :
       {std::tuple("/model", nlohmann::json(), "t.json: 'model' is null, not an object"),
        {"/model", nlohmann::json::array(), "t.json: 'model' is an array, not an object"},
        {"/model/vocab", nlohmann::json(), "t.json: model: 'vocab' is null, not an object"},
        {"/model/merges", nlohmann::json(), "t.json: model: 'merges' is null, not an array"},
        {"/model/merges", nlohmann::json("a b"),
         "t.json: model: 'merges' is a string, not an array"}}) {
    expect_error(ErrorKind::kInvalidArgument, {said}, [&] {
      tokenizer_of(
          [&](nlohmann::json& json) { json[nlohmann::json::json_pointer(pointer)] = value; });
    });
  }
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
