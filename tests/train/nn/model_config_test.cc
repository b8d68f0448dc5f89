// Sizes by arithmetic alone, numbers out of range, and what makes two configs one model.
#include "train/nn/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "dropless/error.h"
#include "train/nn/transformer.h"

namespace dropless::train {
namespace {

using ::testing::HasSubstr;

ModelConfig parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return ModelConfig::from_yaml(YamlDocument::parse(text, "t.yaml", overrides).root());
}

constexpr const char* kDense =
    "{d_model: 24, n_heads: 4, n_layers: 3, max_seq_len: 12, vocab_size: 20, attn_config: {}, "
    "ffn_config: {ffn_type: mptmlp}}";
constexpr const char* kMoE =
    "{d_model: 24, n_heads: 4, n_layers: 3, max_seq_len: 12, vocab_size: 20, no_bias: true, "
    "attn_config: {rope: true}, ffn_config: {ffn_type: mb_dmoe, mlp_type: glu, "
    "moe_num_experts: 5, moe_top_k: 2, ffn_hidden_size: 7}}";

std::string refusal(const std::string& text, const std::string& override) {
  try {
    parse(text, {override});
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    return error.what();
  }
  return "nothing";
}

TEST(ModelConfig, EstimateIsTheModelsCount) {
  for (const char* text : {kDense, kMoE}) {
    for (const char* change :
         {"d_model=24",
          "tie_word_embeddings=false",
          "no_bias=false",
          "no_bias=true",
          "norm_type=rmsnorm",
          "learned_pos_emb=false",
          "head_dim=10",
          "attn_config.attn_type=multiquery_attention",
          "attn_config={attn_type: grouped_query_attention, kv_n_heads: 2}",
          "attn_config={qk_ln: true, attn_type: multiquery_attention}",
          "attn_config.qk_gn=true",
          "attn_config={fused_qkv: false, out_proj_bias: false}",
          "attention_bias=true",
          "attn_config.alibi=true",
          "ffn_config={ffn_type: mptglu, ffn_hidden_size: 9}",
          "ffn_config={ffn_type: mb_dmoe, moe_num_experts: 3}",
          "ffn_config={ffn_type: mb_dmoe, moe_num_experts: 3, shared_expert: true}",
          "ffn_config={ffn_type: mb_moe, moe_num_experts: 3, moe_selection_bias: true}",
          "ffn_config={ffn_type: mb_dmoe, mlp_type: glu, moe_layers: [0, 2], "
          "dense_ffn_hidden_size: 11}",
          "ffn_config={ffn_type: mb_dmoe, mlp_type: glu, shared_expert: true, "
          "shared_expert_hidden_size: 7, shared_expert_gate: true}",
          "ffn_config={ffn_type: torch_dmoe, moe_num_experts: 3}"}) {
      // An override merges into the mapping that is there; the experts' keys suit them alone.
      if (text == kMoE && std::string(change).starts_with("ffn_config")) continue;
      const ModelConfig config = parse(text, {change});
      const Transformer model(config, 0, at::kMeta);
      EXPECT_EQ(estimate_parameters(config).total, static_cast<double>(model.count().total))
          << text << " " << change;
    }
  }
}

TEST(ModelConfig, SizesThatNoMachineCanAddress) {
  const std::string most = "9000000000000000000";
  for (const char* key : {"d_model", "vocab_size", "head_dim", "n_heads"}) {
    EXPECT_THAT(refusal(kMoE, key + ("=" + most)), HasSubstr(key)) << key;
  }
  EXPECT_THAT(refusal(kMoE, "vocab_size=" + most), HasSubstr("vocab_size " + most));
  EXPECT_THAT(refusal(kMoE, "ffn_config.ffn_hidden_size=" + most),
              HasSubstr("ffn_hidden_size " + most));
  EXPECT_THAT(refusal(kMoE, "ffn_config.moe_num_experts=" + most),
              HasSubstr("moe_num_experts " + most));
  EXPECT_THAT(refusal(kDense, "ffn_config.ffn_hidden_size=" + most),
              HasSubstr("ffn_hidden_size " + most));
  EXPECT_THAT(refusal(kDense, "expansion_ratio=1e30"), HasSubstr("expansion_ratio"));
  EXPECT_THAT(refusal(kDense, "n_layers=1000000000"), HasSubstr("n_layers: 1000000000"));
  EXPECT_THAT(refusal(kDense, "max_seq_len=" + most), HasSubstr("max_seq_len: " + most));
}

TEST(ModelConfig, TheKeyThatMakesAModelHugeIsBlamed) {
  for (const auto& [text, override, cause] :
       {std::tuple(kMoE, "vocab_size=100000000000", "vocab_size"),
        {kMoE, "d_model=100000000", "d_model"},
        {kMoE, "n_layers=10000", "n_layers"},
        {kMoE, "head_dim=100000000", "head_dim"},
        {kMoE, "ffn_config.moe_num_experts=100000000", "ffn_config.moe_num_experts"},
        {kMoE, "ffn_config.ffn_hidden_size=100000000", "ffn_config.ffn_hidden_size"},
        {kDense, "ffn_config.ffn_hidden_size=100000000", "ffn_config.ffn_hidden_size"},
        {kDense, "max_seq_len=1000000000", "max_seq_len"}}) {
    EXPECT_EQ(estimate_parameters(parse(text, {override})).cause, cause) << override;
  }
}

TEST(ModelConfig, NumbersOutOfRange) {
  for (const char* override : {"d_model=0",
                               "norm_eps=0",
                               "norm_eps=.nan",
                               "head_dim=0",
                               "expansion_ratio=0",
                               "expansion_ratio=.inf",
                               "resid_pdrop=1",
                               "emb_pdrop=.nan",
                               "init_config.init_std=0",
                               "init_config.emb_init_std=-1",
                               "attn_config.softmax_scale=-1",
                               "attn_config.softmax_scale=0",
                               "attn_config.softmax_scale=.inf",
                               "attn_config.clip_qkv=-1",
                               "attn_config.rope_theta=0",
                               "attn_config.rope_theta=.nan",
                               "attn_config.attn_pdrop=1",
                               "ffn_config.moe_loss_weight=-0.1",
                               "ffn_config.moe_loss_weight=.inf",
                               "ffn_config.moe_zloss_weight=.nan",
                               "ffn_config.moe_normalize_expert_weights=-1",
                               "ffn_config.moe_jitter_eps=1"}) {
    const std::string key = std::string(override).substr(0, std::string(override).find('='));
    EXPECT_THAT(refusal(kMoE, override), HasSubstr(key + ": ")) << override;
  }
}

TEST(ModelConfig, AdaptersOfAllThatThereIs) {
  const std::string all = "peft_config={target_modules: all-linear}";
  const auto targets = [](const std::string& text, const std::vector<std::string>& overrides) {
    return parse(text, overrides).lora->targets;
  };
  using enum LoraTarget;
  EXPECT_EQ(targets(kMoE, {all}), (std::set{kQ, kK, kV, kOut, kGate, kUp, kDown}));
  const std::set<LoraTarget> without_gate{kQ, kK, kV, kOut, kUp, kDown};
  EXPECT_EQ(targets(kDense, {all}), without_gate);
  EXPECT_EQ(targets(kMoE, {"ffn_config.mlp_type=mlp", all}), without_gate);
  const std::string first = "peft_config={target_modules: [w1]}";
  EXPECT_EQ(targets(kMoE, {first}), std::set{kGate});
  EXPECT_EQ(targets(kMoE, {"ffn_config.mlp_type=mlp", first}), std::set{kUp});
  EXPECT_THAT(refusal(kDense, "peft_config={target_modules: [gate_proj]}"),
              HasSubstr("gate_proj is of layers with a gate"));
}

TEST(ModelConfig, MathsAreTheKeysThatChangeTheFunction) {
  const auto base = parse(kMoE).maths();
  for (const char* same :
       {"norm_type=low_precision_layernorm", "init_config.name=baseline_", "max_seq_len=99",
        "ffn_config.backend=torch", "ffn_config.moe_loss_weight=0.5", "resid_pdrop=0",
        "attn_config.rope_theta=10000", "attn_config.attn_pdrop=0.1", "embedding_fraction=0.5",
        "attn_config={rope_impl: hf, rope_hf_config: {type: no_scaling}}",
        "block_overrides={order: [{name: default, repeat: 3}], overrides: {}}",
        "ffn_config.moe_jitter_eps=0.1", "ffn_config.moe_layers=[0, 1, 2]",
        "ffn_config={ffn_type: mb_moe, moe_capacity_factor: 0}"}) {
    EXPECT_EQ(parse(kMoE, {same}).maths(), base) << same;
  }
  for (const char* other :
       {"d_model=48",
        "n_heads=2",
        "n_layers=2",
        "vocab_size=21",
        "norm_type=rmsnorm",
        "norm_eps=1e-6",
        "tie_word_embeddings=false",
        "attn_config.softmax_scale=0.5",
        "attn_config.clip_qkv=8",
        "attn_config.qk_ln=true",
        "attn_config.qk_gn=true",
        "attn_config.rope=false",
        "attn_config.rope_theta=1e6",
        "ffn_config.ffn_act_fn=relu",
        "attn_config={rope_impl: hf, rope_hf_config: {type: linear, factor: 2}}",
        "attn_config={rope_impl: hf, rope_hf_config: {type: dynamic, factor: 2}}",
        "attn_config.alibi=true",
        "attn_config.sliding_window_size=5",
        "attention_bias=true",
        "attn_config.attn_uses_sequence_id=true",
        "attn_config.attn_logit_softcapping=5",
        "attn_config.fused_qkv=false",
        "attn_config.out_proj_bias=true",
        "logit_scale=2",
        "final_logit_softcapping=9",
        "block_overrides={order: [{name: near, repeat: 3}], "
        "overrides: {near: {attn_config: {sliding_window_size: 4}}}}",
        "ffn_config.mlp_type=mlp",
        "ffn_config.moe_top_k=1",
        "ffn_config.moe_normalize_expert_weights=1",
        "ffn_config.shared_expert=true",
        "ffn_config.uniform_expert_assignment=true",
        "ffn_config.moe_router_score=sigmoid",
        "ffn_config.moe_routed_scaling_factor=2",
        "ffn_config={moe_num_groups: 5, moe_group_top_k: 2}",
        "ffn_config.moe_selection_bias=true",
        "ffn_config.ffn_type=mb_moe",
        "ffn_config.moe_layers=[0, 1]",
        "ffn_config.ffn_type=mptglu"}) {
    std::vector<std::string> overrides{other};
    if (std::string(other) == "ffn_config.ffn_type=mptglu") {
      overrides = {"ffn_config=null", "ffn_config={ffn_type: mptglu}"};
    }
    EXPECT_NE(parse(kMoE, overrides).maths(), base) << other;
  }
}

}  // namespace
}  // namespace dropless::train
