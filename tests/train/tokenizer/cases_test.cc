// Ids and texts equal to those of tokenizers, tiktoken and sentencepiece (make_tokenizer_cases.py).
#include "tests/train/data/fixture.h"
#include "train/base/utf8.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {
namespace {

std::string from_hex(const std::string& hex) {
  std::string out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
    out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return out;
}

class TokenizerCases : public testing::TestWithParam<std::string> {
 protected:
  static const nlohmann::json& cases() {
    static const auto json = nlohmann::json::parse(slurp(fixture_path("tokenizer/cases.json")));
    return json;
  }
};

TEST_P(TokenizerCases, GiveThePackagesIdsAndTexts) {
  const auto tokenizer = make_tokenizer(fixture_path("tokenizer/" + GetParam()));
  const auto& want = cases()["tokenizers"][GetParam()];
  const auto& texts = cases()["texts"];
  ASSERT_GT(texts.size(), 60u);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::string text = from_hex(texts[i].get<std::string>());
    const auto ids = want["ids"][i].get<std::vector<TokenId>>();
    EXPECT_EQ(tokenizer->encode(text), ids) << "text " << i << ": " << text;
    const auto& decoded = want["decoded"][i];
    EXPECT_EQ(tokenizer->decode(ids),
              decoded.is_null() ? replace_invalid_utf8(text) : decoded.get<std::string>())
        << "text " << i << ": " << text;
  }
}

// Id by id, as generated text is printed, the same text comes out.
TEST_P(TokenizerCases, StreamTheSameText) {
  const auto tokenizer = make_tokenizer(fixture_path("tokenizer/" + GetParam()));
  for (const auto& row : cases()["tokenizers"][GetParam()]["ids"]) {
    const auto ids = row.get<std::vector<TokenId>>();
    const std::string whole = tokenizer->decode_bytes(ids, true);
    std::string streamed;
    for (std::size_t i = 0; i < ids.size(); ++i)
      streamed += tokenizer->decode_bytes({&ids[i], 1}, i == 0);
    EXPECT_EQ(streamed, whole);
  }
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerCases,
                         testing::Values("gpt2.json", "neox.json", "llama3.json", "qwen.json",
                                         "deepseek.json", "llama2.json", "mixed.json",
                                         "small.cl100k_base.tiktoken", "small.o200k_base.tiktoken",
                                         "small.r50k_base.tiktoken", "bpe.model", "unigram.model",
                                         "unigram_unk.model"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

}  // namespace
}  // namespace dropless::train
