#include "train/nn/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "dropless/error.h"

namespace dropless::train {
namespace {

// Far above any model; a slip of the finger must not build a billion layers.
constexpr std::int64_t kMaxLayers = 10'000;
// Lengths of rows are 32-bit numbers.
constexpr std::int64_t kMaxSeqLen = std::numeric_limits<std::int32_t>::max();

NormConfig norm_from_yaml(const YamlMap& map, bool bias) {
  NormConfig config;
  config.bias = bias;
  const std::string type = map.get<std::string>("norm_type", "low_precision_layernorm");
  if (type == "layernorm" || type == "low_precision_layernorm") {
    config.type = NormType::kLayerNorm;
  } else if (type == "rmsnorm" || type == "low_precision_rmsnorm") {
    config.type = NormType::kRmsNorm;
  } else {
    map.fail("norm_type", "unknown norm_type " + type,
             "one of: layernorm, low_precision_layernorm, rmsnorm, low_precision_rmsnorm");
  }
  config.eps = map.positive<double>("norm_eps", config.eps);
  return config;
}

std::variant<FfnConfig, MoELayerConfig> ffn_from_yaml(const std::optional<YamlMap>& map,
                                                      std::int64_t d_model, std::int64_t d_ffn,
                                                      bool bias) {
  FfnConfig dense;
  dense.d_model = d_model;
  dense.d_ffn = d_ffn;
  dense.bias = bias;
  if (!map) return dense;
  const std::string type = map->get<std::string>("ffn_type", "mptmlp");
  if (type == "mb_dmoe" || type == "torch_dmoe") {
    return MoELayerConfig::from_yaml(*map, d_model, d_ffn, bias);
  }
  if (type == "mb_moe") {
    map->fail("ffn_type",
              "mb_moe (capacity MoE, which drops tokens) is not supported by this version",
              "use mb_dmoe: no token is dropped");
  }
  if (type != "mptmlp" && type != "mptglu") {
    map->fail("ffn_type", "unknown ffn_type " + type,
              "one of: mptmlp, mptglu, mb_dmoe, torch_dmoe");
  }
  dense.glu = type == "mptglu";
  dense.d_ffn = map->find_positive<std::int64_t>("ffn_hidden_size").value_or(d_ffn);
  dense.activation = activation_from_yaml(*map, dense.activation);
  map->no_effect("fc_type", "there is one linear layer");
  map->finish();
  return dense;
}

void refuse_unsupported(const YamlMap& map) {
  for (const char* key : {"resid_pdrop", "emb_pdrop"}) {
    map.refuse(key, map.get<double>(key, 0.0) != 0.0, "set it to 0");
  }
  map.refuse("embedding_fraction", map.get<double>("embedding_fraction", 1.0) != 1.0);
  map.refuse("logit_scale");
  map.refuse("final_logit_softcapping");
  map.refuse("fuse_norm_attn_norm", map.get<bool>("fuse_norm_attn_norm", false));
}

std::int64_t at_most(const YamlMap& map, const char* key, std::int64_t fallback,
                     std::int64_t most) {
  const auto value = map.positive<std::int64_t>(key, fallback);
  if (value > most) map.fail(key, fmt::format("{} is above {}", value, most));
  return value;
}

// d_model * expansion_ratio, rounded down.
std::int64_t default_ffn_size(const YamlMap& map, std::int64_t d_model) {
  const auto ratio = map.positive<double>("expansion_ratio", 4.0);
  const double size = static_cast<double>(d_model) * ratio;
  constexpr double kMax = 9e18;  // below the largest std::int64_t
  if (size < 1 || size > kMax) {
    map.fail("expansion_ratio", fmt::format("d_model {} times {} is no feed-forward width: {:.2g}",
                                            d_model, ratio, size));
  }
  return static_cast<std::int64_t>(size);
}

}  // namespace

ModelConfig ModelConfig::from_yaml(const YamlMap& map) {
  ModelConfig config;
  const std::string name = map.get<std::string>("name", "mpt_causal_lm");
  if (name != "mpt_causal_lm") {
    map.fail("name", "model " + name + " is not supported by this version", "use mpt_causal_lm");
  }
  config.d_model = map.positive<std::int64_t>("d_model", config.d_model);
  config.n_heads = map.positive<std::int64_t>("n_heads", config.n_heads);
  config.n_layers = at_most(map, "n_layers", config.n_layers, kMaxLayers);
  config.max_seq_len = at_most(map, "max_seq_len", config.max_seq_len, kMaxSeqLen);
  config.vocab_size = map.positive<std::int64_t>("vocab_size", config.vocab_size);
  config.bias = !map.get<bool>("no_bias", false);
  config.tie_word_embeddings = map.get<bool>("tie_word_embeddings", true);
  config.norm = norm_from_yaml(map, config.bias);
  const auto head_dim = map.find_positive<std::int64_t>("head_dim");
  if (!head_dim && config.d_model % config.n_heads != 0) {
    map.fail(
        "n_heads",
        fmt::format("d_model {} is not a multiple of n_heads {}", config.d_model, config.n_heads),
        "change one of them, or set head_dim");
  }
  const YamlMap empty = YamlDocument::parse("{}", map.where()).root();
  config.attention =
      AttentionConfig::from_yaml(map.find_map("attn_config").value_or(empty), config.d_model,
                                 config.n_heads, head_dim, config.bias, config.norm);
  config.learned_pos_emb = map.get<bool>("learned_pos_emb", true) && !config.attention.rope;
  config.ffn = ffn_from_yaml(map.find_map("ffn_config"), config.d_model,
                             default_ffn_size(map, config.d_model), config.bias);
  if (const auto init = map.find_map("init_config")) config.init = InitConfig::from_yaml(*init);
  refuse_unsupported(map);
  map.no_effect("loss_fn", "there is one cross-entropy");
  map.no_effect("init_device", "weights are drawn on the CPU");
  map.no_effect("fc_type", "there is one linear layer");
  map.no_effect("use_cache", "generation always uses a key/value cache");
  map.no_effect("verbose", "nothing more is printed");
  map.finish();
  const ParameterEstimate size = estimate_parameters(config);
  const double bytes = 4.0 * size.total;
  constexpr double kAddressable = 9223372036854775808.0;  // 2^63
  if (bytes >= kAddressable) {
    map.fail("", fmt::format("the weights need {:.1e} bytes, and no more than {:.1e} can be "
                             "addressed; most are {}",
                             bytes, kAddressable, size.largest));
  }
  return config;
}

std::vector<std::pair<std::string, std::string>> ModelConfig::maths() const {
  std::vector<std::pair<std::string, std::string>> keys;
  const auto add = [&](const char* key, const auto& value) {
    keys.emplace_back(std::string("model.") + key, fmt::format("{}", value));
  };
  add("d_model", d_model);
  add("n_heads", n_heads);
  add("n_layers", n_layers);
  add("vocab_size", vocab_size);
  add("head_dim", attention.head_dim);
  add("learned_pos_emb", learned_pos_emb);
  add("no_bias", !bias);
  add("tie_word_embeddings", tie_word_embeddings);
  add("norm_type", norm.type == NormType::kRmsNorm ? "rmsnorm" : "layernorm");
  add("norm_eps", norm.eps);
  add("attn_config.kv_n_heads", attention.kv_n_heads);
  add("attn_config.clip_qkv", attention.clip_qkv);
  add("attn_config.qk_ln", attention.qk_norm == QkNorm::kWhole);
  add("attn_config.qk_gn", attention.qk_norm == QkNorm::kPerHead);
  add("attn_config.softmax_scale",
      attention.softmax_scale ? fmt::format("{}", *attention.softmax_scale) : "null");
  add("attn_config.rope", attention.rope);
  if (attention.rope) add("attn_config.rope_theta", attention.rope_theta);
  if (const MoELayerConfig* layer = moe()) {
    add("ffn_config.ffn_type", "a mixture of experts");
    add("ffn_config.ffn_hidden_size", layer->moe.d_ffn);
    add("ffn_config.ffn_act_fn", activation_name(layer->moe.activation));
    add("ffn_config.mlp_type", layer->moe.glu ? "glu" : "mlp");
    add("ffn_config.moe_num_experts", layer->moe.num_experts);
    add("ffn_config.moe_top_k", layer->moe.top_k);
    add("ffn_config.moe_normalize_expert_weights", layer->moe.route.normalize_p);
    add("ffn_config.shared_expert_hidden_size", layer->shared_d_ffn);
    add("ffn_config.shared_expert_weighted_sum", layer->shared_weighted);
    add("ffn_config.shared_expert_gate", layer->shared_gate);
  } else {
    const FfnConfig& dense = std::get<FfnConfig>(ffn);
    add("ffn_config.ffn_type", dense.glu ? "mptglu" : "mptmlp");
    add("ffn_config.ffn_hidden_size", dense.d_ffn);
    add("ffn_config.ffn_act_fn", activation_name(dense.activation));
  }
  return keys;
}

ParameterEstimate estimate_parameters(const ModelConfig& config) {
  ParameterEstimate estimate;
  double largest = 0;
  const auto add = [&](double count, const std::string& part) {
    estimate.total += count;
    if (count <= largest) return;
    largest = count;
    estimate.largest = part;
  };
  const double V = config.vocab_size, D = config.d_model, L = config.n_layers;
  const double bias = config.bias ? 1 : 0;
  const double tables = config.tie_word_embeddings ? 1 : 2;
  add(tables * V * D, fmt::format("the embedding table's (vocab_size {} x d_model {})",
                                  config.vocab_size, config.d_model));
  if (config.learned_pos_emb) {
    add(static_cast<double>(config.max_seq_len) * D,
        fmt::format("the learned positions' (max_seq_len {} x d_model {})", config.max_seq_len,
                    config.d_model));
  }
  const AttentionConfig& attention = config.attention;
  const double head = attention.head_dim;
  const double q_width = config.n_heads * head;
  const double qkv_width = q_width + 2.0 * attention.kv_n_heads * head;
  add(L * (qkv_width * (D + bias) + D * (q_width + bias)),
      fmt::format("the attention's (n_layers {}, d_model {}, n_heads {}, head_dim {})",
                  config.n_layers, config.d_model, config.n_heads, attention.head_dim));
  const double norm = config.norm.type == NormType::kLayerNorm ? 1 + bias : 1;
  double qk_norm_width = 0;
  if (attention.qk_norm == QkNorm::kWhole) qk_norm_width = (qkv_width + q_width) / 2;
  if (attention.qk_norm == QkNorm::kPerHead) qk_norm_width = 2 * head;
  add(norm * ((2 * L + 1) * D + L * qk_norm_width), "the norms'");
  if (const MoELayerConfig* layer = config.moe()) {
    const double E = layer->moe.num_experts, F = layer->moe.d_ffn;
    const double matrices = layer->moe.glu ? 3 : 2, S = layer->shared_d_ffn;
    add(L * (E * D + matrices * E * F * D + (layer->bias ? D : 0)),
        fmt::format(
            "the experts' (n_layers {}, moe_num_experts {}, ffn_hidden_size {}, d_model {})",
            config.n_layers, layer->moe.num_experts, layer->moe.d_ffn, config.d_model));
    const double shared_bias = layer->bias && S > 0 ? (matrices - 1) * S + D : 0;
    add(L * (matrices * S * D + shared_bias + (layer->shared_gate ? D : 0)),
        fmt::format("the shared experts' (n_layers {}, shared_expert_hidden_size {}, d_model {})",
                    config.n_layers, layer->shared_d_ffn, config.d_model));
  } else {
    const FfnConfig& dense = std::get<FfnConfig>(config.ffn);
    const double F = dense.d_ffn, up = dense.glu ? 2 : 1;
    add(L * (up * (F * D + bias * F) + D * F + bias * D),
        fmt::format("the feed-forward layers' (n_layers {}, ffn_hidden_size {}, d_model {})",
                    config.n_layers, dense.d_ffn, config.d_model));
  }
  return estimate;
}

}  // namespace dropless::train
