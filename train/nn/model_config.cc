#include "train/nn/model_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <map>
#include <set>
#include <utility>

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
  } else if (type == "rmsnorm" || type == "low_precision_rmsnorm" || type == "triton_rmsnorm") {
    config.type = NormType::kRmsNorm;
  } else {
    map.fail("norm_type", "unknown norm_type " + type,
             "one of: layernorm, low_precision_layernorm, rmsnorm, low_precision_rmsnorm, "
             "triton_rmsnorm");
  }
  config.eps = map.positive<double>("norm_eps", config.eps);
  return config;
}

// `moe_layers`, a list of layers by their numbers from 0; absent: all. Returns the others.
std::vector<std::int64_t> dense_layers_from_yaml(const YamlMap& map, std::int64_t n_layers) {
  std::vector<std::int64_t> dense;
  if (!map.has("moe_layers")) {
    map.skip("moe_layers");
    return dense;
  }
  std::set<std::int64_t> chosen;
  const auto layers = map.get<std::vector<std::int64_t>>("moe_layers");
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::int64_t layer = layers[i];
    const std::string key = fmt::format("moe_layers.{}", i);
    if (layer < 0 || layer >= n_layers) {
      map.fail(key, fmt::format("there is no layer {} of {}", layer, n_layers),
               "layers are counted from 0");
    }
    if (!chosen.insert(layer).second) map.fail(key, fmt::format("{} twice", layer));
  }
  if (chosen.empty()) map.fail("moe_layers", "no layer", "name one, or take ffn_type mptmlp");
  for (std::int64_t layer = 0; layer < n_layers; ++layer) {
    if (!chosen.contains(layer)) dense.push_back(layer);
  }
  return dense;
}

void read_mixture(const YamlMap& map, std::int64_t d_ffn, ModelConfig& config) {
  config.dense_layers = dense_layers_from_yaml(map, config.n_layers);
  const auto dense_width = map.find_positive<std::int64_t>("dense_ffn_hidden_size");
  if (config.dense_layers.empty()) {
    map.no_effect("dense_ffn_hidden_size", "every layer is a mixture");
  }
  const auto layer = MoELayerConfig::from_yaml(map, config.d_model, d_ffn, config.bias);
  config.dense_ffn = {config.d_model, dense_width.value_or(d_ffn), layer.moe.activation,
                      layer.moe.glu, config.bias};
  config.ffn = layer;
}

void read_ffn(const std::optional<YamlMap>& map, std::int64_t d_ffn, ModelConfig& config) {
  FfnConfig dense;
  dense.d_model = config.d_model;
  dense.d_ffn = d_ffn;
  dense.bias = config.bias;
  config.ffn = dense;
  if (!map) return;
  const std::string type = map->get<std::string>("ffn_type", "mptmlp");
  if (type == "mb_dmoe" || type == "torch_dmoe" || type == "mb_moe") {
    return read_mixture(*map, d_ffn, config);
  }
  if (type == "te_ln_mlp") {
    map->refuse("ffn_type", true, "it is Transformer Engine's; use mptmlp or mptglu");
  }
  if (type != "mptmlp" && type != "mptglu") {
    map->fail("ffn_type", "unknown ffn_type " + type,
              "one of: mptmlp, mptglu, mb_dmoe, mb_moe, torch_dmoe");
  }
  dense.glu = type == "mptglu";
  dense.d_ffn = map->find_positive<std::int64_t>("ffn_hidden_size").value_or(d_ffn);
  dense.activation = activation_from_yaml(*map, dense.activation);
  map->no_effect("fc_type", "there is one linear layer");
  map->finish();
  config.ffn = dense;
}

// A number, or the name of one.
double logit_scale_from_yaml(const YamlMap& map, std::int64_t d_model) {
  if (!map.is_string("logit_scale")) return map.positive<double>("logit_scale", 1.0);
  const auto name = map.get<std::string>("logit_scale");
  if (name != "inv_sqrt_d_model") {
    map.fail("logit_scale", "unknown logit_scale " + name, "a number, or inv_sqrt_d_model");
  }
  return 1 / std::sqrt(static_cast<double>(d_model));
}

// What stands before and behind the layers, and what is dropped or left out in them.
void read_ends(const YamlMap& map, ModelConfig& config) {
  config.tie_word_embeddings = map.get<bool>("tie_word_embeddings", true);
  if (map.has("logit_scale")) config.logit_scale = logit_scale_from_yaml(map, config.d_model);
  map.skip("logit_scale");
  config.final_logit_softcap = map.find_positive<double>("final_logit_softcapping").value_or(0.0);
  config.embedding_fraction = map.positive<double>("embedding_fraction", 1.0);
  if (config.embedding_fraction > 1) {
    map.fail("embedding_fraction", fmt::format("{} is above 1", config.embedding_fraction));
  }
  config.pads_in_ffn = map.get<bool>("use_pad_tok_in_ffn", true);
  config.emb_pdrop = dropout_from_yaml(map, "emb_pdrop");
  config.resid_pdrop = dropout_from_yaml(map, "resid_pdrop");
}

// The names of blocks in their order: entries `{name, repeat}` and `{order, repeat}`.
std::vector<std::string> block_order(const YamlMap& map, std::int64_t n_layers) {
  std::vector<std::string> names;
  for (const YamlMap& entry : map.maps("order")) {
    const auto repeat = entry.positive<std::int64_t>("repeat", 1);
    std::vector<std::string> unit;
    if (entry.has("order")) {
      unit = block_order(entry, n_layers);
    } else {
      unit.push_back(entry.get<std::string>("name"));
    }
    entry.finish();
    for (std::int64_t i = 0; i < repeat; ++i) {
      names.insert(names.end(), unit.begin(), unit.end());
      if (static_cast<std::int64_t>(names.size()) > n_layers) {
        entry.fail("repeat", fmt::format("the order has more than the {} layers", n_layers));
      }
    }
  }
  return names;
}

// LLM Foundry's block_overrides, of which this model takes the windows.
void read_block_overrides(const YamlMap& map, ModelConfig& config) {
  std::vector<std::int64_t> windows;
  const YamlMap overrides = map.map("overrides");
  std::map<std::string, std::int64_t> window_of{{"default", config.attention.window}};
  for (const std::string& name : overrides.keys()) {
    const YamlMap block = overrides.map(name);
    const YamlMap attention = block.map("attn_config");
    attention.refuse("reuse_kv_layer_idx", attention.has("reuse_kv_layer_idx"),
                     "every layer has keys and values of its own");
    window_of[name] = window_from_yaml(attention, config.attention.window);
    attention.finish();
    block.finish();
  }
  for (const std::string& name : block_order(map, config.n_layers)) {
    const auto found = window_of.find(name);
    if (found == window_of.end()) {
      map.fail("order", "overrides has no " + name, "name one of them, or default");
    }
    windows.push_back(found->second);
  }
  if (static_cast<std::int64_t>(windows.size()) != config.n_layers) {
    map.fail("order", fmt::format("the order has {} layers, and n_layers is {}", windows.size(),
                                  config.n_layers));
  }
  map.finish();
  config.attention.window = windows[0];
  const bool alike = std::count(windows.begin(), windows.end(), windows[0]) == config.n_layers;
  if (!alike) config.layer_windows = std::move(windows);
}

void accept_without_effect(const YamlMap& map) {
  map.no_effect("loss_fn", "there is one cross-entropy");
  map.no_effect("init_device", "weights are drawn on the CPU");
  map.no_effect("fc_type", "there is one linear layer");
  for (const char* key :
       {"use_train_metrics", "additional_train_metrics", "additional_eval_metrics"}) {
    map.no_effect(key, "cross-entropy and perplexity are always logged");
  }
  map.no_effect("use_cache", "generation always uses a key/value cache");
  map.no_effect("verbose", "nothing more is printed");
  map.no_effect("fuse_norm_attn_norm",
                "it changes names of parameters alone, and `convert` writes DBRX's");
}

void refuse_unsupported(const YamlMap& map) {
  const auto dtype = map.get<std::string>("master_weights_dtype", "float32");
  map.refuse("master_weights_dtype", dtype != "float32" && dtype != "fp32",
             "weights are float32; `precision` says in which type products run");
}

void check_name(const YamlMap& map) {
  const std::string name = map.get<std::string>("name", "mpt_causal_lm");
  if (name == "mpt_causal_lm") return;
  const char* known = "one of: mpt_causal_lm, hf_causal_lm";
  if (name == "hf_t5") {
    map.fail("name", "hf_t5, an encoder with a decoder, is not supported", known);
  }
  map.fail("name", "unknown model " + name, known);
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
  check_name(map);
  config.d_model = map.positive<std::int64_t>("d_model", config.d_model);
  config.n_heads = map.positive<std::int64_t>("n_heads", config.n_heads);
  config.n_layers = at_most(map, "n_layers", config.n_layers, kMaxLayers);
  config.max_seq_len = at_most(map, "max_seq_len", config.max_seq_len, kMaxSeqLen);
  config.vocab_size = map.positive<std::int64_t>("vocab_size", config.vocab_size);
  config.bias = !map.get<bool>("no_bias", false);
  read_ends(map, config);
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
      AttentionConfig::from_yaml(map.find_map("attn_config").value_or(empty),
                                 {config.d_model, config.n_heads, head_dim, config.max_seq_len,
                                  map.get<bool>("attention_bias", config.bias), config.norm});
  if (const auto blocks = map.find_map("block_overrides")) {
    read_block_overrides(*blocks, config);
  }
  config.learned_pos_emb = map.get<bool>("learned_pos_emb", true);
  if (config.learned_pos_emb && (config.attention.rope || config.attention.alibi)) {
    config.learned_pos_emb = false;
    if (map.has("learned_pos_emb")) {
      map.warn("learned_pos_emb", "rope or alibi is on: positions are not learned too");
    }
  }
  read_ffn(map.find_map("ffn_config"), default_ffn_size(map, config.d_model), config);
  if (const auto init = map.find_map("init_config")) config.init = InitConfig::from_yaml(*init);
  config.read_lora(map);
  refuse_unsupported(map);
  accept_without_effect(map);
  map.finish();
  const ParameterEstimate size = estimate_parameters(config);
  const double bytes = 4.0 * size.total;
  constexpr double kAddressable = 9223372036854775808.0;  // 2^63
  if (bytes >= kAddressable) {
    map.fail(size.cause,
             fmt::format("the weights need {:.1e} bytes, and no more than {:.1e} can be "
                         "addressed; most are {}",
                         bytes, kAddressable, size.largest));
  }
  return config;
}

std::variant<FfnConfig, MoELayerConfig> ModelConfig::ffn_of(std::int64_t layer) const {
  if (std::binary_search(dense_layers.begin(), dense_layers.end(), layer)) return dense_ffn;
  return ffn;
}

AttentionConfig ModelConfig::attention_of(std::int64_t layer) const {
  AttentionConfig config = attention;
  if (!layer_windows.empty()) config.window = layer_windows[static_cast<std::size_t>(layer)];
  return config;
}

void ModelConfig::read_lora(const YamlMap& map) {
  const auto peft = map.find_map("peft_config");
  if (!peft) return map.no_effect("should_save_peft_only", "there is no peft_config");
  map.no_effect("should_save_peft_only",
                "checkpoints hold the model too; `convert --to peft` writes the adapter alone");
  set_lora(LoraConfig::from_yaml(*peft, moe() ? moe()->moe.glu : std::get<FfnConfig>(ffn).glu));
}

void ModelConfig::set_lora(const std::optional<LoraConfig>& config) {
  lora = config;
  attention.lora = config;
  dense_ffn.lora = config;
  std::visit([&](auto& layer) { layer.lora = config; }, ffn);
}

bool ModelConfig::draws_noise() const {
  return (lora && lora->dropout > 0) || emb_pdrop > 0 || resid_pdrop > 0 || attention.dropout > 0 ||
         (moe() && moe()->jitter_eps > 0);
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
  add("attn_config.clip_qkv_after_norm", attention.clip_after_norm);
  add("attn_config.qk_ln", attention.qk_norm == QkNorm::kWhole);
  add("attn_config.qk_gn", attention.qk_norm == QkNorm::kPerHead);
  add("attn_config.softmax_scale",
      attention.softmax_scale ? fmt::format("{}", *attention.softmax_scale) : "null");
  add("attn_config.rope", attention.rope);
  if (attention.rope) {
    add("attn_config.rope_theta", attention.rope_theta);
    add("attn_config.rope_hf_config", attention.rope_scaling.describe());
  }
  add("attn_config.alibi", attention.alibi);
  if (attention.alibi) add("attn_config.alibi_bias_max", attention.alibi_bias_max);
  if (layer_windows.empty()) {
    add("attn_config.sliding_window_size", attention.window);
  } else {
    add("attn_config.sliding_window_size", fmt::format("{}", fmt::join(layer_windows, ", ")));
  }
  add("attn_config.attn_uses_sequence_id", attention.sequence_ids);
  add("attn_config.attn_logit_softcapping", attention.logit_softcap);
  add("attn_config.fused_qkv", attention.fused_qkv);
  add("attention_bias", attention.bias);
  add("attn_config.out_proj_bias", attention.out_bias);
  add("logit_scale", logit_scale);
  add("final_logit_softcapping", final_logit_softcap);
  if (const MoELayerConfig* layer = moe()) {
    add("ffn_config.ffn_type", "a mixture of experts");
    add("ffn_config.ffn_hidden_size", layer->moe.d_ffn);
    add("ffn_config.ffn_act_fn", activation_name(layer->moe.activation));
    add("ffn_config.mlp_type", layer->moe.glu ? "glu" : "mlp");
    add("ffn_config.moe_num_experts", layer->moe.num_experts);
    add("ffn_config.moe_top_k", layer->moe.top_k);
    add("ffn_config.moe_normalize_expert_weights", layer->moe.route.normalize_p);
    const RouteConfig& route = layer->moe.route;
    add("ffn_config.uniform_expert_assignment", route.selection == RouteSelection::kUniform);
    add("ffn_config.moe_router_score", route.score == RouteScore::kSigmoid ? "sigmoid" : "softmax");
    add("ffn_config.moe_routed_scaling_factor", route.scaling_factor);
    add("ffn_config.moe_num_groups", route.num_groups);
    add("ffn_config.moe_group_top_k", route.group_top_k);
    add("ffn_config.moe_selection_bias", layer->moe.selection_bias);
    add("ffn_config.moe_capacity_factor", layer->moe.capacity_factor);
    if (dense_layers.empty()) {
      add("ffn_config.moe_layers", "all");
    } else {
      add("ffn_config.moe_layers", fmt::format("all but {}", fmt::join(dense_layers, ", ")));
      add("ffn_config.dense_ffn_hidden_size", dense_ffn.d_ffn);
    }
    add("ffn_config.shared_expert_hidden_size", layer->shared_d_ffn);
    add("ffn_config.shared_expert_weighted_sum", layer->shared_weighted);
    add("ffn_config.shared_expert_gate", layer->shared_gate);
  } else {
    const FfnConfig& dense = std::get<FfnConfig>(ffn);
    add("ffn_config.ffn_type", dense.glu ? "mptglu" : "mptmlp");
    add("ffn_config.ffn_hidden_size", dense.d_ffn);
    add("ffn_config.ffn_act_fn", activation_name(dense.activation));
  }
  if (lora) {
    std::vector<std::string> targets;
    for (const LoraTarget target : lora->targets) targets.push_back(lora_target_name(target));
    add("peft_config.r", lora->r);
    add("peft_config.lora_alpha", lora->alpha);
    add("peft_config.use_rslora", lora->rslora);
    add("peft_config.target_modules", fmt::format("{}", fmt::join(targets, ", ")));
  }
  return keys;
}

namespace {

// Each is of r (in + out).
double adapter_parameters(const ModelConfig& config) {
  const LoraConfig& lora = *config.lora;
  const AttentionConfig& attention = config.attention;
  const double D = config.d_model, head = attention.head_dim;
  const double q = attention.n_heads * head, kv = attention.kv_n_heads * head;
  const auto sides = [&](LoraTarget target, double in, double out) {
    return lora.has(target) ? in + out : 0;
  };
  const auto ffn = [&](bool glu, double F) {
    return (glu ? sides(LoraTarget::kGate, D, F) : 0) + sides(LoraTarget::kUp, D, F) +
           sides(LoraTarget::kDown, F, D);
  };
  double sum = 0;
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
    sum += sides(LoraTarget::kWqkv, D, q + 2 * kv) + sides(LoraTarget::kQ, D, q) +
           sides(LoraTarget::kK, D, kv) + sides(LoraTarget::kV, D, kv) +
           sides(LoraTarget::kOut, q, D);
    const auto part = config.ffn_of(layer);
    if (const auto* moe = std::get_if<MoELayerConfig>(&part)) {
      const double shared = moe->shared_d_ffn > 0 ? ffn(moe->moe.glu, moe->shared_d_ffn) : 0;
      sum += moe->moe.num_experts * ffn(moe->moe.glu, moe->moe.d_ffn) + shared;
    } else {
      const auto& dense = std::get<FfnConfig>(part);
      sum += ffn(dense.glu, dense.d_ffn);
    }
  }
  return static_cast<double>(lora.r) * sum;
}

}  // namespace

ParameterEstimate estimate_parameters(const ModelConfig& config) {
  struct Size {
    const char* key;
    double value, usual;
  };
  ParameterEstimate estimate;
  double largest = 0;
  const auto add = [&](double count, const std::string& part, std::initializer_list<Size> sizes) {
    estimate.total += count;
    if (count <= largest) return;
    largest = count;
    estimate.largest = part;
    estimate.cause = std::max(sizes, [](const Size& a, const Size& b) {
                       return a.value / a.usual < b.value / b.usual;
                     }).key;
  };
  const ModelConfig usual;
  const auto size = [&](const char* key, std::int64_t ModelConfig::*member) {
    return Size{key, double(config.*member), double(usual.*member)};
  };
  const Size vocab_size = size("vocab_size", &ModelConfig::vocab_size),
             d_model = size("d_model", &ModelConfig::d_model),
             n_layers = size("n_layers", &ModelConfig::n_layers),
             n_heads = size("n_heads", &ModelConfig::n_heads),
             max_seq_len = size("max_seq_len", &ModelConfig::max_seq_len);
  const auto width = [&](const char* key, std::int64_t d_ffn) {
    return Size{key, double(d_ffn), 4.0 * double(usual.d_model)};
  };
  const double V = config.vocab_size, D = config.d_model, L = config.n_layers;
  const double bias = config.bias ? 1 : 0;
  const double tables = config.tie_word_embeddings ? 1 : 2;
  add(tables * V * D,
      fmt::format("the embedding table's (vocab_size {} x d_model {})", config.vocab_size,
                  config.d_model),
      {vocab_size, d_model});
  if (config.learned_pos_emb) {
    add(static_cast<double>(config.max_seq_len) * D,
        fmt::format("the learned positions' (max_seq_len {} x d_model {})", config.max_seq_len,
                    config.d_model),
        {max_seq_len, d_model});
  }
  const AttentionConfig& attention = config.attention;
  const double head = attention.head_dim;
  // Only where it is a size of its own: else d_model made it.
  const bool derived = attention.head_dim == config.d_model / config.n_heads;
  const Size head_dim{"head_dim", derived ? 0.0 : head, 128};
  const double q_width = config.n_heads * head;
  const double qkv_width = q_width + 2.0 * attention.kv_n_heads * head;
  const double qkv_bias = attention.bias ? 1 : 0, out_bias = attention.out_bias ? 1 : 0;
  add(L * (qkv_width * (D + qkv_bias) + D * (q_width + out_bias)),
      fmt::format("the attention's (n_layers {}, d_model {}, n_heads {}, head_dim {})",
                  config.n_layers, config.d_model, config.n_heads, attention.head_dim),
      {n_layers, d_model, n_heads, head_dim});
  const double norm = config.norm.type == NormType::kLayerNorm ? 1 + bias : 1;
  double qk_norm_width = 0;
  if (attention.qk_norm == QkNorm::kWhole) qk_norm_width = (qkv_width + q_width) / 2;
  if (attention.qk_norm == QkNorm::kPerHead) qk_norm_width = 2 * head;
  add(norm * ((2 * L + 1) * D + L * qk_norm_width), "the norms'", {n_layers, d_model});
  const double dense_layers = config.moe() ? static_cast<double>(config.dense_layers.size()) : L;
  const auto* uniform = std::get_if<FfnConfig>(&config.ffn);
  const FfnConfig& dense = uniform ? *uniform : config.dense_ffn;
  const double dense_F = dense.d_ffn, up = dense.glu ? 2 : 1;
  add(dense_layers * (up * (dense_F * D + bias * dense_F) + D * dense_F + bias * D),
      fmt::format("the feed-forward layers' (n_layers {}, {} {}, d_model {})", config.n_layers,
                  uniform ? "ffn_hidden_size" : "dense_ffn_hidden_size", dense.d_ffn,
                  config.d_model),
      {n_layers,
       width(uniform ? "ffn_config.ffn_hidden_size" : "ffn_config.dense_ffn_hidden_size",
             dense.d_ffn),
       d_model});
  if (const MoELayerConfig* layer = config.moe()) {
    const double E = layer->moe.num_experts, F = layer->moe.d_ffn, mixtures = L - dense_layers;
    const double matrices = layer->moe.glu ? 3 : 2, S = layer->shared_d_ffn;
    const double router = E * D + (layer->moe.selection_bias ? E : 0);
    add(mixtures * (router + matrices * E * F * D + (layer->bias ? D : 0)),
        fmt::format(
            "the experts' (n_layers {}, moe_num_experts {}, ffn_hidden_size {}, d_model {})",
            config.n_layers, layer->moe.num_experts, layer->moe.d_ffn, config.d_model),
        {n_layers, Size{"ffn_config.moe_num_experts", E, 64},
         width("ffn_config.ffn_hidden_size", layer->moe.d_ffn), d_model});
    const double shared_bias = layer->bias && S > 0 ? (matrices - 1) * S + D : 0;
    add(mixtures * (matrices * S * D + shared_bias + (layer->shared_gate ? D : 0)),
        fmt::format("the shared experts' (n_layers {}, shared_expert_hidden_size {}, d_model {})",
                    config.n_layers, layer->shared_d_ffn, config.d_model),
        {n_layers, width("ffn_config.shared_expert_hidden_size", layer->shared_d_ffn), d_model});
  }
  if (config.lora) {
    add(adapter_parameters(config),
        fmt::format("the adapters' (peft_config.r {}, n_layers {}, d_model {})", config.lora->r,
                    config.n_layers, config.d_model),
        {Size{"peft_config.r", double(config.lora->r), 16}, n_layers, d_model});
  }
  return estimate;
}

}  // namespace dropless::train
