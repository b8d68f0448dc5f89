// Names, counts and the cache of the whole model. Its values are checked against a plain PyTorch
// model by tests/cli/test_plain_model.py.
#include "train/nn/transformer.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <set>
#include <utility>

#include "dropless/error.h"
#include "train/bridge/device.h"
#include "train/nn/precision.h"

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

// Losses, the router's among them, and the gradient of every parameter.
std::vector<at::Tensor> pass_and_gradients(const ModelConfig& config, const PassOptions& options,
                                           bool bf16) {
  Transformer model(config, 1, at::kCPU);
  const at::Tensor tokens = at::arange(24, at::kLong).remainder(20).view({2, 12});
  RouterRecord record;
  record.want_entropy = true;
  at::Tensor loss;
  {
    const AutocastGuard autocast(bf16 ? Precision::kAmpBf16 : Precision::kFp32, at::kCPU);
    const at::Tensor logits = model.forward(tokens, record, nullptr, options);
    loss = cross_entropy_sum(logits, tokens.roll(-1, 1));
    if (config.moe()) loss = loss + at::stack(record.losses_2).sum();
  }
  loss.backward();
  std::vector<at::Tensor> all{loss.detach()};
  for (const Parameter& parameter : model.parameters()) all.push_back(parameter.value.grad());
  for (const auto& list : {record.losses_2, record.tokens_per_expert_E, record.entropy}) {
    for (const at::Tensor& tensor : list) all.push_back(tensor.detach());
  }
  return all;
}

TEST(Transformer, RecomputedBlocksGiveTheSameGradients) {
  const std::string dropped = ", resid_pdrop: 0.2, emb_pdrop: 0.1";
  for (const std::string& text : {std::string(kMoE) + dropped, std::string(kMoE), dropped}) {
    for (const bool bf16 : {false, true}) {
      PassOptions options;
      options.noise_seed = 7;
      const auto kept = pass_and_gradients(parse(text), options, bf16);
      options.recompute_blocks = true;
      const auto again = pass_and_gradients(parse(text), options, bf16);
      ASSERT_EQ(kept.size(), again.size());
      for (std::size_t i = 0; i < kept.size(); ++i) {
        ASSERT_TRUE(again[i].defined()) << i;
        EXPECT_TRUE(at::allclose(kept[i], again[i], 1e-5, 1e-6)) << text << " tensor " << i;
      }
    }
  }
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

TEST(Transformer, ChosenLayersAreMixtures) {
  const std::string moe(kMoE);
  const Transformer model(
      parse(moe.substr(0, moe.size() - 1) + ", moe_layers: [1], dense_ffn_hidden_size: 24}"), 1,
      at::kMeta);
  std::map<std::string, std::vector<std::int64_t>> shapes;
  for (const Parameter& parameter : model.parameters()) {
    shapes[parameter.name] = parameter.value.sizes().vec();
  }
  using Shape = std::vector<std::int64_t>;
  EXPECT_EQ(shapes["transformer.blocks.0.ffn.gate_proj.weight"], (Shape{24, 16}));
  EXPECT_FALSE(shapes.contains("transformer.blocks.0.ffn.router.layer.weight"));
  EXPECT_EQ(shapes["transformer.blocks.1.ffn.experts.mlp.w1"], (Shape{32, 16}));
  EXPECT_FALSE(shapes.contains("transformer.blocks.1.ffn.up_proj.weight"));
}

TEST(Transformer, CountsActiveParameters) {
  const ParameterCount count = Transformer(parse(kMoE), 1, at::kMeta).count();
  const std::int64_t experts = 2 * 3 * 4 * 8 * 16;
  const std::int64_t rest = 20 * 16 + 16 + 2 * (16 + 16 + 48 * 16 + 16 * 16 + 4 * 16);
  EXPECT_EQ(count.total, rest + experts);
  EXPECT_EQ(count.active, rest + experts / 4);
}

TEST(Transformer, CacheGivesWhatTheWholePassGives) {
  for (const std::string& extra :
       {std::string(kMoE), std::string(),
        std::string(", attn_config: {alibi: true}, logit_scale: 0.5, final_logit_softcapping: 3"),
        std::string(", block_overrides: {order: [{name: near}, {name: default}], "
                    "overrides: {near: {attn_config: {sliding_window_size: 2}}}}")}) {
    Transformer model(parse(extra), 3, at::kCPU);
    at::NoGradGuard no_grad;
    at::manual_seed(1);
    const at::Tensor tokens = at::randint(0, 20, {2, 10}, at::kLong);
    RouterRecord record;
    const at::Tensor whole = model.forward(tokens, record);
    ModelCache cache;
    std::vector<at::Tensor> parts{model.forward(tokens.narrow(1, 0, 4), record, &cache)};
    ModelCache room = with_room(cache, 12);
    for (int s = 4; s < 10; ++s) {
      parts.push_back(model.forward(tokens.narrow(1, s, 1), record, &cache));
      PassOptions options;
      options.position_1 = at::full({1}, s, at::kLong);
      const at::Tensor there = model.forward(tokens.narrow(1, s, 1), record, &room, options);
      EXPECT_LT((there - parts.back()).abs().max().item<double>(), 1e-5) << extra;
    }
    EXPECT_LT((at::cat(parts, 1) - whole).abs().max().item<double>(), 1e-4);
  }
}

// In bf16 a GPU takes the kernels of a token's pass for it; elsewhere libtorch's operators do the same.
TEST(Transformer, PaddedRowsInACacheWithRoom) {
  struct Place {
    at::Device device;
    Precision precision;
    WeightOptions weights = {};
  };
  std::vector<Place> places{{at::kCPU, Precision::kFp32}};
  if (cuda_available()) {
    places.push_back({choose_device("cuda"), Precision::kFp32});
    places.push_back({choose_device("cuda"), Precision::kAmpBf16});
    places.push_back({choose_device("cuda"), Precision::kAmpBf16, {.matrices = at::kBFloat16}});
  }
  for (const auto& [device, precision, weights] : places) {
    for (const char* extra :
         {", attn_config: {rope: true, qk_gn: true, clip_qkv: 0.9}, no_bias: true, ffn_config: "
          "{ffn_type: mb_dmoe, mlp_type: glu, moe_num_experts: 4, moe_top_k: 2, ffn_hidden_size: "
          "16, shared_expert: true}",
          ", attn_config: {rope: true, attn_logit_softcapping: 2, attn_type: "
          "multiquery_attention}, ffn_config: {ffn_type: mb_dmoe, moe_num_experts: 2, "
          "ffn_hidden_size: 16}",
          ", attn_config: {alibi: true, sliding_window_size: 3}", ""}) {
      Transformer model(parse(extra), 3, device, weights);
      at::NoGradGuard no_grad;
      const AutocastGuard autocast(precision, device);
      at::manual_seed(1);
      const at::Tensor tokens = at::randint(0, 20, {3, 10}, at::kLong).to(device);
      PassOptions options;
      options.pads_B = at::tensor({0, 3, 1}, at::kLong).to(device);
      RouterRecord record;
      ModelCache cache;
      model.forward(tokens.narrow(1, 0, 5), record, &cache, options);
      ModelCache room = with_room(cache, 12);
      const double tolerance = precision == Precision::kFp32 ? 1e-5 : 2e-2;
      for (int s = 5; s < 10; ++s) {
        const at::Tensor token = tokens.narrow(1, s, 1);
        const at::Tensor grown = model.forward(token, record, &cache, options).to(at::kFloat);
        PassOptions there = options;
        there.position_1 = at::full({1}, s, at::kLong).to(device);
        const at::Tensor in_room = model.forward(token, record, &room, there).to(at::kFloat);
        EXPECT_LT(((in_room - grown).norm() / grown.norm()).item<double>(), tolerance)
            << extra << device << s;
      }
    }
  }
}

// Past the trained length every further token changes all angles, so what a cached pass gives for
// the last token is what a whole pass over the tokens so far gives.
TEST(Transformer, CacheOfDynamicScalingGivesWhatTheWholePassGives) {
  Transformer model(parse(", attn_config: {rope: true, rope_impl: hf, rope_hf_config: {type: "
                          "dynamic, factor: 3}}"),
                    3, at::kCPU);
  at::NoGradGuard no_grad;
  at::manual_seed(1);
  const at::Tensor tokens = at::randint(0, 20, {2, 16}, at::kLong);
  RouterRecord record;
  ModelCache cache;
  model.forward(tokens.narrow(1, 0, 9), record, &cache);
  for (int s = 9; s < 16; ++s) {
    const at::Tensor cached = model.forward(tokens.narrow(1, s, 1), record, &cache);
    ASSERT_EQ(cached.size(1), 1);
    const at::Tensor whole = model.forward(tokens.narrow(1, 0, s + 1), record);
    EXPECT_TRUE(at::allclose(cached.select(1, 0), whole.select(1, s), 1e-5, 1e-5)) << s;
  }
}

TEST(Transformer, NoiseFollowsItsSeed) {
  for (const char* extra :
       {", resid_pdrop: 0.2", ", emb_pdrop: 0.2", ", attn_config: {attn_pdrop: 0.2}"}) {
    Transformer model(parse(extra), 3, at::kCPU);
    at::NoGradGuard no_grad;
    const at::Tensor tokens = at::arange(10, at::kLong).unsqueeze(0);
    RouterRecord record;
    const auto pass = [&](std::optional<std::uint64_t> seed) {
      return model.forward(tokens, record, nullptr, {{}, seed});
    };
    const at::Tensor first = pass(5), other = pass(6);
    at::rand({3});  // what others draw in between changes nothing
    EXPECT_TRUE(at::equal(first, pass(5))) << extra;
    EXPECT_FALSE(at::equal(first, other)) << extra;
    EXPECT_FALSE(at::equal(first, pass({}))) << extra;
    EXPECT_TRUE(at::equal(pass({}), pass({}))) << extra;
  }
}

TEST(Transformer, WithoutNoiseNobodysGeneratorIsTouched) {
  Transformer model(parse(""), 3, at::kCPU);
  at::NoGradGuard no_grad;
  RouterRecord record;
  at::manual_seed(8);
  const at::Tensor expected = at::rand({4});
  at::manual_seed(8);
  model.forward(at::arange(10, at::kLong).unsqueeze(0), record, nullptr, {{}, 5});
  EXPECT_TRUE(at::equal(at::rand({4}), expected));
}

TEST(Transformer, PadsStayOutOfTheFeedForwardLayersWhereAsked) {
  at::NoGradGuard no_grad;
  const at::Tensor tokens = at::arange(12, at::kLong).view({2, 6});
  PassOptions options;
  options.kept_R = at::tensor({0, 1, 2, 3, 4, 5, 6, 7, 8}, at::kLong);  // the second row has 3
  const auto run = [&](const char* extra, RouterRecord& record) {
    return Transformer(parse(std::string(extra) + kMoE), 3, at::kCPU)
        .forward(tokens, record, nullptr, options)
        .view({12, 20});
  };
  RouterRecord with, without;
  const at::Tensor all = run("", with), kept = run(", use_pad_tok_in_ffn: false", without);
  EXPECT_TRUE(at::allclose(all.narrow(0, 0, 9), kept.narrow(0, 0, 9), 1e-5, 1e-6));
  EXPECT_FALSE(at::allclose(all.narrow(0, 9, 3), kept.narrow(0, 9, 3), 1e-5, 1e-6));
  EXPECT_EQ(with.tokens_per_expert_E.at(0).sum().item<std::int64_t>(), 12);
  EXPECT_EQ(without.tokens_per_expert_E.at(0).sum().item<std::int64_t>(), 9);
}

TEST(Transformer, EmbeddingFractionShrinksTheEmbeddingsGradient) {
  const auto gradients = [](const char* extra) {
    Transformer model(parse(extra), 3, at::kCPU);
    RouterRecord record;
    const at::Tensor tokens = at::arange(10, at::kLong).unsqueeze(0);
    model.forward(tokens, record, nullptr, {{}, 1}).square().mean().backward();
    std::map<std::string, at::Tensor> all;
    for (const Parameter& parameter : model.parameters()) {
      all[parameter.name] = parameter.value.grad();
    }
    return all;
  };
  auto whole = gradients(", tie_word_embeddings: false");
  auto part = gradients(", tie_word_embeddings: false, embedding_fraction: 0.25");
  for (const char* name : {"transformer.wte.weight", "transformer.wpe.weight"}) {
    EXPECT_TRUE(at::allclose(part[name], whole[name] * 0.25, 1e-4, 1e-7)) << name;
  }
  EXPECT_TRUE(at::allclose(part["lm_head.weight"], whole["lm_head.weight"], 1e-4, 1e-7));
}

TEST(Transformer, LogitsAreScaledThenCapped) {
  at::NoGradGuard no_grad;
  const at::Tensor tokens = at::arange(10, at::kLong).unsqueeze(0);
  const auto logits = [&](const char* extra) {
    RouterRecord record;
    return Transformer(parse(extra), 3, at::kCPU).forward(tokens, record);
  };
  const at::Tensor plain = logits("");
  EXPECT_TRUE(at::allclose(logits(", logit_scale: inv_sqrt_d_model"), plain / 4));
  EXPECT_TRUE(at::allclose(logits(", logit_scale: 3, final_logit_softcapping: 2"),
                           at::tanh(plain * 3 / 2) * 2));
}

TEST(Transformer, SeparateProjectionsAreTheFusedOne) {
  Transformer fused(parse(""), 3, at::kCPU);
  Transformer separate(parse(", attn_config: {fused_qkv: false}"), 3, at::kCPU);
  std::map<std::string, at::Tensor> of;
  for (const Parameter& parameter : fused.parameters()) of[parameter.name] = parameter.value;
  at::NoGradGuard no_grad;
  for (const Parameter& parameter : separate.parameters()) {
    const auto at = parameter.name.find("attn.W");
    if (at == std::string::npos) {
      parameter.value.copy_(of.at(parameter.name));
      continue;
    }
    const std::int64_t part = std::string("qkv").find(parameter.name[at + 6]);
    const std::string kind = parameter.name.substr(at + 7);
    const at::Tensor& whole = of.at(parameter.name.substr(0, at) + "attn.Wqkv" + kind);
    parameter.value.copy_(whole.narrow(0, part * 16, 16));
  }
  const at::Tensor tokens = at::arange(10, at::kLong).unsqueeze(0);
  RouterRecord record;
  EXPECT_TRUE(at::allclose(fused.forward(tokens, record), separate.forward(tokens, record)));
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
       {", name: hf_causal_lm", ", norm_type: batchnorm", ", resid_pdrop: 1", ", logit_scale: 0",
        ", logit_scale: sqrt", ", embedding_fraction: 1.5", ", final_logit_softcapping: -1",
        ", master_weights_dtype: bf16",
        ", block_overrides: {order: [{name: default}], overrides: {}}",
        ", block_overrides: {order: [{name: default, repeat: 3}], overrides: {}}",
        ", block_overrides: {order: [{name: near, repeat: 2}], overrides: {}}",
        ", block_overrides: {order: [{name: a, repeat: 2}], overrides: {a: {attn_config: "
        "{reuse_kv_layer_idx: -1}}}}",
        ", n_heads: 0", ", ffn_config: {ffn_type: mb_dmoe, moe_layers: [2]}",
        ", ffn_config: {ffn_type: te_ln_mlp}", ", d_modle: 3", ", expansion_ratio: 0"}) {
    EXPECT_THROW(parse(extra), Error) << extra;
  }
}

}  // namespace
}  // namespace dropless::train
