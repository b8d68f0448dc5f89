#include "train/nn/attention_config.h"

#include <fmt/format.h>

#include <string>

namespace dropless::train {
namespace {

void read_heads(const YamlMap& map, AttentionConfig& config) {
  const std::string type = map.get<std::string>("attn_type", "multihead_attention");
  const auto kv_heads = map.find<std::int64_t>("kv_n_heads");
  if (type == "multihead_attention") {
    config.kv_n_heads = config.n_heads;
  } else if (type == "multiquery_attention") {
    config.kv_n_heads = 1;
  } else if (type == "grouped_query_attention") {
    if (!kv_heads) {
      map.fail("attn_type", "grouped_query_attention needs kv_n_heads",
               fmt::format("set kv_n_heads beside it to a divisor of n_heads {}", config.n_heads));
    }
    config.kv_n_heads = *kv_heads;
  } else {
    map.fail("attn_type", "unknown attn_type " + type,
             "one of: multihead_attention, multiquery_attention, grouped_query_attention");
  }
  if (kv_heads && *kv_heads != config.kv_n_heads) {
    map.fail("kv_n_heads", "kv_n_heads " + std::to_string(*kv_heads) + " does not fit " + type,
             "set attn_type: grouped_query_attention, or take kv_n_heads out");
  }
  if (config.kv_n_heads < 1 || config.n_heads % config.kv_n_heads != 0) {
    map.fail("kv_n_heads",
             "n_heads " + std::to_string(config.n_heads) + " is not a multiple of kv_n_heads " +
                 std::to_string(config.kv_n_heads),
             "each key and value serves as many queries' heads: set it to a divisor of n_heads");
  }
}

void read_rope_form(const YamlMap& map, AttentionConfig& config, std::int64_t max_seq_len) {
  const auto impl = map.get<std::string>("rope_impl", "dail");
  if (impl != "dail" && impl != "hf") {
    map.fail("rope_impl", "unknown rope_impl " + impl, "one of: dail, hf");
  }
  if (impl == "hf") {
    map.no_effect("rope_dail_config", "rope_impl is hf");
    const auto scaling = map.find_map("rope_hf_config");
    if (scaling) config.rope_scaling = RopeScaling::from_yaml(*scaling, max_seq_len);
  } else {
    map.no_effect("rope_hf_config", "rope_impl is dail");
    const auto dail = map.find_map("rope_dail_config");
    if (!dail) return;
    const auto type = dail->get<std::string>("type", "original");
    dail->refuse("type", type != "original", "use original: xpos is not supported");
    dail->no_effect("pos_idx_in_fp32", "angles are computed in fp64");
    dail->no_effect("xpos_scale_base", "type is original");
    dail->finish();
  }
}

void read_rope(const YamlMap& map, AttentionConfig& config, std::int64_t max_seq_len) {
  config.rope = map.get<bool>("rope", false);
  config.rope_theta = map.positive<double>("rope_theta", config.rope_theta);
  if (!config.rope) {
    for (const char* key : {"rope_theta", "rope_impl", "rope_hf_config", "rope_dail_config"}) {
      map.no_effect(key, "rope is off");
    }
    return;
  }
  if (config.head_dim % 2 != 0) {
    map.fail("rope", "rope needs an even head dimension; it is " + std::to_string(config.head_dim),
             "set head_dim, or d_model and n_heads so that d_model / n_heads is even");
  }
  read_rope_form(map, config, max_seq_len);
  const auto type = config.rope_scaling.type;
  if (type == RopeScaling::Type::kDynamic && config.head_dim < 4) {
    map.fail("rope_hf_config", "dynamic scaling needs a head dimension of at least 4");
  }
  if (type == RopeScaling::Type::kYarn && config.rope_theta <= 1) {
    map.fail("rope_theta",
             fmt::format("yarn needs a rope_theta above 1; it is {}", config.rope_theta));
  }
}

void read_scores(const YamlMap& map, AttentionConfig& config) {
  config.clip_qkv = map.non_negative<double>("clip_qkv", 0.0);
  const bool qk_ln = map.get<bool>("qk_ln", false), qk_gn = map.get<bool>("qk_gn", false);
  if (qk_ln && qk_gn) map.fail("qk_gn", "qk_ln and qk_gn exclude each other", "keep one of them");
  if (qk_ln) config.qk_norm = QkNorm::kWhole;
  if (qk_gn) config.qk_norm = QkNorm::kPerHead;
  config.clip_after_norm = map.get<bool>("clip_qkv_after_norm", false);
  if (config.clip_qkv == 0 || config.qk_norm == QkNorm::kNone) {
    map.no_effect("clip_qkv_after_norm", "there is no clip_qkv, or no norm of queries and keys");
    config.clip_after_norm = false;
  }
  config.softmax_scale = map.find_positive<double>("softmax_scale");
  config.alibi = map.get<bool>("alibi", false);
  config.alibi_bias_max = map.positive<double>("alibi_bias_max", config.alibi_bias_max);
  if (!config.alibi) map.no_effect("alibi_bias_max", "alibi is off");
  config.window = window_from_yaml(map, -1);
  config.sequence_ids = map.get<bool>("attn_uses_sequence_id", false);
  config.logit_softcap = map.find_positive<double>("attn_logit_softcapping").value_or(0.0);
  config.dropout = dropout_from_yaml(map, "attn_pdrop");
}

}  // namespace

double dropout_from_yaml(const YamlMap& map, const char* key) {
  const auto p = map.non_negative<double>(key, 0.0);
  if (p >= 1) map.fail(key, fmt::format("{} is not below 1: nothing would be left", p));
  return p;
}

std::int64_t window_from_yaml(const YamlMap& map, std::int64_t fallback) {
  const auto window = map.get<std::int64_t>("sliding_window_size", fallback);
  if (window < -1) {
    map.fail("sliding_window_size",
             fmt::format("{} is neither -1 (off) nor a number of tokens", window));
  }
  return window;
}

AttentionConfig AttentionConfig::from_yaml(const YamlMap& map, const AttentionShape& shape) {
  AttentionConfig config;
  config.d_model = shape.d_model;
  config.n_heads = shape.n_heads;
  config.norm = shape.norm;
  config.head_dim = shape.head_dim.value_or(shape.d_model / shape.n_heads);
  config.bias = shape.bias;
  config.out_bias = map.get<bool>("out_proj_bias", shape.bias);
  config.fused_qkv = map.get<bool>("fused_qkv", true);
  read_heads(map, config);
  read_scores(map, config);
  read_rope(map, config, shape.max_seq_len);
  map.no_effect("attn_impl", "libtorch picks the fused attention kernel");
  map.refuse("flex_attn_mod_list", map.has("flex_attn_mod_list"),
             "sliding_window_size, alibi and attn_logit_softcapping are keys of their own");
  map.refuse("kv_dim", map.has("kv_dim"), "keys and values are made of what queries are: d_model");
  map.finish();
  return config;
}

}  // namespace dropless::train
