#include "train/convert/mistral_config.h"

#include <algorithm>

#include "train/base/yaml.h"
#include "train/convert/config_keys.h"

namespace dropless::train {
namespace {

// Where params.json does not say how long a text may be.
constexpr std::int64_t kDefaultLength = 32768;

OrderedJson block_of(const Keys& keys) {
  OrderedJson block;
  block["name"] = "mpt_causal_lm";
  block["d_model"] = keys.get<std::int64_t>("dim");
  const auto n_heads = keys.get<std::int64_t>("n_heads");
  block["n_heads"] = n_heads;
  block["n_layers"] = keys.get<std::int64_t>("n_layers");
  const char* length =
      keys.has("max_position_embeddings") ? "max_position_embeddings" : "max_seq_len";
  block["max_seq_len"] = keys.get<std::int64_t>(length, kDefaultLength);
  block["vocab_size"] = keys.get<std::int64_t>("vocab_size");
  block["head_dim"] = keys.get<std::int64_t>("head_dim");
  block["no_bias"] = true;
  block["norm_type"] = "rmsnorm";
  block["norm_eps"] = keys.get<double>("norm_eps");
  block["tie_word_embeddings"] = false;
  for (const char* key : {"tied_embeddings", "use_biases"}) {
    keys.refuse_unless(key, !keys.get<bool>(key, false));
  }
  keys.refuse_unless("quantization", false);
  keys.refuse_unless("causal", keys.get<bool>("causal", true));
  const auto model_type = keys.get<std::string>("model_type", "transformer");
  keys.refuse_unless("model_type", model_type == "transformer");
  keys.has("max_batch_size");  // of a server

  OrderedJson& attention = block["attn_config"];
  const auto kv_heads = keys.get<std::int64_t>("n_kv_heads", n_heads);
  attention["attn_type"] = kv_heads == n_heads ? "multihead_attention" : "grouped_query_attention";
  if (kv_heads != n_heads) attention["kv_n_heads"] = kv_heads;
  attention["rope"] = true;
  // mistral-inference's default hangs on the window: the first model has both, its successors neither.
  const bool windowed = keys.has("sliding_window");
  attention["rope_theta"] = keys.get<double>("rope_theta", windowed ? 1e4 : 1e6);
  if (windowed) {
    const auto window = keys.get<std::int64_t>("sliding_window");
    if (window < 1) keys.fail(fmt::format("sliding_window {} is below 1", window));
    attention["sliding_window_size"] = window - 1;  // without the token itself
  }
  OrderedJson& ffn = block["ffn_config"];
  ffn["ffn_act_fn"] = {{"name", "silu"}};
  ffn["ffn_hidden_size"] = keys.get<std::int64_t>("hidden_dim");
  if (!keys.is_part("moe")) {
    ffn["ffn_type"] = "mptglu";
    return block;
  }
  const Keys moe = keys.part("moe");
  ffn.update({{"ffn_type", "mb_dmoe"},
              {"mlp_type", "glu"},
              {"mlp_impl", "grouped"},
              {"moe_num_experts", moe.get<std::int64_t>("num_experts")},
              {"moe_top_k", moe.get<std::int64_t>("num_experts_per_tok")},
              {"moe_world_size", 1},
              {"moe_loss_weight", 0.02},
              {"moe_normalize_expert_weights", 1}});
  moe.finish();
  return block;
}

}  // namespace

ReleasedModel read_mistral_params(const Json& json, const std::string& path) {
  const Keys keys(json, path);
  const OrderedJson block = block_of(keys);
  keys.finish();
  const YamlDocument document =
      YamlDocument::parse(block.dump(), path + ", as a `model` block").without_warnings();
  return {Family::kMistralNative, ModelConfig::from_yaml(document.root()), block};
}

OrderedJson make_mistral_params(const ModelConfig& config) {
  const MoELayerConfig* layer = config.moe();
  const auto* dense = std::get_if<FfnConfig>(&config.ffn);
  OrderedJson json;
  json["dim"] = config.d_model;
  json["n_layers"] = config.n_layers;
  json["head_dim"] = config.attention.head_dim;
  json["hidden_dim"] = layer ? layer->moe.d_ffn : dense->d_ffn;
  json["n_heads"] = config.n_heads;
  json["n_kv_heads"] = config.attention.kv_n_heads;
  json["norm_eps"] = config.norm.eps;
  json["vocab_size"] = config.vocab_size;
  json["max_seq_len"] = config.max_seq_len;
  json["rope_theta"] = config.attention.rope_theta;
  if (config.attention.window >= 0) json["sliding_window"] = config.attention.window + 1;
  if (layer) {
    json["moe"] = {{"num_experts_per_tok", layer->moe.top_k},
                   {"num_experts", layer->moe.num_experts}};
  }
  // What params.json has no key for is missing when it is read again.
  const auto said = read_mistral_params(Json::parse(json.dump()), "params.json").config.maths();
  for (const auto& wanted : config.maths()) {
    if (wanted.first == "model.attn_config.attn_uses_sequence_id") continue;  // of one document
    if (std::find(said.begin(), said.end(), wanted) == said.end()) {
      inexpressible(wanted.first, wanted.second, "Mistral's layout has no such model");
    }
  }
  return json;
}

}  // namespace dropless::train
