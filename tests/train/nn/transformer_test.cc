// Names, counts and the cache of the whole model. Its values are checked against a plain PyTorch
// model by tests/cli/test_plain_model.py.
#include "train/nn/transformer.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "dropless/error.h"

namespace dropless::train {
namespace {

ModelConfig parse(const std::string& extra) {
  const std::string text =
      "{d_model: 16, n_heads: 2, n_layers: 2, max_seq_len: 12, vocab_size: 20" + extra + "}";
  return ModelConfig::from_yaml(YamlDocument::parse(text, "t.yaml").root());
}

constexpr const char* kMoE =
    ", no_bias: true, attn_config: {rope: true}, ffn_config: {ffn_type: mb_dmoe, mlp_type: glu, "
    "moe_num_experts: 4, moe_top_k: 1, ffn_hidden_size: 8}";

TEST(Transformer, NamesAreLlmFoundrys) {
  const Transformer model(parse(kMoE), 1, at::kCPU);
  std::vector<std::string> names;
  for (const Parameter& parameter : model.parameters()) names.push_back(parameter.name);
  const std::vector<std::string> block{"norm_1.weight",           "attn.Wqkv.weight",
                                       "attn.out_proj.weight",    "norm_2.weight",
                                       "ffn.router.layer.weight", "ffn.experts.mlp.w1",
                                       "ffn.experts.mlp.v1",      "ffn.experts.mlp.w2"};
  std::vector<std::string> expected{"transformer.wte.weight"};
  for (const char* i : {"0", "1"}) {
    for (const std::string& name : block) {
      expected.push_back("transformer.blocks." + std::string(i) + "." + name);
    }
  }
  expected.push_back("transformer.norm_f.weight");
  EXPECT_EQ(names, expected);
}

TEST(Transformer, DenseNamesWithBiases) {
  const Transformer model(parse(", tie_word_embeddings: false"), 1, at::kCPU);
  std::set<std::string> names;
  for (const Parameter& parameter : model.parameters()) names.insert(parameter.name);
  for (const char* name :
       {"transformer.wpe.weight", "transformer.blocks.1.attn.Wqkv.bias",
        "transformer.blocks.0.ffn.up_proj.weight", "transformer.blocks.0.ffn.down_proj.bias",
        "transformer.norm_f.bias", "lm_head.weight"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
}

TEST(Transformer, SharedExpertsNames) {
  const std::string shared(", shared_expert: true, shared_expert_gate: true}");
  const std::string moe(kMoE);
  const Transformer model(parse(moe.substr(0, moe.size() - 1) + shared), 1, at::kMeta);
  std::map<std::string, std::vector<std::int64_t>> shapes;
  for (const Parameter& parameter : model.parameters()) {
    shapes[parameter.name] = parameter.value.sizes().vec();
  }
  const std::string ffn = "transformer.blocks.1.ffn.";
  using Shape = std::vector<std::int64_t>;
  EXPECT_EQ(shapes[ffn + "shared_expert.up_proj.weight"], (Shape{8, 16}));
  EXPECT_EQ(shapes[ffn + "shared_expert.gate_proj.weight"], (Shape{8, 16}));
  EXPECT_EQ(shapes[ffn + "shared_expert.down_proj.weight"], (Shape{16, 8}));
  EXPECT_EQ(shapes[ffn + "shared_expert_gate.weight"], (Shape{1, 16}));
}

TEST(Transformer, CountsActiveParameters) {
  const ParameterCount count = Transformer(parse(kMoE), 1, at::kMeta).count();
  const std::int64_t experts = 2 * 3 * 4 * 8 * 16;
  const std::int64_t rest = 20 * 16 + 16 + 2 * (16 + 16 + 48 * 16 + 16 * 16 + 4 * 16);
  EXPECT_EQ(count.total, rest + experts);
  EXPECT_EQ(count.active, rest + experts / 4);
}

TEST(Transformer, CacheGivesWhatTheWholePassGives) {
  for (const std::string& extra : {std::string(kMoE), std::string()}) {
    Transformer model(parse(extra), 3, at::kCPU);
    at::NoGradGuard no_grad;
    at::manual_seed(1);
    const at::Tensor tokens = at::randint(0, 20, {2, 10}, at::kLong);
    RouterRecord record;
    const at::Tensor whole = model.forward(tokens, record);
    ModelCache cache;
    std::vector<at::Tensor> parts{model.forward(tokens.narrow(1, 0, 4), record, &cache)};
    for (int s = 4; s < 10; ++s) {
      parts.push_back(model.forward(tokens.narrow(1, s, 1), record, &cache));
    }
    EXPECT_LT((at::cat(parts, 1) - whole).abs().max().item<double>(), 1e-4);
  }
}

TEST(Transformer, LearnedPositionsRunOut) {
  Transformer model(parse(""), 3, at::kCPU);
  RouterRecord record;
  EXPECT_THROW(model.forward(at::zeros({1, 13}, at::kLong), record), Error);
}

TEST(CrossEntropy, SumsOverLabelledPositions) {
  at::manual_seed(5);
  const at::Tensor logits = at::randn({2, 3, 7});
  at::Tensor labels = at::randint(0, 7, {2, 3}, at::kLong);
  labels[0][2] = -100;
  double expected = 0;
  const at::Tensor log_p = at::log_softmax(logits.to(at::kDouble), -1);
  for (int b = 0; b < 2; ++b) {
    for (int s = 0; s < 3; ++s) {
      const auto label = labels[b][s].item<std::int64_t>();
      if (label >= 0) expected -= log_p[b][s][label].item<double>();
    }
  }
  EXPECT_NEAR(cross_entropy_sum(logits, labels).item<double>(), expected, 1e-4);
}

TEST(ModelConfig, RefusesWhatItDoesNotHave) {
  for (const char* extra :
       {", name: hf_causal_lm", ", norm_type: batchnorm", ", resid_pdrop: 0.1", ", logit_scale: 2",
        ", n_heads: 0", ", ffn_config: {ffn_type: mb_moe}", ", ffn_config: {ffn_type: te_ln_mlp}",
        ", d_modle: 3", ", expansion_ratio: 0"}) {
    EXPECT_THROW(parse(extra), Error) << extra;
  }
}

}  // namespace
}  // namespace dropless::train
