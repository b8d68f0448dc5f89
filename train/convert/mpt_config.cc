#include "train/convert/mpt_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "train/base/yaml.h"
#include "train/convert/config_keys.h"

namespace dropless::train {
namespace {

// Keys of MPTConfig that say nothing about the logits, and are no keys of a `model` block.
constexpr const char* kHarmless[] = {"init_config", "tokenizer_name", "initializer_range",
                                     "use_cache",   "verbose",        "init_device"};

// A null says as much as an absent key.
OrderedJson without_nulls(const Json& json) {
  OrderedJson kept = OrderedJson::object();
  for (const auto& [key, value] : json.items()) {
    if (value.is_null()) continue;
    kept[key] = value.is_object() ? without_nulls(value) : OrderedJson(value);
  }
  return kept;
}

// What transformers' own class of these models (MptForCausalLM) leaves out where it is its default, or
// calls otherwise than LLM Foundry's (MPTForCausalLM).
void spell_as_foundry(const std::string& path, OrderedJson& model,
                      std::vector<std::string>& oddities) {
  if (!model.contains("no_bias")) model["no_bias"] = true;
  if (!model["attn_config"].is_object()) model["attn_config"] = OrderedJson::object();
  OrderedJson& attention = model["attn_config"];
  if (!attention.contains("alibi")) attention["alibi"] = true;
  if (attention["alibi"] != true) {
    throw Error(ErrorKind::kUnsupported,
                path + ": MptForCausalLM always has ALiBi; alibi is " + attention["alibi"].dump());
  }
  // Which it reads nowhere: build_mpt_alibi_tensor() is called without the last.
  for (const char* key : {"attn_type", "kv_n_heads"}) attention.erase(key);
  const auto bias_max = attention.find("alibi_bias_max");
  if (bias_max != attention.end() && *bias_max != kHfAlibiBiasMax) {
    oddities.push_back(
        fmt::format("{}: alibi_bias_max {} is read as {}, which transformers' class always takes",
                    path, bias_max->dump(), kHfAlibiBiasMax));
  }
  attention["alibi_bias_max"] = kHfAlibiBiasMax;
  if (model.contains("logit_scale")) {
    oddities.push_back(
        fmt::format("{}: logit_scale {} is not used: transformers' class does not read it", path,
                    model["logit_scale"].dump()));
    model.erase("logit_scale");
  }
}

OrderedJson block_of(const Json& json, const std::string& path,
                     std::vector<std::string>& oddities) {
  OrderedJson model = without_nulls(json);
  const Json architectures = json.value("architectures", Json::array());
  const bool of_transformers =
      architectures.is_array() && !architectures.empty() && architectures[0] == "MptForCausalLM";
  if (of_transformers) spell_as_foundry(path, model, oddities);
  if (model.contains("layer_norm_epsilon")) {
    model["norm_eps"] = model["layer_norm_epsilon"];
    model.erase("layer_norm_epsilon");
  }
  if (const auto attention = model.find("attn_config"); attention != model.end()) {
    if (attention->is_object() && attention->value("prefix_lm", Json(false)) == false) {
      attention->erase("prefix_lm");
    }
    // transformers writes these into every part.
    for (const char* key : {"model_type", "dtype", "torch_dtype"}) {
      if (attention->is_object()) attention->erase(key);
    }
  }
  OrderedJson block{{"name", "mpt_causal_lm"}};
  for (const auto& [key, value] : model.items()) {
    bool harmless = is_harmless_key(key);
    for (const char* known : kHarmless) harmless = harmless || key == known;
    if (!harmless) block[key] = value;
  }
  return block;
}

// transformers' class takes no float for an int, however round.
OrderedJson number(double value) {
  constexpr double kMostExact = 9007199254740992;  // 2^53
  const bool whole = std::abs(value) <= kMostExact && std::trunc(value) == value;
  return whole ? OrderedJson(static_cast<std::int64_t>(value)) : OrderedJson(value);
}

OrderedJson attention_block(const ModelConfig& config) {
  const AttentionConfig& attention = config.attention;
  OrderedJson block;
  const bool grouped = attention.kv_n_heads != attention.n_heads;
  block["attn_type"] = grouped ? "grouped_query_attention" : "multihead_attention";
  if (grouped) block["kv_n_heads"] = attention.kv_n_heads;
  block["attn_impl"] = "torch";
  block["attn_pdrop"] = number(attention.dropout);
  block["qk_ln"] = attention.qk_norm == QkNorm::kWhole;
  block["qk_gn"] = attention.qk_norm == QkNorm::kPerHead;
  block["fused_qkv"] = attention.fused_qkv;
  block["clip_qkv"] = nullptr;
  if (attention.clip_qkv > 0) block["clip_qkv"] = attention.clip_qkv;
  block["softmax_scale"] = nullptr;
  if (attention.softmax_scale) block["softmax_scale"] = *attention.softmax_scale;
  block["attn_uses_sequence_id"] = attention.sequence_ids;
  block["sliding_window_size"] = attention.window;
  if (attention.logit_softcap > 0) block["attn_logit_softcapping"] = attention.logit_softcap;
  block["alibi"] = attention.alibi;
  block["alibi_bias_max"] = number(attention.alibi_bias_max);
  block["rope"] = attention.rope;
  if (!attention.rope) return block;
  block["rope_theta"] = attention.rope_theta;
  block["rope_impl"] = "hf";
  const RopeScaling& scaling = attention.rope_scaling;
  OrderedJson rope{{"type", scaling.type_name()}, {"factor", scaling.factor}};
  if (scaling.type == RopeScaling::Type::kYarn) {
    inexpressible("model.attn_config.rope_hf_config", "yarn", "LLM Foundry has no such scaling");
  }
  if (scaling.type == RopeScaling::Type::kLlama3) {
    rope["low_freq_factor"] = scaling.low_freq_factor;
    rope["high_freq_factor"] = scaling.high_freq_factor;
    rope["original_max_position_embeddings"] = scaling.original_max_seq_len;
  }
  block["rope_hf_config"] = rope;
  return block;
}

OrderedJson activation_of(Activation activation) {
  if (activation == Activation::kGeluTanh) return {{"name", "gelu"}, {"approximate", "tanh"}};
  return {{"name", activation_name(activation)}};
}

OrderedJson ffn_block(const ModelConfig& config) {
  const MoELayerConfig* layer = config.moe();
  if (!layer) {
    const auto& dense = std::get<FfnConfig>(config.ffn);
    return {{"ffn_type", dense.glu ? "mptglu" : "mptmlp"},
            {"ffn_hidden_size", dense.d_ffn},
            {"ffn_act_fn", activation_of(dense.activation)}};
  }
  OrderedJson block;
  const double capacity = layer->moe.capacity_factor;
  block["ffn_type"] = capacity > 0 ? "mb_moe" : "mb_dmoe";
  if (capacity > 0) block["moe_capacity_factor"] = capacity;
  block["mlp_type"] = layer->moe.glu ? "glu" : "mlp";
  block["mlp_impl"] = "grouped";
  block["ffn_hidden_size"] = layer->moe.d_ffn;
  block["ffn_act_fn"] = activation_of(layer->moe.activation);
  block["moe_num_experts"] = layer->moe.num_experts;
  block["moe_top_k"] = layer->moe.top_k;
  block["moe_world_size"] = 1;
  block["moe_loss_weight"] = layer->loss_weight;
  if (layer->jitter_eps > 0) block["moe_jitter_eps"] = layer->jitter_eps;
  if (layer->zloss_weight > 0) block["moe_zloss_weight"] = layer->zloss_weight;
  if (layer->moe.route.normalize_p > 0) {
    block["moe_normalize_expert_weights"] = layer->moe.route.normalize_p;
  }
  if (layer->moe.route.selection == RouteSelection::kUniform) {
    block["uniform_expert_assignment"] = true;
  }
  block["bias"] = layer->bias;
  if (layer->shared_d_ffn > 0) {
    block["shared_expert"] = true;
    block["shared_expert_hidden_size"] = layer->shared_d_ffn;
    block["shared_expert_weighted_sum"] = layer->shared_weighted;
  }
  return block;
}

OrderedJson model_block(const ModelConfig& config) {
  OrderedJson block = foundry_sizes(config);
  if (config.attention.head_dim * config.n_heads != config.d_model) {
    block["head_dim"] = config.attention.head_dim;
  }
  block["learned_pos_emb"] = config.learned_pos_emb;
  block["no_bias"] = !config.bias;
  block["attention_bias"] = config.attention.bias;
  block["norm_type"] = config.norm.type == NormType::kRmsNorm ? "rmsnorm" : "layernorm";
  block["norm_eps"] = config.norm.eps;
  block["tie_word_embeddings"] = config.tie_word_embeddings;
  block["use_pad_tok_in_ffn"] = config.pads_in_ffn;
  block["embedding_fraction"] = config.embedding_fraction;
  block["emb_pdrop"] = config.emb_pdrop;
  block["resid_pdrop"] = config.resid_pdrop;
  block["logit_scale"] = nullptr;
  if (config.logit_scale != 1) block["logit_scale"] = config.logit_scale;
  if (config.final_logit_softcap > 0) block["final_logit_softcapping"] = config.final_logit_softcap;
  block["attn_config"] = attention_block(config);
  block["ffn_config"] = ffn_block(config);
  if (config.layer_windows.empty()) return block;
  OrderedJson& blocks = block["block_overrides"];
  for (const std::int64_t window : config.layer_windows) {
    const std::string name = fmt::format("window_{}", window);
    blocks["overrides"][name] = {{"attn_config", {{"sliding_window_size", window}}}};
    blocks["order"].push_back({{"name", name}});
  }
  return block;
}

}  // namespace

OrderedJson foundry_sizes(const ModelConfig& config) {
  return {{"d_model", config.d_model},
          {"n_heads", config.n_heads},
          {"n_layers", config.n_layers},
          {"max_seq_len", config.max_seq_len},
          {"vocab_size", config.vocab_size}};
}

ReleasedModel read_mpt_config(const Json& json, const std::string& path) {
  std::vector<std::string> oddities;
  const OrderedJson block = block_of(json, path, oddities);
  const YamlDocument document = YamlDocument::parse(block.dump(), path).without_warnings();
  return {Family::kMpt, ModelConfig::from_yaml(document.root()), block, std::move(oddities)};
}

std::optional<OrderedJson> hf_mpt_config(const ModelConfig& config) {
  const AttentionConfig& attention = config.attention;
  const bool even = attention.head_dim * config.n_heads == config.d_model;
  if (!attention.alibi || config.moe() || !even || attention.alibi_bias_max != kHfAlibiBiasMax) {
    return std::nullopt;
  }
  OrderedJson json = foundry_sizes(config);
  json["expansion_ratio"] = 4;  // the class has this one
  json["layer_norm_epsilon"] = config.norm.eps;
  json["learned_pos_emb"] = false;
  json["no_bias"] = true;
  json["tie_word_embeddings"] = true;
  json["attn_config"] = {{"alibi", true}, {"alibi_bias_max", kHfAlibiBiasMax}};
  if (attention.clip_qkv > 0) json["attn_config"]["clip_qkv"] = attention.clip_qkv;
  if (attention.softmax_scale) json["attn_config"]["softmax_scale"] = *attention.softmax_scale;
  // What has no key here is another model when it is read again.
  Json all = Json::parse(json.dump());
  all["architectures"] = {"MptForCausalLM"};
  const auto said = read_mpt_config(all, "config.json").config.maths();
  for (const auto& wanted : config.maths()) {
    if (wanted.first == "model.attn_config.attn_uses_sequence_id") continue;  // of one document
    if (std::find(said.begin(), said.end(), wanted) == said.end()) return std::nullopt;
  }
  return json;
}

OrderedJson make_mpt_config(const ModelConfig& config, const std::string& dtype, const Json& kept) {
  OrderedJson json;
  json["architectures"] = {"MPTForCausalLM"};
  json["model_type"] = family_name(Family::kMpt);
  json["torch_dtype"] = dtype;
  json.update(model_block(config));
  // What LLM Foundry has no key for is missing when the block is read again.
  const auto said = read_mpt_config(Json::parse(json.dump()), "config.json").config.maths();
  for (const auto& wanted : config.maths()) {
    if (std::find(said.begin(), said.end(), wanted) == said.end()) {
      inexpressible(wanted.first, wanted.second, "LLM Foundry has no such model");
    }
  }
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    json[key] = kept.is_object() && kept.contains(key) ? kept[key] : Json();
  }
  return json;
}

}  // namespace dropless::train
