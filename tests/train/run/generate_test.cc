// The filters and the draw, on a model whose logits are known.
#include "train/run/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "dropless/error.h"

namespace dropless::train {
namespace {

ModelConfig tiny() {
  return ModelConfig::from_yaml(
      YamlDocument::parse("{d_model: 8, n_heads: 2, n_layers: 1, max_seq_len: 64, vocab_size: 12, "
                          "no_bias: true, attn_config: {rope: true}}",
                          "t.yaml")
          .root());
}

std::vector<double> next_probabilities(Transformer& model, const std::vector<TokenId>& prompt) {
  GenerateOptions options;
  options.max_new_tokens = 0;
  const GenerateResult result = generate(model, {prompt}, options);
  const at::Tensor logits = at::tensor(at::ArrayRef<float>(result.logits_last[0])).to(at::kDouble);
  const at::Tensor p = at::softmax(logits, 0);
  return {p.data_ptr<double>(), p.data_ptr<double>() + p.numel()};
}

TEST(Generate, DrawsWithTheModelsProbabilities) {
  Transformer model(tiny(), 5, at::kCPU);
  const std::vector<double> p = next_probabilities(model, {3, 1});
  constexpr int kDraws = 4000;
  std::map<TokenId, int> count;
  GenerateOptions options;
  options.max_new_tokens = 1;
  const std::vector<std::vector<TokenId>> prompts(kDraws, {3, 1});
  for (const auto& sequence : generate(model, prompts, options).sequences) ++count[sequence[0]];
  double chi2 = 0;
  for (TokenId id = 0; id < 12; ++id) {
    const double expected = p[id] * kDraws;
    chi2 += (count[id] - expected) * (count[id] - expected) / expected;
  }
  EXPECT_LT(chi2, 31.3);  // 11 degrees of freedom, one in a thousand; the seed is fixed
}

TEST(Generate, FiltersKeepTheLikeliest) {
  Transformer model(tiny(), 5, at::kCPU);
  const std::vector<double> p = next_probabilities(model, {3, 1});
  std::vector<TokenId> order(12);
  for (TokenId id = 0; id < 12; ++id) order[id] = id;
  std::sort(order.begin(), order.end(), [&](TokenId a, TokenId b) { return p[a] > p[b]; });
  const std::vector<std::vector<TokenId>> prompts(300, {3, 1});
  const auto drawn = [&](const GenerateOptions& options) {
    std::set<TokenId> ids;
    for (const auto& sequence : generate(model, prompts, options).sequences)
      ids.insert(sequence[0]);
    return ids;
  };
  GenerateOptions options;
  options.max_new_tokens = 1;
  options.top_k = 3;
  EXPECT_EQ(drawn(options), (std::set<TokenId>{order[0], order[1], order[2]}));
  options.top_k = 0;
  options.top_p = p[order[0]] + 0.5 * p[order[1]];  // reached with the second
  EXPECT_EQ(drawn(options), (std::set<TokenId>{order[0], order[1]}));
  options.top_p = 1e-9;
  EXPECT_EQ(drawn(options), (std::set<TokenId>{order[0]}));
  options.top_p = 1;
  options.temperature = 0;
  EXPECT_EQ(drawn(options), (std::set<TokenId>{order[0]}));
}

TEST(Generate, StopsAtEosAndIncludesIt) {
  Transformer model(tiny(), 5, at::kCPU);
  GenerateOptions options;
  options.max_new_tokens = 50;
  const auto free = generate(model, {{1, 2}}, options).sequences[0];
  options.eos = free[3];
  const GenerateResult stopped = generate(model, {{1, 2}}, options);
  EXPECT_TRUE(stopped.stopped_at_eos[0]);
  EXPECT_EQ(stopped.sequences[0].back(), *options.eos);
  EXPECT_LE(stopped.sequences[0].size(), 4u);
}

TEST(Generate, RefusesBadOptionsAndPrompts) {
  Transformer model(tiny(), 5, at::kCPU);
  EXPECT_THROW(generate(model, {}, {}), Error);
  EXPECT_THROW(generate(model, {{}}, {}), Error);
  EXPECT_THROW(generate(model, {{1}, {1, 2}}, {}), Error);
  EXPECT_THROW(generate(model, {{12}}, {}), Error);
  GenerateOptions options;
  options.temperature = std::nan("");
  EXPECT_THROW(generate(model, {{1}}, options), Error);
}

TEST(Generate, RuinedWeightsAreAnError) {
  Transformer model(tiny(), 5, at::kCPU);
  model.parameters()[0].value.detach().fill_(std::nanf(""));
  try {
    generate(model, {{3, 1}}, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNonFinite);
  }
}

}  // namespace
}  // namespace dropless::train
