// Attention and RoPE against their definitions in fp64, and the key/value cache against the whole
// pass.
#include "train/nn/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string_view>
#include <utility>

#include "dropless/error.h"

namespace dropless::train {
namespace {

AttentionConfig parse(const std::string& text, std::int64_t d_model = 32,
                      std::int64_t n_heads = 4) {
  AttentionShape shape;
  shape.d_model = d_model;
  shape.n_heads = n_heads;
  shape.max_seq_len = 16;
  return AttentionConfig::from_yaml(YamlDocument::parse(text, "t.yaml").root(), shape);
}

RopeScaling parse_scaling(const std::string& text, std::int64_t max_seq_len = 64) {
  return RopeScaling::from_yaml(YamlDocument::parse(text, "t.yaml").root(), max_seq_len);
}

TEST(Rope, RotatesPairsByPositionAndKeepsNorms) {
  Rope rope(8, 10000.0, {}, at::kCPU);
  at::manual_seed(1);
  const at::Tensor x = at::randn({2, 5, 3, 8});
  const at::Tensor y = rope.forward(x, 3);
  const auto in = x.accessor<float, 4>(), out = y.accessor<float, 4>();
  for (int s = 0; s < 5; ++s) {
    for (int i = 0; i < 4; ++i) {
      const double angle = (3 + s) * std::pow(10000.0, -2.0 * i / 8);
      const double a = in[1][s][2][i], b = in[1][s][2][i + 4];
      EXPECT_NEAR(out[1][s][2][i], a * std::cos(angle) - b * std::sin(angle), 1e-5);
      EXPECT_NEAR(out[1][s][2][i + 4], b * std::cos(angle) + a * std::sin(angle), 1e-5);
    }
  }
  EXPECT_NEAR(x.norm().item<double>(), y.norm().item<double>(), 1e-4);
}

TEST(Rope, GradientIsTheInverseRotation) {
  Rope rope(6, 100.0, {}, at::kCPU);
  at::manual_seed(2);
  at::Tensor x = at::randn({1, 4, 2, 6}).set_requires_grad(true);
  const at::Tensor weight = at::randn({1, 4, 2, 6});
  (rope.forward(x, 0) * weight).sum().backward();
  // For a rotation R: d/dx <w, R x> = R^T w, so rotating the gradient forward gives w back.
  EXPECT_LT((rope.forward(x.grad(), 0) - weight).norm().item<double>(), 1e-5);
}

// Queries are a split of a wider tensor: their rows lie apart, and heads may be any stride apart.
TEST(Rope, TakesEveryTypeAndStride) {
  at::manual_seed(3);
  const at::Tensor wide = at::randn({3, 7, 5, 24}, at::kDouble);
  Rope exact(8, 50.0, {}, at::kCPU, at::kDouble);
  const std::pair<at::ScalarType, double> types[] = {
      {at::kDouble, 1e-15}, {at::kFloat, 1e-6}, {at::kBFloat16, 4e-3}, {at::kHalf, 5e-4}};
  for (const auto& [type, tolerance] : types) {
    Rope rope(8, 50.0, {}, at::kCPU, type == at::kDouble ? at::kDouble : at::kFloat);
    const at::Tensor x = wide.to(type);
    for (const at::Tensor& view :
         {x.narrow(3, 8, 8), x.narrow(3, 0, 8).transpose(0, 1), x.slice(3, 0, 16, 2)}) {
      const at::Tensor y = rope.forward(view, 2);
      EXPECT_EQ(y.scalar_type(), type);
      const at::Tensor expected = exact.forward(view.to(at::kDouble), 2);
      EXPECT_LT((y.to(at::kDouble) - expected).norm().item<double>(),
                tolerance * expected.norm().item<double>())
          << type;
    }
  }
}

// Frequencies of transformers 5.17.0 (ROPE_INIT_FUNCTIONS) for head_dim 16, theta 10000.
TEST(RopeScaling, FrequenciesAreTransformers) {
  struct Case {
    const char* text;
    std::int64_t positions;
    double attention_factor;
    std::vector<double> frequencies;
  };
  for (const Case& c : {Case{"{type: linear, factor: 2.5}",
                             64,
                             1,
                             {0.400000006, 0.1264911, 0.0399999991, 0.0126491114, 0.00399999972,
                              0.00126491114, 0.000400000019, 0.000126491112}},
                        Case{"{type: dynamic, factor: 2}",
                             40,
                             1,
                             {1, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978,
                              0.00316227786, 0.00100000005, 0.000316227786}},
                        Case{"{type: dynamic, factor: 2}",
                             100,
                             1,
                             {1, 0.283945143, 0.0806248412, 0.0228930302, 0.00650036521,
                              0.001845747, 0.000524090894, 0.000148813066}},
                        Case{"{type: llama3, factor: 8, low_freq_factor: 1, high_freq_factor: 4, "
                             "original_max_position_embeddings: 64}",
                             64,
                             1,
                             {1, 0.244384587, 0.0130422562, 0.00395284733, 0.00124999997,
                              0.000395284733, 0.000125000006, 3.95284733e-05}},
                        Case{"{type: yarn, factor: 4, original_max_position_embeddings: 64}",
                             64,
                             1.13862944,
                             {1, 0.237170815, 0.049999997, 0.00790569466, 0.00249999994,
                              0.000790569466, 0.000250000012, 7.90569466e-05}},
                        Case{"{type: yarn, factor: 4, original_max_position_embeddings: 512, "
                             "beta_fast: 16, beta_slow: 2, truncate: false}",
                             64,
                             1.13862944,
                             {1, 0.316227764, 0.0756644011, 0.0107961092, 0.00249999994,
                              0.000790569466, 0.000250000012, 7.90569466e-05}},
                        Case{"{type: yarn, factor: 4, original_max_position_embeddings: 64, "
                             "mscale: 1, mscale_all_dim: 0.5}",
                             64,
                             1.06482163,
                             {1, 0.237170815, 0.049999997, 0.00790569466, 0.00249999994,
                              0.000790569466, 0.000250000012, 7.90569466e-05}}}) {
    const RopeScaling scaling = parse_scaling(c.text);
    const at::Tensor f = rope_frequencies(16, 10000.0, scaling, c.positions);
    ASSERT_EQ(f.size(0), 8);
    for (int i = 0; i < 8; ++i) {
      EXPECT_NEAR(f[i].item<double>() / c.frequencies[i], 1, 1e-6) << c.text << " at " << i;
    }
    EXPECT_NEAR(scaling.attention_factor, c.attention_factor, 1e-6) << c.text;
  }
}

TEST(RopeScaling, AttentionFactorScalesTheRotation) {
  const char* text =
      "{type: yarn, factor: 4, original_max_position_embeddings: 64, attention_factor: 1.5}";
  Rope rope(8, 10000.0, parse_scaling(text), at::kCPU);
  at::manual_seed(1);
  at::Tensor x = at::randn({1, 5, 2, 8}).set_requires_grad(true);
  const at::Tensor y = rope.forward(x, 0);
  EXPECT_NEAR((y.norm() / x.norm()).item<double>(), 1.5, 1e-5);
  y.sum().backward();
  // The first position is not rotated.
  EXPECT_NEAR(x.grad()[0][0][1][3].item<double>(), 1.5, 1e-6);
}

TEST(RopeScaling, RefusesNonsense) {
  for (const char* text :
       {"{type: xpos}", "{type: linear}", "{type: linear, factor: 0.5}",
        "{type: dynamic, factor: -1}", "{type: llama3, factor: 8}", "{type: yarn, factor: 2}",
        "{type: llama3, factor: 8, original_max_position_embeddings: 64, low_freq_factor: 4, "
        "high_freq_factor: 4}",
        "{type: yarn, factor: 2, original_max_position_embeddings: 64, beta_fast: 0.5}",
        "{type: linear, factor: 2, beta_fast: 3}"}) {
    EXPECT_THROW(parse_scaling(text), Error) << text;
  }
}

TEST(Attention, AlibiSlopes) {
  const auto near = [](const at::Tensor& slopes, const std::vector<double>& expected) {
    return at::allclose(slopes, at::tensor(expected, at::kDouble), 1e-12, 0);
  };
  EXPECT_TRUE(near(alibi_slopes(4, 8), {1.0 / 4, 1.0 / 16, 1.0 / 64, 1.0 / 256}));
  // Not a power of two: the even ones of 8 first, then odd ones.
  EXPECT_TRUE(near(alibi_slopes(6, 8), {1.0 / 4, 1.0 / 16, 1.0 / 64, 1.0 / 256, 1.0 / 2, 1.0 / 8}));
}

TEST(Attention, SeesItsWindowOnly) {
  ParameterMaker maker({}, 32, 2, 7, at::kCPU);
  Attention attention(parse("{rope: true, sliding_window_size: 2}"), "attn", maker, at::kCPU);
  at::NoGradGuard no_grad;
  at::manual_seed(3);
  at::Tensor x = at::randn({1, 9, 32});
  const at::Tensor before = attention.forward(x, nullptr).clone();
  x.select(1, 3).add_(1.0);
  const at::Tensor changed = (attention.forward(x, nullptr) - before).abs().amax(2)[0];
  for (int i = 0; i < 9; ++i) EXPECT_EQ(changed[i].item<float>() > 0, i >= 3 && i <= 5) << i;
}

TEST(Attention, SeesItsDocumentOnly) {
  for (const char* text : {"{attn_uses_sequence_id: true}",
                           "{attn_uses_sequence_id: true, alibi: true, sliding_window_size: 3}",
                           "{attn_uses_sequence_id: true, attn_logit_softcapping: 2}"}) {
    ParameterMaker maker({}, 32, 2, 7, at::kCPU);
    Attention attention(parse(text), "attn", maker, at::kCPU);
    at::NoGradGuard no_grad;
    at::manual_seed(3);
    const at::Tensor x = at::randn({1, 7, 32});
    AttentionPass pass;
    pass.sequence_ids_BS = at::tensor({0, 0, 0, 1, 1, 2, 2}, at::kLong).unsqueeze(0);
    const at::Tensor packed = attention.forward(x, nullptr, pass);
    for (const auto& [first, size] : {std::pair(0, 3), std::pair(3, 2), std::pair(5, 2)}) {
      const at::Tensor alone = attention.forward(x.narrow(1, first, size), nullptr);
      EXPECT_TRUE(at::allclose(packed.narrow(1, first, size), alone, 1e-5, 1e-6)) << text << first;
    }
  }
}

TEST(Attention, DropsInTrainingOnly) {
  for (const char* text : {"{attn_pdrop: 0.5}", "{attn_pdrop: 0.5, attn_logit_softcapping: 3}"}) {
    ParameterMaker maker({}, 32, 2, 7, at::kCPU);
    Attention attention(parse(text), "attn", maker, at::kCPU);
    at::NoGradGuard no_grad;
    at::manual_seed(3);
    const at::Tensor x = at::randn({1, 7, 32});
    const auto train = [&](std::uint64_t seed) {
      at::manual_seed(seed);
      AttentionPass pass;
      pass.training = true;
      return attention.forward(x, nullptr, pass);
    };
    EXPECT_TRUE(at::equal(attention.forward(x, nullptr), attention.forward(x, nullptr)));
    EXPECT_TRUE(at::equal(train(1), train(1)));
    EXPECT_FALSE(at::equal(train(1), train(2)));
    // The mean over many masks is the value without; 0.1 is above four standard errors.
    at::Tensor sum = at::zeros_like(x);
    for (int i = 0; i < 2000; ++i) sum += train(i);
    const at::Tensor kept = attention.forward(x, nullptr);
    EXPECT_LT(((sum / 2000 - kept).norm() / kept.norm()).item<double>(), 0.1) << text;
  }
}

TEST(Attention, CacheGivesWhatTheWholePassGives) {
  for (const char* text :
       {"{rope: true}", "{rope: true, attn_type: multiquery_attention}",
        "{rope: true, qk_ln: true, attn_type: multiquery_attention}", "{qk_gn: true}",
        "{rope: true, qk_ln: true, clip_qkv: 0.5, clip_qkv_after_norm: true}",
        "{rope: true, sliding_window_size: 0}", "{alibi: true, sliding_window_size: 3}",
        "{alibi: true, alibi_bias_max: 4, attn_type: multiquery_attention, fused_qkv: false}",
        "{rope: true, sliding_window_size: 2, attn_logit_softcapping: 1.5, "
        "attn_type: grouped_query_attention, kv_n_heads: 2}",
        "{rope: true, rope_impl: hf, rope_hf_config: {type: linear, factor: 4}}",
        "{rope: true, rope_impl: hf, rope_hf_config: {type: yarn, factor: 4, "
        "original_max_position_embeddings: 4}}",
        "{attn_type: grouped_query_attention, kv_n_heads: 2, clip_qkv: 0.5, softmax_scale: 0.2}"}) {
    const AttentionConfig config = parse(text);
    ParameterMaker maker({}, 32, 2, 7, at::kCPU);
    Attention attention(config, "attn", maker, at::kCPU);
    at::NoGradGuard no_grad;
    at::manual_seed(3);
    const at::Tensor x = at::randn({2, 9, 32});
    const at::Tensor whole = attention.forward(x, nullptr);
    KeyValueCache cache;
    std::vector<at::Tensor> parts{attention.forward(x.narrow(1, 0, 3), &cache)};
    parts.push_back(attention.forward(x.narrow(1, 3, 2), &cache));
    // The same with room for more behind what is read.
    KeyValueCache room{at::zeros({2, config.kv_n_heads, 11, 8}), {}};
    room.values = room.keys.clone();
    room.keys.narrow(2, 0, 5).copy_(cache.keys);
    room.values.narrow(2, 0, 5).copy_(cache.values);
    for (int s = 5; s < 9; ++s) {
      parts.push_back(attention.forward(x.narrow(1, s, 1), &cache));
      AttentionPass pass;
      pass.position_1 = at::full({1}, s, at::kLong);
      const at::Tensor there = attention.forward(x.narrow(1, s, 1), &room, pass);
      EXPECT_LT((there - parts.back()).abs().max().item<double>(), 1e-5) << text;
    }
    EXPECT_LT((at::cat(parts, 1) - whole).abs().max().item<double>(), 1e-5) << text;
    EXPECT_EQ(cache.keys.sizes(), (std::vector<std::int64_t>{2, config.kv_n_heads, 9, 8}));
  }
}

TEST(Attention, NormedQueriesAndKeysForgetTheScaleOfTheInput) {
  for (const char* text : {"{qk_ln: true}", "{qk_gn: true}", "{}"}) {
    ParameterMaker maker({}, 32, 2, 7, at::kCPU);
    Attention attention(parse(text), "attn", maker, at::kCPU);
    at::NoGradGuard no_grad;
    at::manual_seed(3);
    const at::Tensor x = at::randn({1, 6, 32});
    // Without biases (zero at first) q, k and v scale with x: only the scores can bend the output.
    const at::Tensor once = attention.forward(x, nullptr);
    const at::Tensor tenfold = attention.forward(x * 10.0, nullptr) / 10.0;
    const double change = ((tenfold - once).norm() / once.norm()).item<double>();
    if (std::string_view(text) == "{}") {
      EXPECT_GT(change, 0.1);
    } else {
      EXPECT_LT(change, 1e-4) << text;
    }
  }
}

TEST(Attention, DoesNotSeeLaterTokens) {
  ParameterMaker maker({}, 32, 2, 7, at::kCPU);
  Attention attention(parse("{rope: true}"), "attn", maker, at::kCPU);
  at::NoGradGuard no_grad;
  at::manual_seed(3);
  at::Tensor x = at::randn({1, 6, 32});
  const at::Tensor before = attention.forward(x, nullptr).clone();
  x.select(1, 4).add_(1.0);
  const at::Tensor after = attention.forward(x, nullptr);
  EXPECT_TRUE(at::equal(before.narrow(1, 0, 4), after.narrow(1, 0, 4)));
  EXPECT_FALSE(at::equal(before.select(1, 4), after.select(1, 4)));
}

TEST(AttentionConfig, RefusesSizesThatDoNotFit) {
  EXPECT_THROW(parse("{attn_type: grouped_query_attention, kv_n_heads: 3}"), Error);
  EXPECT_THROW(parse("{attn_type: grouped_query_attention}"), Error);
  EXPECT_THROW(parse("{attn_type: multihead_attention, kv_n_heads: 2}"), Error);
  EXPECT_THROW(parse("{rope: true}", 12, 4), Error);
  EXPECT_THROW(parse("{qk_ln: true, qk_gn: true}"), Error);
  for (const char* text :
       {"{attn_pdrop: 1}", "{attn_pdrop: -0.1}", "{sliding_window_size: -2}",
        "{alibi: true, alibi_bias_max: 0}", "{attn_logit_softcapping: 0}", "{kv_dim: 3}",
        "{rope: true, rope_impl: xla}", "{rope: true, rope_dail_config: {type: xpos}}",
        "{rope: true, rope_impl: hf, rope_hf_config: {type: linear}}",
        "{rope: true, rope_theta: 1, rope_impl: hf, rope_hf_config: {type: yarn, factor: 2, "
        "original_max_position_embeddings: 8}}"}) {
    EXPECT_THROW(parse(text), Error) << text;
  }
}

}  // namespace
}  // namespace dropless::train
