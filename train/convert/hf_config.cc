#include "train/convert/hf_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "dropless/error.h"
#include "train/base/yaml.h"
#include "train/convert/config_keys.h"
#include "train/convert/mpt_config.h"

namespace dropless::train {
namespace {

constexpr std::pair<const char*, Family> kFamilies[] = {
    {"mixtral", Family::kMixtral}, {"olmoe", Family::kOlmoe}, {"qwen3_moe", Family::kQwen3Moe},
    {"dbrx", Family::kDbrx},       {"llama", Family::kLlama}, {"mistral", Family::kMistral},
    {"qwen3", Family::kQwen3},     {"qwen2", Family::kQwen2}, {"qwen2_moe", Family::kQwen2Moe},
};

// transformers' names of activations first, ours second; for each of ours the first is written.
constexpr std::pair<const char*, const char*> kActivations[] = {
    {"silu", "silu"},
    {"swish", "silu"},
    {"gelu", "gelu"},
    {"gelu_pytorch_tanh", "gelu_tanh"},
    {"gelu_new", "gelu_tanh"},
    {"relu", "relu"},
    {"quick_gelu", "quick_gelu"},
};

// What a scaled RoPE says beside its type, under the same names on both sides.
constexpr const char* kRopeNumbers[] = {"factor",           "original_max_position_embeddings",
                                        "low_freq_factor",  "high_freq_factor",
                                        "beta_fast",        "beta_slow",
                                        "attention_factor", "mscale",
                                        "mscale_all_dim"};

// Where both are there, transformers takes rope_scaling alone and forgets what only the other says.
void require_one_rope(const Keys& keys, double theta) {
  if (!keys.is_part("rope_parameters") || !keys.is_part("rope_scaling")) return;
  const auto said = [&](const char* key) {
    Json rope = keys.raw(key);
    if (!rope.contains("rope_type")) rope["rope_type"] = rope.value("type", Json("default"));
    if (!rope.contains("rope_theta")) rope["rope_theta"] = keys.get<double>("rope_theta", theta);
    rope.erase("type");
    return rope;
  };
  if (said("rope_parameters") == said("rope_scaling")) return;
  keys.fail("rope_parameters and rope_scaling say different things",
            "keep one of them; transformers takes rope_scaling");
}

// As transformers: what rope_parameters or rope_scaling says counts, and another number beside it does not.
void remark_other_theta(const Keys& keys, const std::string& name, double said, double taken) {
  if (said == taken) return;
  keys.remark(
      fmt::format("{} {} is not used, as in transformers: rope_parameters or rope_scaling says {}",
                  name, said, taken));
}

// rope_parameters (transformers 5) or rope_theta and rope_scaling (before), into `attention`.
void read_rope(const Keys& keys, double theta, const char* max_positions, OrderedJson& attention) {
  require_one_rope(keys, theta);
  attention["rope_theta"] = keys.get<double>("rope_theta", theta);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!keys.has(key)) continue;
    const Keys rope = keys.part(key);
    attention["rope_theta"] = rope.get<double>("rope_theta", attention["rope_theta"]);
    rope.refuse_unless("partial_rotary_factor",
                       rope.get<double>("partial_rotary_factor", 1.0) == 1.0);
    const auto type = rope.get<std::string>("rope_type", rope.get<std::string>("type", "default"));
    const char* name = rope.has("rope_type") ? "rope_type" : "type";
    static const std::set<std::string> known = {"default", "linear", "dynamic", "llama3", "yarn"};
    rope.refuse_unless(name, known.contains(type));
    OrderedJson scaling{{"type", type}};
    for (const char* number : kRopeNumbers) {
      if (rope.has(number)) scaling[number] = rope.raw(number);
    }
    if (type == "yarn" && !scaling.contains("original_max_position_embeddings")) {
      scaling["original_max_position_embeddings"] = keys.get<std::int64_t>(max_positions);
    }
    if (rope.has("truncate")) scaling["truncate"] = rope.get<bool>("truncate");
    rope.finish();
    if (type == "default") continue;
    // transformers keeps the first training's length for these too, and reads the context from
    // max_position_embeddings.
    if (type == "linear" || type == "dynamic") scaling.erase("original_max_position_embeddings");
    attention["rope_impl"] = "hf";
    attention["rope_hf_config"] = scaling;
  }
  if (keys.has("rope_theta")) {
    remark_other_theta(keys, "rope_theta", keys.get<double>("rope_theta"),
                       attention["rope_theta"].get<double>());
  }
}

std::string read_activation(const Keys& keys, const char* key) {
  const auto name = keys.get<std::string>(key, "silu");
  for (const auto& [theirs, ours] : kActivations) {
    if (name == theirs) return ours;
  }
  keys.refuse_unless(key, false);
  return name;
}

void refuse_dropout(const Keys& keys, std::initializer_list<const char*> names) {
  for (const char* key : names) keys.refuse_unless(key, keys.get<double>(key, 0.0) == 0.0);
}

OrderedJson attention_block(std::int64_t n_heads, std::int64_t kv_n_heads) {
  OrderedJson block;
  if (kv_n_heads == n_heads) {
    block["attn_type"] = "multihead_attention";
  } else {
    block["attn_type"] = "grouped_query_attention";
    block["kv_n_heads"] = kv_n_heads;
  }
  block["rope"] = true;
  return block;
}

OrderedJson moe_block(const std::string& activation, std::int64_t d_ffn, std::int64_t experts,
                      std::int64_t top_k, double normalize, double loss_weight) {
  OrderedJson block;
  block["ffn_type"] = "mb_dmoe";
  block["mlp_type"] = "glu";
  block["mlp_impl"] = "grouped";
  block["ffn_act_fn"] = {{"name", activation}};
  block["ffn_hidden_size"] = d_ffn;
  block["moe_num_experts"] = experts;
  block["moe_top_k"] = top_k;
  block["moe_world_size"] = 1;
  block["moe_loss_weight"] = loss_weight;
  if (normalize != 0) block["moe_normalize_expert_weights"] = normalize;
  return block;
}

// What every family says, under names of its own: `sizes` are those of d_model, n_heads, n_layers and
// max_seq_len.
OrderedJson model_block(const Keys& keys, const std::array<const char*, 4>& sizes,
                        const char* norm_type) {
  OrderedJson block;
  block["name"] = "mpt_causal_lm";
  block["d_model"] = keys.get<std::int64_t>(sizes[0]);
  block["n_heads"] = keys.get<std::int64_t>(sizes[1]);
  const auto n_layers = keys.get<std::int64_t>(sizes[2]);
  constexpr std::int64_t kMostLayers = 10'000;  // a list of layers is made before the block is read
  if (n_layers < 1 || n_layers > kMostLayers) {
    keys.fail(fmt::format("{} is {}, not from 1 to {}", sizes[2], n_layers, kMostLayers));
  }
  block["n_layers"] = n_layers;
  block["max_seq_len"] = keys.get<std::int64_t>(sizes[3]);
  block["vocab_size"] = keys.get<std::int64_t>("vocab_size");
  block["no_bias"] = true;
  block["norm_type"] = norm_type;
  return block;
}

OrderedJson dbrx_block(const Keys& keys) {
  OrderedJson model =
      model_block(keys, {"d_model", "n_heads", "n_layers", "max_seq_len"}, "layernorm");
  const auto d_model = model["d_model"].get<std::int64_t>();
  const auto n_heads = model["n_heads"].get<std::int64_t>();
  model["tie_word_embeddings"] = false;
  keys.refuse_unless("tie_word_embeddings", !keys.get<bool>("tie_word_embeddings", false));
  refuse_dropout(keys, {"emb_pdrop", "resid_pdrop"});
  keys.has("router_aux_loss_coef");  // the same as ffn_config.moe_loss_weight

  if (!keys.is_part("attn_config") || !keys.is_part("ffn_config")) {
    keys.fail("attn_config and ffn_config must be objects");
  }
  const Keys attention = keys.part("attn_config");
  const auto kv_heads = attention.get<std::int64_t>("kv_n_heads", 1);
  keys.refuse_unless("num_key_value_heads",
                     keys.get<std::int64_t>("num_key_value_heads", kv_heads) == kv_heads);
  refuse_dropout(attention, {"attn_pdrop"});
  model["attn_config"] = attention_block(n_heads, kv_heads);
  read_rope(keys, attention.get<double>("rope_theta", 10000.0), "max_seq_len",
            model["attn_config"]);
  if (attention.has("rope_theta")) {  // and transformers 5 writes its default beside it
    remark_other_theta(keys, "attn_config.rope_theta", attention.get<double>("rope_theta"),
                       model["attn_config"]["rope_theta"].get<double>());
  }
  if (attention.has("clip_qkv")) {
    model["attn_config"]["clip_qkv"] = attention.get<double>("clip_qkv");
  }
  attention.finish();

  const Keys ffn = keys.part("ffn_config");
  std::string activation = "silu";
  if (ffn.has("ffn_act_fn")) {
    const Keys act = ffn.part("ffn_act_fn");
    activation = read_activation(act, "name");
    act.finish();
  }
  ffn.refuse_unless("hidden_size", ffn.get<std::int64_t>("hidden_size", d_model) == d_model);
  ffn.refuse_unless("moe_jitter_eps", ffn.get<double>("moe_jitter_eps", 0.0) == 0.0);
  ffn.refuse_unless("uniform_expert_assignment",
                    !ffn.get<bool>("uniform_expert_assignment", false));
  // Absent and null differ: the class's default is 1.
  const bool off = ffn.is_null("moe_normalize_expert_weights");
  const double normalize = off ? 0.0 : ffn.get<double>("moe_normalize_expert_weights", 1.0);
  model["ffn_config"] =
      moe_block(activation, ffn.get<std::int64_t>("ffn_hidden_size"),
                ffn.get<std::int64_t>("moe_num_experts"), ffn.get<std::int64_t>("moe_top_k"),
                normalize, ffn.get<double>("moe_loss_weight", 0.01));
  ffn.finish();
  return model;
}

// Which layers have the window, where `layer_types` does not say.
enum class WindowedLayers {
  kAll,           // and `layer_types` is not read
  kFromMax,       // from max_window_layers on
  kEvenBelowMax,  // 0, 2, 4 ... below max_window_layers
};

// What differs between the families that share Llama's names.
struct LlamaTraits {
  double rope_theta = 10000;
  double norm_eps = 1e-6;
  const char* experts = nullptr;  // the key of their number; nullptr: dense
  const char* d_ffn = "intermediate_size";
  bool reads_window = true;
  bool sliding_window_switch = false;  // use_sliding_window decides
  WindowedLayers windowed = WindowedLayers::kAll;
  bool qkv_bias = false;  // of queries, keys and values, but not of the output
  bool shared_expert = false;
  std::optional<std::int64_t> head_dim;  // absent: hidden_size / num_attention_heads
  const char* qk_norm = nullptr;         // our key
  double loss_coefficient = 0.001;
  std::optional<std::int64_t> default_window;  // where config.json does not say `null`
};

LlamaTraits traits_of(Family family) {
  LlamaTraits traits;
  switch (family) {
    case Family::kMixtral:
      traits.rope_theta = 1e6;
      traits.norm_eps = 1e-5;
      traits.experts = "num_local_experts";
      break;
    case Family::kLlama:
      traits.reads_window = false;
      break;
    case Family::kOlmoe:
      traits.reads_window = false;
      traits.norm_eps = 1e-5;
      traits.experts = "num_experts";
      traits.qk_norm = "qk_ln";
      traits.loss_coefficient = 0.01;
      break;
    case Family::kQwen2Moe:
      traits.experts = "num_experts";
      traits.d_ffn = "moe_intermediate_size";
      traits.sliding_window_switch = true;
      traits.windowed = WindowedLayers::kEvenBelowMax;
      traits.default_window = 4096;
      traits.qkv_bias = true;
      traits.shared_expert = true;
      break;
    case Family::kQwen2:
      traits.sliding_window_switch = true;
      traits.windowed = WindowedLayers::kFromMax;
      traits.default_window = 4096;
      traits.qkv_bias = true;
      break;
    case Family::kQwen3Moe:
      traits.experts = "num_experts";
      traits.d_ffn = "moe_intermediate_size";
      traits.sliding_window_switch = true;
      traits.default_window = 4096;
      traits.qk_norm = "qk_gn";
      break;
    case Family::kMistral:
      traits.default_window = 4096;
      break;
    case Family::kQwen3:
      traits.sliding_window_switch = true;
      traits.windowed = WindowedLayers::kFromMax;
      traits.default_window = 4096;
      traits.head_dim = 128;
      traits.qk_norm = "qk_gn";
      break;
    default:
      break;
  }
  return traits;
}

// By max_window_layers, or layer by layer.
std::vector<bool> windowed_layers(const Keys& keys, const LlamaTraits& traits,
                                  std::int64_t n_layers) {
  std::vector<bool> windowed(static_cast<std::size_t>(n_layers), true);
  if (!traits.sliding_window_switch) return windowed;
  const auto most = keys.get<std::int64_t>("max_window_layers", 28);
  if (keys.has("layer_types")) {
    const Json& types = keys.raw("layer_types");
    if (!types.is_array() || types.size() != windowed.size()) {
      keys.fail(fmt::format("layer_types is no list of {} layers", n_layers));
    }
    for (std::size_t i = 0; i < windowed.size(); ++i) {
      windowed[i] = types[i] == "sliding_attention";
      keys.refuse_unless("layer_types", windowed[i] || types[i] == "full_attention");
    }
  } else {
    for (std::int64_t i = 0; i < n_layers; ++i) {
      windowed[static_cast<std::size_t>(i)] =
          traits.windowed == WindowedLayers::kEvenBelowMax ? i % 2 == 0 && i < most : i >= most;
    }
  }
  return windowed;
}

// A window of W tokens, the query's own among them, is ours of W - 1.
void read_windows(const Keys& keys, const LlamaTraits& traits, OrderedJson& model) {
  const bool used = !traits.sliding_window_switch || keys.get<bool>("use_sliding_window", false);
  const auto n_layers = model["n_layers"].get<std::int64_t>();
  std::optional<std::int64_t> window;
  if (keys.has("sliding_window")) window = keys.get<std::int64_t>("sliding_window");
  if (window && !traits.reads_window) {
    keys.remark("sliding_window is not used: transformers' class of this model does not read it");
    return;
  }
  if (!window && !keys.is_null("sliding_window")) window = traits.default_window;
  std::vector<bool> windowed = windowed_layers(keys, traits, n_layers);
  // One that no position reaches changes nothing.
  if (!used || !window || *window >= model["max_seq_len"].get<std::int64_t>()) return;
  if (*window < 1) keys.fail(fmt::format("sliding_window {} is below 1", *window));
  // What transformers' class computes, and with it the tools around it.
  if (traits.sliding_window_switch && traits.windowed == WindowedLayers::kAll) {
    const bool said = keys.has("max_window_layers") || keys.has("layer_types");
    if (said && std::count(windowed.begin(), windowed.end(), false) > 0) {
      keys.remark(
          "all layers have the sliding window: transformers' class of this model reads neither "
          "max_window_layers nor layer_types");
    }
    windowed.assign(windowed.size(), true);
  }
  const auto layers = std::count(windowed.begin(), windowed.end(), true);
  if (layers == 0) return;
  if (layers == n_layers) {
    model["attn_config"]["sliding_window_size"] = *window - 1;
    return;
  }
  OrderedJson& overrides = model["block_overrides"];
  overrides["overrides"]["windowed"] = {{"attn_config", {{"sliding_window_size", *window - 1}}}};
  for (const bool one : windowed) {
    overrides["order"].push_back({{"name", one ? "windowed" : "default"}});
  }
}

// Which layers are mixtures, where not all are; the others have a width of their own.
void read_dense_layers(const Keys& keys, std::int64_t n_layers, OrderedJson& block) {
  const auto step = keys.get<std::int64_t>("decoder_sparse_step", 1);
  if (step < 1) keys.fail(fmt::format("decoder_sparse_step {} is below 1", step));
  std::set<std::int64_t> dense;
  if (keys.has("mlp_only_layers")) {
    for (const Json& layer : keys.raw("mlp_only_layers")) {
      if (!layer.is_number_integer()) keys.fail("mlp_only_layers is no list of layers");
      dense.insert(layer.get<std::int64_t>());
    }
  }
  std::vector<std::int64_t> mixtures;
  for (std::int64_t i = 0; i < n_layers; ++i) {
    if ((i + 1) % step == 0 && !dense.contains(i)) mixtures.push_back(i);
  }
  const bool all = static_cast<std::int64_t>(mixtures.size()) == n_layers;
  if (all) {
    keys.has("intermediate_size");  // of no layer
    return;
  }
  block["moe_layers"] = mixtures;
  block["dense_ffn_hidden_size"] = keys.get<std::int64_t>("intermediate_size");
}

OrderedJson llama_moe_block(const Keys& keys, Family family, const LlamaTraits& traits,
                            const std::string& activation, std::int64_t n_layers) {
  // transformers writes either name.
  const char* other =
      std::string_view(traits.experts) == "num_experts" ? "num_local_experts" : "num_experts";
  const char* name = keys.has(traits.experts) ? traits.experts : other;
  const auto experts = keys.get<std::int64_t>(name);
  keys.refuse_unless(other, keys.get<std::int64_t>(other, experts) == experts);
  const auto top_k = keys.get<std::int64_t>("num_experts_per_tok");
  const bool normalize = family == Family::kMixtral || keys.get<bool>("norm_topk_prob", false);
  refuse_dropout(keys, {"router_jitter_noise"});
  // Balanced, transformers' loss is top_k, ours 1.
  const double loss = keys.get<double>("router_aux_loss_coef", traits.loss_coefficient) *
                      static_cast<double>(top_k);
  OrderedJson block = moe_block(activation, keys.get<std::int64_t>(traits.d_ffn), experts, top_k,
                                normalize ? 1.0 : 0.0, loss);
  if (family == Family::kQwen3Moe || family == Family::kQwen2Moe) {
    read_dense_layers(keys, n_layers, block);
  }
  if (traits.shared_expert) {
    block["shared_expert"] = true;
    block["shared_expert_gate"] = true;
    block["shared_expert_hidden_size"] = keys.get<std::int64_t>("shared_expert_intermediate_size");
  }
  return block;
}

void read_biases(const Keys& keys, Family family, const LlamaTraits& traits, OrderedJson& model) {
  const char* key = traits.qkv_bias ? "qkv_bias" : "attention_bias";
  const bool bias = keys.get<bool>(key, traits.qkv_bias);
  const bool optional = family != Family::kMixtral && family != Family::kMistral;
  keys.refuse_unless(key, optional || !bias);
  if (!bias) return;
  model["attention_bias"] = true;
  if (traits.qkv_bias) model["attn_config"]["out_proj_bias"] = false;
}

OrderedJson llama_block(const Keys& keys, Family family) {
  const LlamaTraits traits = traits_of(family);
  OrderedJson model = model_block(
      keys, {"hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings"},
      "rmsnorm");
  const auto n_heads = model["n_heads"].get<std::int64_t>();
  if (keys.has("head_dim")) {
    model["head_dim"] = keys.get<std::int64_t>("head_dim");
  } else if (traits.head_dim) {
    model["head_dim"] = *traits.head_dim;
  }
  model["norm_eps"] = keys.get<double>("rms_norm_eps", traits.norm_eps);
  model["tie_word_embeddings"] = keys.get<bool>("tie_word_embeddings", false);
  const bool mlp_bias = keys.get<bool>("mlp_bias", false);
  keys.refuse_unless("mlp_bias", family == Family::kLlama || !mlp_bias);
  if (mlp_bias) {
    model["no_bias"] = false;
    model["attention_bias"] = false;  // which follows no_bias where nothing is said
  }
  refuse_dropout(keys, {"attention_dropout"});
  keys.refuse_unless("clip_qkv", family == Family::kOlmoe);
  model["attn_config"] =
      attention_block(n_heads, keys.get<std::int64_t>("num_key_value_heads", n_heads));
  read_rope(keys, traits.rope_theta, "max_position_embeddings", model["attn_config"]);
  read_windows(keys, traits, model);
  read_biases(keys, family, traits, model);
  if (traits.qk_norm) model["attn_config"][traits.qk_norm] = true;
  if (keys.has("clip_qkv")) {
    model["attn_config"]["clip_qkv"] = keys.get<double>("clip_qkv");
    model["attn_config"]["clip_qkv_after_norm"] = true;
  }
  const std::string activation = read_activation(keys, "hidden_act");
  if (traits.experts) {
    model["ffn_config"] =
        llama_moe_block(keys, family, traits, activation, model["n_layers"].get<std::int64_t>());
  } else {
    model["ffn_config"] = {{"ffn_type", "mptglu"},
                           {"ffn_act_fn", {{"name", activation}}},
                           {"ffn_hidden_size", keys.get<std::int64_t>(traits.d_ffn)}};
  }
  return model;
}

}  // namespace

ReleasedModel read_hf_config(const Json& json, const std::string& path) {
  const Keys keys(json, path);
  if (keys.has("quantization_config")) {
    throw Error(ErrorKind::kUnsupported,
                path + ": quantization_config: quantised weights are not read",
                "dequantise them first: transformers' model.dequantize() and save_pretrained");
  }
  const auto type = keys.get<std::string>("model_type");
  if (type == family_name(Family::kMpt)) return read_mpt_config(json, path);
  const auto* family = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                    [&](const auto& known) { return type == known.first; });
  if (family == std::end(kFamilies)) {
    std::vector<std::string> names;
    for (const auto& known : kFamilies) names.push_back(known.first);
    names.push_back(family_name(Family::kMpt));
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: model_type {} is not supported by this version", path, type),
                fmt::format("one of: {}", fmt::join(names, ", ")));
  }
  const OrderedJson model =
      family->second == Family::kDbrx ? dbrx_block(keys) : llama_block(keys, family->second);
  keys.finish();
  // JSON is YAML; read as a user's block is, with the same bounds.
  const std::string where = path + ", as a `model` block";
  const YamlDocument document = YamlDocument::parse(model.dump(), where).without_warnings();
  return {family->second, ModelConfig::from_yaml(document.root()), model, keys.remarks()};
}

// ---- writing ----

namespace {

// Every key of the model that decides its function must be said by config.json or have the one
// value that all families share. A key that is not listed here is one that this writer does not
// know.
void check_expressible(const ModelConfig& config) {
  static const std::set<std::string> said = {
      "d_model", "n_heads", "n_layers", "vocab_size", "head_dim", "tie_word_embeddings", "no_bias",
      "norm_type", "norm_eps", "attention_bias", "attn_config.kv_n_heads", "attn_config.clip_qkv",
      "attn_config.clip_qkv_after_norm", "attn_config.qk_ln", "attn_config.qk_gn",
      "attn_config.rope_theta", "attn_config.rope_hf_config", "attn_config.sliding_window_size",
      "attn_config.out_proj_bias",
      // Of one document, the same function.
      "attn_config.attn_uses_sequence_id", "ffn_config.ffn_type", "ffn_config.ffn_hidden_size",
      "ffn_config.dense_ffn_hidden_size", "ffn_config.ffn_act_fn", "ffn_config.moe_layers",
      "ffn_config.moe_num_experts", "ffn_config.moe_top_k",
      "ffn_config.moe_normalize_expert_weights", "ffn_config.shared_expert_hidden_size",
      "ffn_config.shared_expert_gate"};
  static const std::map<std::string, std::string> fixed = {
      {"learned_pos_emb", "false"},
      {"attn_config.softmax_scale", "null"},
      {"attn_config.rope", "true"},
      {"attn_config.alibi", "false"},
      {"attn_config.attn_logit_softcapping", "0"},
      {"attn_config.fused_qkv", "true"},
      {"logit_scale", "1"},
      {"final_logit_softcapping", "0"},
      {"ffn_config.mlp_type", "glu"},
      {"ffn_config.uniform_expert_assignment", "false"},
      {"ffn_config.moe_router_score", "softmax"},
      {"ffn_config.moe_routed_scaling_factor", "1"},
      {"ffn_config.moe_num_groups", "1"},
      {"ffn_config.moe_group_top_k", "1"},
      {"ffn_config.moe_selection_bias", "false"},
      {"ffn_config.moe_capacity_factor", "0"},
      {"ffn_config.shared_expert_weighted_sum", "false"}};
  for (const auto& [name, value] : config.maths()) {
    const std::string key = name.substr(std::string("model.").size());
    if (said.contains(key)) continue;
    const auto only = fixed.find(key);
    if (only == fixed.end()) inexpressible(name, value);
    if (value != only->second) inexpressible(name, value, "they have " + only->second);
  }
  const bool layernorm = config.norm.type == NormType::kLayerNorm;
  if (config.bias && (config.moe() || layernorm)) inexpressible("model.no_bias", "false");
}

std::string their_activation(Activation activation) {
  for (const auto& [theirs, ours] : kActivations) {
    if (std::string_view(ours) == activation_name(activation)) return theirs;
  }
  inexpressible("model.ffn_config.ffn_act_fn", activation_name(activation));
}

OrderedJson rope_parameters(const ModelConfig& config) {
  const RopeScaling& scaling = config.attention.rope_scaling;
  using Type = RopeScaling::Type;
  OrderedJson rope{{"rope_theta", config.attention.rope_theta}, {"rope_type", "default"}};
  if (scaling.type == Type::kNone) return rope;
  rope["rope_type"] = scaling.type_name();
  rope["factor"] = scaling.factor;
  if (scaling.original_max_seq_len > 0) {
    rope["original_max_position_embeddings"] = scaling.original_max_seq_len;
  }
  if (scaling.type == Type::kLlama3) {
    rope["low_freq_factor"] = scaling.low_freq_factor;
    rope["high_freq_factor"] = scaling.high_freq_factor;
  }
  if (scaling.type == Type::kYarn) {
    rope["beta_fast"] = scaling.beta_fast;
    rope["beta_slow"] = scaling.beta_slow;
    rope["attention_factor"] = scaling.attention_factor;
    rope["truncate"] = scaling.truncate;
  }
  return rope;
}

OrderedJson dbrx_config(const ModelConfig& config) {
  const MoELayerConfig& layer = *config.moe();
  const AttentionConfig& attention = config.attention;
  OrderedJson json = foundry_sizes(config);
  json["attn_config"] = {{"kv_n_heads", attention.kv_n_heads},
                         {"clip_qkv", nullptr},
                         {"rope_theta", attention.rope_theta}};
  if (attention.clip_qkv > 0) json["attn_config"]["clip_qkv"] = attention.clip_qkv;
  json["ffn_config"] = {{"ffn_act_fn", {{"name", their_activation(layer.moe.activation)}}},
                        {"ffn_hidden_size", layer.moe.d_ffn},
                        {"hidden_size", config.d_model},
                        {"moe_num_experts", layer.moe.num_experts},
                        {"moe_top_k", layer.moe.top_k},
                        {"moe_loss_weight", layer.loss_weight},
                        {"moe_normalize_expert_weights", nullptr}};
  if (layer.moe.route.normalize_p != 0) {
    json["ffn_config"]["moe_normalize_expert_weights"] = layer.moe.route.normalize_p;
  }
  json["router_aux_loss_coef"] = layer.loss_weight;
  json["rope_parameters"] = rope_parameters(config);
  return json;
}

bool knows_windows(Family family) { return traits_of(family).reads_window; }

void write_windows(const ModelConfig& config, Family family, OrderedJson& json) {
  if (!knows_windows(family)) return;
  const bool mixed = !config.layer_windows.empty();
  const std::int64_t window =
      mixed ? *std::max_element(config.layer_windows.begin(), config.layer_windows.end())
            : config.attention.window;
  json["sliding_window"] = nullptr;
  if (window >= 0) json["sliding_window"] = window + 1;
  if (!traits_of(family).sliding_window_switch) return;
  json["use_sliding_window"] = window >= 0;
  json["max_window_layers"] = 0;
  for (std::int64_t i = 0; i < config.n_layers; ++i) {
    const bool windowed = config.attention_of(i).window >= 0;
    json["layer_types"].push_back(windowed ? "sliding_attention" : "full_attention");
  }
}

OrderedJson llama_config(const ModelConfig& config, Family family) {
  const LlamaTraits traits = traits_of(family);
  const MoELayerConfig* layer = config.moe();
  const auto* dense = std::get_if<FfnConfig>(&config.ffn);
  const std::int64_t d_ffn = layer ? layer->moe.d_ffn : dense->d_ffn;
  OrderedJson json;
  json["hidden_size"] = config.d_model;
  json["intermediate_size"] = config.dense_layers.empty() ? d_ffn : config.dense_ffn.d_ffn;
  json[traits.d_ffn] = d_ffn;
  json["num_hidden_layers"] = config.n_layers;
  json["num_attention_heads"] = config.n_heads;
  json["num_key_value_heads"] = config.attention.kv_n_heads;
  json["head_dim"] = config.attention.head_dim;
  json["max_position_embeddings"] = config.max_seq_len;
  json["vocab_size"] = config.vocab_size;
  json["hidden_act"] = their_activation(layer ? layer->moe.activation : dense->activation);
  json["rms_norm_eps"] = config.norm.eps;
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  // Both spellings: transformers before 5 knows the one, later ones write the other.
  json["rope_theta"] = config.attention.rope_theta;
  json["rope_parameters"] = rope_parameters(config);
  // What transformers before 5 reads in its place.
  if (config.attention.rope_scaling.type != RopeScaling::Type::kNone) {
    json["rope_scaling"] = rope_parameters(config);
    json["rope_scaling"].erase("rope_theta");
  }
  write_windows(config, family, json);
  if (traits.qkv_bias) json["qkv_bias"] = config.attention.bias;
  if (!traits.qkv_bias && config.attention.bias) json["attention_bias"] = true;
  if (config.bias) json["mlp_bias"] = true;
  if (config.attention.clip_qkv > 0) json["clip_qkv"] = config.attention.clip_qkv;
  if (layer) {
    json[traits.experts] = layer->moe.num_experts;
    json["num_experts_per_tok"] = layer->moe.top_k;
    json["router_aux_loss_coef"] = layer->loss_weight / static_cast<double>(layer->moe.top_k);
    if (family != Family::kMixtral) json["norm_topk_prob"] = layer->moe.route.normalize_p == 1.0;
    if (traits.shared_expert) json["shared_expert_intermediate_size"] = layer->shared_d_ffn;
    if (!config.dense_layers.empty()) json["mlp_only_layers"] = config.dense_layers;
  }
  return json;
}

}  // namespace

namespace {

bool has_windows(const ModelConfig& config) {
  return config.attention.window >= 0 || !config.layer_windows.empty();
}

Family dense_family_of(const ModelConfig& config, const FfnConfig& dense, bool qkv_bias,
                       const Json& kept) {
  if (!dense.glu) inexpressible("model.ffn_config.ffn_type", "mptmlp", "they have mptglu");
  const QkNorm norm = config.attention.qk_norm;
  if (norm == QkNorm::kWhole) {
    inexpressible("model.attn_config.qk_ln", "true", "dense ones have qk_gn");
  }
  if (norm == QkNorm::kPerHead) return Family::kQwen3;
  if (qkv_bias) return Family::kQwen2;
  const bool mistral = kept.is_object() && kept.value("model_type", Json()) == "mistral";
  if (config.bias && !has_windows(config)) return Family::kLlama;
  return mistral || has_windows(config) ? Family::kMistral : Family::kLlama;
}

Family mixture_family_of(const ModelConfig& config, const MoELayerConfig& layer, bool qkv_bias) {
  const double p = layer.moe.route.normalize_p;
  const QkNorm norm = config.attention.qk_norm;
  if (layer.shared_d_ffn > 0) {
    if (!layer.shared_gate) {
      inexpressible("model.ffn_config.shared_expert", "true", "without shared_expert_gate");
    }
    if (norm != QkNorm::kNone) inexpressible("a norm of queries and keys", "beside shared_expert");
  }
  const bool shared = layer.shared_d_ffn > 0;
  const bool optional = norm != QkNorm::kNone || shared;
  if (p != 1.0 && !(optional && p == 0.0)) {
    inexpressible("model.ffn_config.moe_normalize_expert_weights", fmt::format("{}", p));
  }
  if (shared) return Family::kQwen2Moe;
  if (qkv_bias) inexpressible("model.attn_config.out_proj_bias", "false", "without shared_expert");
  if (norm == QkNorm::kNone) return Family::kMixtral;
  return norm == QkNorm::kWhole ? Family::kOlmoe : Family::kQwen3Moe;
}

// What only some of the families with Llama's names have.
void check_attention(const ModelConfig& config, Family family) {
  const LlamaTraits traits = traits_of(family);
  const bool both = config.attention.bias && config.attention.out_bias;
  if (both && (family == Family::kMixtral || family == Family::kMistral || traits.qkv_bias)) {
    inexpressible("model.attention_bias", "true", family_name(family) + std::string(" has none"));
  }
  if (config.bias && family != Family::kLlama) {
    inexpressible("model.no_bias", "false", family_name(family) + std::string(" has none"));
  }
  if (has_windows(config) && !knows_windows(family)) {
    inexpressible("model.attn_config.sliding_window_size", "a window",
                  family_name(family) + std::string(" has none"));
  }
  if (!config.layer_windows.empty()) {
    std::set<std::int64_t> sizes(config.layer_windows.begin(), config.layer_windows.end());
    sizes.erase(-1);
    if (!traits.sliding_window_switch || sizes.size() > 1) {
      inexpressible("model.block_overrides", "windows of several sizes");
    }
    if (traits.windowed == WindowedLayers::kAll) {
      inexpressible("model.block_overrides", "windows on some layers",
                    family_name(family) + std::string(" has them on all or none"));
    }
  }
  if (!config.dense_layers.empty() && family != Family::kQwen2Moe && family != Family::kQwen3Moe) {
    inexpressible("model.ffn_config.moe_layers", "some layers",
                  family_name(family) + std::string(" has mixtures in all"));
  }
}

}  // namespace

Family hf_family_of(const ModelConfig& config, const Json& kept) {
  if (hf_mpt_config(config)) return Family::kMpt;
  const AttentionConfig& attention = config.attention;
  if (attention.alibi && attention.alibi_bias_max != kHfAlibiBiasMax) {
    inexpressible("model.attn_config.alibi_bias_max", fmt::format("{}", attention.alibi_bias_max),
                  fmt::format("transformers' MptForCausalLM takes {}", kHfAlibiBiasMax));
  }
  check_expressible(config);
  const MoELayerConfig* layer = config.moe();
  const auto* dense = std::get_if<FfnConfig>(&config.ffn);
  if (config.norm.type == NormType::kLayerNorm) {
    if (!layer) inexpressible("model.norm_type", "layernorm", "dense ones have rmsnorm");
    if (config.norm.eps != 1e-5)
      inexpressible("model.norm_eps", fmt::format("{}", config.norm.eps));
    if (config.tie_word_embeddings) {
      inexpressible("model.tie_word_embeddings", "true", "DBRX has false");
    }
    if (attention.qk_norm != QkNorm::kNone) {
      inexpressible("a norm of queries and keys", "beside layernorm");
    }
    if (attention.head_dim * config.n_heads != config.d_model) {
      inexpressible("model.head_dim", fmt::format("{}", attention.head_dim));
    }
    if (attention.bias || attention.out_bias) inexpressible("model.attention_bias", "true");
    if (has_windows(config)) inexpressible("model.attn_config.sliding_window_size", "a window");
    if (!config.dense_layers.empty()) inexpressible("model.ffn_config.moe_layers", "some layers");
    if (layer->shared_d_ffn > 0) inexpressible("model.ffn_config.shared_expert", "true");
    return Family::kDbrx;
  }
  const bool qkv_bias = attention.bias && !attention.out_bias;
  if (!attention.bias && attention.out_bias) {
    inexpressible("model.attn_config.out_proj_bias", "true", "without attention_bias");
  }
  const Family family = layer ? mixture_family_of(config, *layer, qkv_bias)
                              : dense_family_of(config, *dense, qkv_bias, kept);
  check_attention(config, family);
  if (attention.clip_qkv != 0 && !(family == Family::kOlmoe && attention.clip_after_norm)) {
    inexpressible("model.attn_config.clip_qkv", fmt::format("{}", attention.clip_qkv),
                  "beside rmsnorm; OLMoE has it with clip_qkv_after_norm");
  }
  return family;
}

OrderedJson make_hf_config(const ModelConfig& config, const std::string& dtype, const Json& kept) {
  const Family family = hf_family_of(config, kept);
  static const std::map<Family, const char*> architectures = {
      {Family::kMixtral, "MixtralForCausalLM"},   {Family::kOlmoe, "OlmoeForCausalLM"},
      {Family::kQwen3Moe, "Qwen3MoeForCausalLM"}, {Family::kDbrx, "DbrxForCausalLM"},
      {Family::kLlama, "LlamaForCausalLM"},       {Family::kMistral, "MistralForCausalLM"},
      {Family::kQwen3, "Qwen3ForCausalLM"},       {Family::kQwen2, "Qwen2ForCausalLM"},
      {Family::kQwen2Moe, "Qwen2MoeForCausalLM"}, {Family::kMpt, "MptForCausalLM"}};
  OrderedJson json;
  json["architectures"] = {architectures.at(family)};
  json["model_type"] = family_name(family);
  json["torch_dtype"] = dtype;
  json.update(family == Family::kMpt    ? *hf_mpt_config(config)
              : family == Family::kDbrx ? dbrx_config(config)
                                        : llama_config(config, family));
  // Null, where the model came without: the classes' defaults are those of their first models.
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    json[key] = kept.is_object() && kept.contains(key) ? kept[key] : Json();
  }
  return json;
}

}  // namespace dropless::train
