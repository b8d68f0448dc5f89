// config.json to our `model` block and back.
#include "train/convert/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dropless/error.h"

namespace dropless::train {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json family(const std::string& type) {
  if (type == "dbrx") {
    return json::parse(R"({"model_type": "dbrx", "d_model": 48, "n_heads": 4, "n_layers": 2,
      "max_seq_len": 64, "vocab_size": 96, "attn_config": {"kv_n_heads": 2, "clip_qkv": 8,
      "rope_theta": 5e5}, "ffn_config": {"ffn_act_fn": {"name": "silu"}, "ffn_hidden_size": 40,
      "moe_num_experts": 4, "moe_top_k": 2, "moe_loss_weight": 0.05}})");
  }
  json config = json::parse(R"({"hidden_size": 48, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 64,
    "vocab_size": 96, "intermediate_size": 40, "hidden_act": "silu", "rms_norm_eps": 1e-4,
    "rope_theta": 1e5})");
  config["model_type"] = type;
  if (type == "mixtral") config["num_local_experts"] = 4;
  if (type == "olmoe" || type.ends_with("_moe")) config["num_experts"] = 4;
  if (type.ends_with("_moe")) config["moe_intermediate_size"] = 24;
  if (type == "qwen2_moe") config["shared_expert_intermediate_size"] = 56;
  if (type == "mixtral" || config.contains("num_experts")) config["num_experts_per_tok"] = 2;
  return config;
}
constexpr const char* kTypes[] = {"mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "dbrx",
                                  "llama",   "qwen2", "qwen3",     "mistral"};

std::string refusal(const json& config) {
  try {
    read_hf_config(config, "config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(HfConfig, EveryFamilyComesBackAsItself) {
  for (const char* type : kTypes) {
    SCOPED_TRACE(type);
    const json before = family(type);
    const ReleasedModel model = read_hf_config(before, "config.json");
    EXPECT_STREQ(family_name(model.family), type);
    const json after = make_hf_config(model.config, "bfloat16", before);
    EXPECT_EQ(after["model_type"], type);
    const ReleasedModel again = read_hf_config(after, "config.json");
    EXPECT_EQ(model.config.maths(), again.config.maths());
    EXPECT_EQ(model.config.max_seq_len, again.config.max_seq_len);
    if (const MoELayerConfig* layer = model.config.moe()) {
      EXPECT_DOUBLE_EQ(layer->loss_weight, again.config.moe()->loss_weight);
    }
  }
}

TEST(HfConfig, ReadsWhatTheKeysMean) {
  const ModelConfig mixtral = read_hf_config(family("mixtral"), "c").config;
  EXPECT_EQ(mixtral.attention.kv_n_heads, 2);
  EXPECT_EQ(mixtral.attention.head_dim, 16);
  EXPECT_EQ(mixtral.attention.rope_theta, 1e5);
  EXPECT_EQ(mixtral.norm.eps, 1e-4);
  EXPECT_EQ(mixtral.moe()->moe.route.normalize_p, 1.0);
  json config = family("olmoe");
  EXPECT_EQ(read_hf_config(config, "c").config.moe()->moe.route.normalize_p, 0.0);
  config["norm_topk_prob"] = true;
  EXPECT_EQ(read_hf_config(config, "c").config.moe()->moe.route.normalize_p, 1.0);
  EXPECT_EQ(read_hf_config(config, "c").config.attention.qk_norm, QkNorm::kWhole);
  EXPECT_EQ(read_hf_config(family("qwen3"), "c").config.attention.qk_norm, QkNorm::kPerHead);
  EXPECT_EQ(read_hf_config(family("qwen3_moe"), "c").config.moe()->moe.d_ffn, 24);
  // DBRX's absent p is 1, its null is off.
  config = family("dbrx");
  EXPECT_EQ(read_hf_config(config, "c").config.moe()->moe.route.normalize_p, 1.0);
  config["ffn_config"]["moe_normalize_expert_weights"] = nullptr;
  EXPECT_EQ(read_hf_config(config, "c").config.moe()->moe.route.normalize_p, 0.0);
  // The newer spelling of theta wins over the older.
  config = family("llama");
  config["rope_parameters"] = {{"rope_theta", 7.0}, {"rope_type", "default"}};
  EXPECT_EQ(read_hf_config(config, "c").config.attention.rope_theta, 7.0);
}

TEST(HfConfig, TwoRopesMustAgree) {
  json config = family("qwen3_moe");
  config.erase("rope_theta");
  config["rope_parameters"] = {{"rope_theta", 1e6}, {"rope_type", "default"}};
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  EXPECT_THAT(refusal(config), HasSubstr("rope_parameters and rope_scaling say different things"));
  config["rope_parameters"] = {{"rope_theta", 1e6}, {"rope_type", "linear"}, {"factor", 4.0}};
  EXPECT_THAT(refusal(config), HasSubstr("different things"))
      << "the theta of rope_scaling is 10000";
  config["rope_theta"] = 1e6;
  EXPECT_EQ(read_hf_config(config, "c").config.attention.rope_theta, 1e6);
  EXPECT_EQ(read_hf_config(config, "c").config.attention.rope_scaling.factor, 4.0);
}

TEST(HfConfig, AnotherThetaIsRemarkedUpon) {
  for (const char* type : {"dbrx", "llama"}) {
    nlohmann::json config = family(type);
    config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 10000.0}};
    nlohmann::json& place = type == std::string("dbrx") ? config["attn_config"] : config;
    place["rope_theta"] = 10000.0;
    EXPECT_THAT(read_hf_config(config, "c").oddities, testing::IsEmpty()) << type;
    place["rope_theta"] = 500000.0;
    const ReleasedModel model = read_hf_config(config, "c");
    EXPECT_EQ(model.config.attention.rope_theta, 10000);
    ASSERT_THAT(model.oddities, testing::SizeIs(1)) << type;
    EXPECT_THAT(model.oddities[0], HasSubstr("rope_theta 500000 is not used"));
  }
}

TEST(HfConfig, WindowsBiasesSharedExpertsAndDenseLayers) {
  // A window counts the query's own token, ours what stands before it.
  json config = family("mixtral");
  config["sliding_window"] = 16;
  EXPECT_EQ(read_hf_config(config, "c").config.attention.window, 15);
  config = family("mistral");
  config["max_position_embeddings"] = 8192;
  EXPECT_EQ(read_hf_config(config, "c").config.attention.window, 4095);  // the class's default
  config["sliding_window"] = nullptr;
  EXPECT_EQ(read_hf_config(config, "c").config.attention.window, -1);
  config = family("qwen3");
  config["sliding_window"] = 16;
  EXPECT_EQ(read_hf_config(config, "c").config.attention.window, -1);
  config["use_sliding_window"] = true;
  config["max_window_layers"] = 1;
  EXPECT_EQ(read_hf_config(config, "c").config.layer_windows, (std::vector<std::int64_t>{-1, 15}));
  config["layer_types"] = {"sliding_attention", "full_attention"};
  EXPECT_EQ(read_hf_config(config, "c").config.layer_windows, (std::vector<std::int64_t>{15, -1}));
  const json windows = make_hf_config(read_hf_config(config, "c").config, "float32", config);
  EXPECT_EQ(windows["layer_types"], config["layer_types"]);
  for (const char* type : {"llama", "olmoe"}) {
    config = family(type);
    config["sliding_window"] = 16;
    const ReleasedModel model = read_hf_config(config, "c");
    EXPECT_EQ(model.config.attention.window, -1);
    ASSERT_THAT(model.oddities, testing::SizeIs(1)) << type;
    EXPECT_THAT(model.oddities[0], HasSubstr("c: sliding_window is not used"));
  }
  // As transformers' classes of the mixtures read them.
  config = family("qwen2_moe");
  config["num_hidden_layers"] = 4;
  config["sliding_window"] = 16;
  config["use_sliding_window"] = true;
  config["max_window_layers"] = 2;
  EXPECT_EQ(read_hf_config(config, "c").config.layer_windows,
            (std::vector<std::int64_t>{15, -1, -1, -1}));
  config = family("qwen3_moe");
  config["sliding_window"] = 16;
  config["use_sliding_window"] = true;
  EXPECT_THAT(read_hf_config(config, "c").oddities, testing::IsEmpty());
  config["max_window_layers"] = 1;
  const ReleasedModel qwen3 = read_hf_config(config, "c");
  EXPECT_EQ(qwen3.config.attention.window, 15);
  EXPECT_THAT(qwen3.config.layer_windows, testing::IsEmpty());
  ASSERT_THAT(qwen3.oddities, testing::SizeIs(1));
  EXPECT_THAT(qwen3.oddities[0], HasSubstr("all layers have the sliding window"));

  const ModelConfig qwen2 = read_hf_config(family("qwen2_moe"), "c").config;
  EXPECT_TRUE(qwen2.attention.bias);
  EXPECT_FALSE(qwen2.attention.out_bias);
  EXPECT_EQ(qwen2.moe()->shared_d_ffn, 56);
  EXPECT_TRUE(qwen2.moe()->shared_gate);
  EXPECT_FALSE(qwen2.moe()->shared_weighted);
  config = family("llama");
  config["attention_bias"] = true;
  EXPECT_TRUE(read_hf_config(config, "c").config.attention.out_bias);
  config = family("qwen3_moe");
  config["decoder_sparse_step"] = 2;
  const ModelConfig sparse = read_hf_config(config, "c").config;
  EXPECT_EQ(sparse.dense_layers, std::vector<std::int64_t>{0});
  EXPECT_EQ(sparse.dense_ffn.d_ffn, 40);
  const json back = make_hf_config(sparse, "float32", config);
  EXPECT_EQ(back["mlp_only_layers"], json::array({0}));
  EXPECT_EQ(back["intermediate_size"], 40);
  EXPECT_EQ(back["moe_intermediate_size"], 24);
}

TEST(HfConfig, ScaledRopeComesBack) {
  for (const char* scaling :
       {R"({"rope_type": "linear", "factor": 2.0})", R"({"type": "dynamic", "factor": 4.0})",
        R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32})",
        R"({"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0})"}) {
    SCOPED_TRACE(scaling);
    json config = family("llama");
    config["rope_scaling"] = json::parse(scaling);
    const ModelConfig model = read_hf_config(config, "c").config;
    EXPECT_NE(model.attention.rope_scaling.type, RopeScaling::Type::kNone);
    const json back = make_hf_config(model, "float32", config);
    EXPECT_EQ(model.maths(), read_hf_config(back, "c").config.maths());
  }
  json config = family("llama");
  config["rope_scaling"] = {{"rope_type", "longrope"}, {"factor", 2.0}};
  EXPECT_THAT(refusal(config), HasSubstr("longrope"));
}

TEST(HfConfig, RefusesByName) {
  for (const char* type : kTypes) {
    SCOPED_TRACE(type);
    json config = family(type);
    config["mystery_scale"] = 2;
    EXPECT_THAT(refusal(config), HasSubstr("mystery_scale"));
    config["mystery_scale"] = nullptr;  // says nothing
    EXPECT_EQ(refusal(config), "accepted");
    config["vocab_size"] = "96";
    EXPECT_THAT(refusal(config), HasSubstr("vocab_size"));
    config.erase("vocab_size");
    EXPECT_THAT(refusal(config), HasSubstr("vocab_size"));
  }
  json config = family("dbrx");
  config["ffn_config"]["moe_jitter_eps"] = 0.1;
  EXPECT_THAT(refusal(config), HasSubstr("moe_jitter_eps 0.1"));
  config = family("mixtral");
  config["clip_qkv"] = 8.0;
  EXPECT_THAT(refusal(config), HasSubstr("clip_qkv"));
  EXPECT_THAT(refusal(json::array()), HasSubstr("not a JSON object"));
}

TEST(HfConfig, NamesWhatNoFamilyCanSay) {
  const ModelConfig good = read_hf_config(family("olmoe"), "c").config;
  const auto inexpressible = [&](auto change) -> std::string {
    ModelConfig config = good;
    change(config);
    try {
      hf_family_of(config, json());
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
      return error.what();
    }
    return "expressible";
  };
  EXPECT_EQ(inexpressible([](ModelConfig&) {}), "expressible");
  EXPECT_THAT(inexpressible([](ModelConfig& c) { c.attention.softmax_scale = 0.3; }),
              HasSubstr("softmax_scale 0.3"));
  EXPECT_THAT(inexpressible([](ModelConfig& c) { c.attention.clip_qkv = 8; }),
              HasSubstr("clip_qkv 8"));
  EXPECT_EQ(inexpressible([](ModelConfig& c) {
              c.attention.clip_qkv = 8;
              c.attention.clip_after_norm = true;
            }),
            "expressible");
  EXPECT_THAT(inexpressible([](ModelConfig& c) {
                std::get<MoELayerConfig>(c.ffn).moe.route.normalize_p = 2;
              }),
              HasSubstr("moe_normalize_expert_weights 2"));
  EXPECT_THAT(
      inexpressible([](ModelConfig& c) { std::get<MoELayerConfig>(c.ffn).moe.glu = false; }),
      HasSubstr("mlp_type mlp"));
}

}  // namespace
}  // namespace dropless::train
