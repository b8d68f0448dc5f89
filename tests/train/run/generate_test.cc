// The filters and the draw, on a model whose logits are known.
#include "train/run/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "dropless/error.h"
#include "train/bridge/device.h"

namespace dropless::train {
namespace {

// Asked before any operator: libtorch looks for CUDA once, and an operator makes it look.
const bool kCuda = cuda_available();

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
  options.min_p = 0.5 * (p[order[3]] + p[order[4]]) / p[order[0]];  // between the fourth and fifth
  EXPECT_EQ(drawn(options), (std::set<TokenId>{order[0], order[1], order[2], order[3]}));
  options.min_p = 0;
  options.temperature = 0;
  EXPECT_EQ(drawn(options), (std::set<TokenId>{order[0]}));
}

TEST(Generate, StopsAtEosAndIncludesIt) {
  Transformer model(tiny(), 5, at::kCPU);
  GenerateOptions options;
  options.max_new_tokens = 50;
  const auto free = generate(model, {{1, 2}}, options).sequences[0];
  options.eos = {free[3]};
  const GenerateResult stopped = generate(model, {{1, 2}}, options);
  EXPECT_EQ(stopped.finish[0], Finish::kEos);
  EXPECT_EQ(stopped.sequences[0].back(), options.eos[0]);
  EXPECT_LE(stopped.sequences[0].size(), 4u);
}

TEST(Generate, RepetitionPenaltyIsOfTheLogits) {
  Transformer model(tiny(), 5, at::kCPU);
  GenerateOptions options;
  options.temperature = 0;
  options.max_new_tokens = 12;
  options.repetition_penalty = 20.0;
  const std::vector<TokenId> prompt{3, 1};
  const std::vector<TokenId> sequence = generate(model, {prompt}, options).sequences[0];
  options.repetition_penalty = 1;
  EXPECT_NE(generate(model, {prompt}, options).sequences[0], sequence);
  // By hand, without a cache.
  options.max_new_tokens = 0;
  std::vector<TokenId> ids = prompt;
  for (const TokenId id : sequence) {
    std::vector<float> logits = generate(model, {ids}, options).logits_last[0];
    for (const TokenId seen : std::set<TokenId>(ids.begin(), ids.end())) {
      logits[seen] = logits[seen] < 0 ? logits[seen] * 20.0f : logits[seen] / 20.0f;
    }
    EXPECT_EQ(id, std::max_element(logits.begin(), logits.end()) - logits.begin());
    ids.push_back(id);
  }
}

TEST(Generate, NeighboursAndLengthsChangeNothing) {
  const std::vector<std::vector<TokenId>> prompts{{3, 1, 4, 1, 5}, {9}, {2, 6}, {5, 3, 5, 8, 9, 7}};
  for (const char* positions : {"attn_config: {rope: true}", "learned_pos_emb: true",
                                "attn_config: {rope: true, kv_n_heads: 1, attn_type: "
                                "multiquery_attention}, ffn_config: {ffn_type: mb_dmoe, "
                                "moe_num_experts: 4, moe_top_k: 2, moe_world_size: 1}"}) {
    SCOPED_TRACE(positions);
    const std::string block = std::string(
                                  "{d_model: 8, n_heads: 2, n_layers: 2, max_seq_len: 32, "
                                  "vocab_size: 12, no_bias: true, ") +
                              positions + "}";
    Transformer model(ModelConfig::from_yaml(YamlDocument::parse(block, "t.yaml").root()), 5,
                      at::kCPU);
    GenerateOptions options;
    options.max_new_tokens = 20;
    options.seed = 7;
    const GenerateResult together = generate(model, prompts, options);
    double loss = 0, scored = 0;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      options.seed = 7 + i;
      const GenerateResult alone = generate(model, {prompts[i]}, options);
      EXPECT_EQ(together.sequences[i], alone.sequences[0]);
      double difference = 0, size = 0;
      for (std::size_t v = 0; v < 12; ++v) {
        const double ours = together.logits_last[i][v], theirs = alone.logits_last[0][v];
        difference += (ours - theirs) * (ours - theirs);
        size += theirs * theirs;
      }
      EXPECT_LT(std::sqrt(difference / size), 1e-5);
      const auto n = static_cast<double>(prompts[i].size() - 1);
      if (n > 0) loss += *alone.cross_entropy * n;
      scored += n;
    }
    EXPECT_NEAR(*together.cross_entropy, loss / scored, 1e-5);
  }
}

TEST(Generate, StopsAtATextAcrossTokens) {
  const auto tokenizer = make_tokenizer("bytes");
  ModelConfig config = tiny();
  config.vocab_size = 257;
  Transformer model(config, 5, at::kCPU);
  GenerateOptions options;
  options.max_new_tokens = 40;
  const std::vector<TokenId> free = generate(model, {{1, 2}, {1}}, options).sequences[0];
  const std::string text = tokenizer->decode_bytes(free);
  options.stop = {"never said", text.substr(5, 3)};
  options.tokenizer = tokenizer.get();
  const std::size_t at = text.find(options.stop[1]);
  const GenerateResult stopped = generate(model, {{1, 2}, {1}}, options);
  EXPECT_EQ(stopped.finish[0], Finish::kStop);
  EXPECT_EQ(tokenizer->decode_bytes(stopped.sequences[0]), text.substr(0, at + 3));
  EXPECT_EQ(stopped.finish[1], Finish::kLength);
  EXPECT_EQ(stopped.sequences[1].size(), 40u);
  options.tokenizer = nullptr;
  EXPECT_THROW(generate(model, {{1, 2}}, options), Error);
}

// Released models have rows of embeddings that no token uses.
TEST(Generate, DrawsNoIdThatTheTokenizerLacks) {
  const auto tokenizer = make_tokenizer("bytes");
  ModelConfig config = tiny();
  config.vocab_size = 1024;  // the bytes' 257, padded: three draws in four would miss them
  Transformer model(config, 5, at::kCPU);
  GenerateOptions options;
  options.max_new_tokens = 40;
  const auto largest = [&] {
    const auto ids = generate(model, {{1, 2}, {1}}, options).sequences;
    return std::max(*std::max_element(ids[0].begin(), ids[0].end()),
                    *std::max_element(ids[1].begin(), ids[1].end()));
  };
  EXPECT_GE(largest(), 257);  // without one anything goes
  options.tokenizer = tokenizer.get();
  EXPECT_LT(largest(), 257);
  options.temperature = 0;
  options.repetition_penalty = 1000;  // of all that were seen, also where the prompt has such an id
  EXPECT_LT(largest(), 257);
  EXPECT_LT(generate(model, {{1000, 1}}, options).sequences[0].back(), 257);
  // An EOS of the model's own ends a sequence all the same, and has no text.
  options = {};
  options.max_new_tokens = 4000;
  options.tokenizer = tokenizer.get();
  for (TokenId id = 257; id < 1024; ++id) options.eos.push_back(id);
  const GenerateResult ended = generate(model, {{1, 2}}, options);
  EXPECT_EQ(ended.finish[0], Finish::kEos);
  EXPECT_GE(ended.sequences[0].back(), 257);
  const std::vector<TokenId> before(ended.sequences[0].begin(), ended.sequences[0].end() - 1);
  EXPECT_EQ(text_of(*tokenizer, ended.sequences[0]), tokenizer->decode(before));
}

TEST(Generate, RefusesBadOptionsAndPrompts) {
  Transformer model(tiny(), 5, at::kCPU);
  EXPECT_THROW(generate(model, {}, {}), Error);
  EXPECT_THROW(generate(model, {{}}, {}), Error);
  EXPECT_THROW(generate(model, {{12}}, {}), Error);
  GenerateOptions options;
  options.temperature = std::nan("");
  EXPECT_THROW(generate(model, {{1}}, options), Error);
  options = {};
  options.min_p = 1.5;
  EXPECT_THROW(generate(model, {{1}}, options), Error);
  options = {};
  options.repetition_penalty = 0;
  EXPECT_THROW(generate(model, {{1}}, options), Error);
  options = {};
  options.stop = {""};
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

// On a GPU tokens come out of a captured graph, captured anew where its room ends; the CPU's passes grow.
TEST(Generate, TokensOfAGpuAreTheCpus) {
  if (!kCuda) GTEST_SKIP() << "no GPU";
  const std::string size = "d_model: 64, n_heads: 4, n_layers: 2, vocab_size: 40, ";
  for (const std::string& rest :
       {std::string("max_seq_len: 400, no_bias: true, attn_config: {rope: true, qk_ln: true, "
                    "attn_type: grouped_query_attention, kv_n_heads: 2, sliding_window_size: 20}"),
        std::string("max_seq_len: 400"),  // learned positions, biases, LayerNorm
        std::string("max_seq_len: 400, attn_config: {alibi: true}, ffn_config: {ffn_type: mptglu}, "
                    "emb_pdrop: 0.0")}) {
    const ModelConfig config =
        ModelConfig::from_yaml(YamlDocument::parse("{" + size + rest + "}", "t.yaml").root());
    GenerateOptions options;
    options.max_new_tokens = 300;  // beyond the first graph's room
    options.temperature = 0;
    const std::vector<std::vector<TokenId>> prompts{{1, 2, 3, 4, 5, 6, 7}, {9}, {30, 31}};
    Transformer on_cpu(config, 3, at::kCPU), on_gpu(config, 3, choose_device("cuda"));
    const auto expected = generate(on_cpu, prompts, options).sequences;
    EXPECT_EQ(generate(on_gpu, prompts, options).sequences, expected) << rest;
    options.max_new_tokens = 10;  // not worth a graph
    const auto few = generate(on_gpu, prompts, options).sequences;
    for (std::size_t b = 0; b < prompts.size(); ++b) {
      EXPECT_TRUE(std::equal(few[b].begin(), few[b].end(), expected[b].begin())) << rest;
    }
  }
}

}  // namespace
}  // namespace dropless::train
