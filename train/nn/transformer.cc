#include "train/nn/transformer.h"

#include <utility>

#include "dropless/error.h"

namespace dropless::train {
namespace {

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
  config.eps = map.get<double>("norm_eps", config.eps);
  if (config.eps <= 0) map.fail("norm_eps", "norm_eps must be above 0");
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
  dense.d_ffn = map->get<std::int64_t>("ffn_hidden_size", d_ffn);
  dense.activation = activation_from_yaml(*map, dense.activation);
  if (dense.d_ffn < 1) map->fail("ffn_hidden_size", "ffn_hidden_size must be at least 1");
  map->no_effect("fc_type", "there is one linear layer");
  map->finish();
  return dense;
}

void refuse_unsupported(const YamlMap& map) {
  const auto refuse_if = [&](const char* key, bool set) {
    if (set) map.fail(key, std::string(key) + " is not supported by this version");
  };
  refuse_if("resid_pdrop", map.get<double>("resid_pdrop", 0.0) != 0.0);
  refuse_if("emb_pdrop", map.get<double>("emb_pdrop", 0.0) != 0.0);
  refuse_if("embedding_fraction", map.get<double>("embedding_fraction", 1.0) != 1.0);
  refuse_if("logit_scale", map.has("logit_scale"));
  refuse_if("final_logit_softcapping", map.has("final_logit_softcapping"));
  refuse_if("fuse_norm_attn_norm", map.get<bool>("fuse_norm_attn_norm", false));
  for (const char* key : {"logit_scale", "final_logit_softcapping"}) map.skip(key);
}

std::int64_t positive(const YamlMap& map, const char* key, std::int64_t fallback) {
  const std::int64_t value = map.get<std::int64_t>(key, fallback);
  if (value < 1) map.fail(key, std::string(key) + " must be at least 1");
  return value;
}

}  // namespace

ModelConfig ModelConfig::from_yaml(const YamlMap& map) {
  ModelConfig config;
  const std::string name = map.get<std::string>("name", "mpt_causal_lm");
  if (name != "mpt_causal_lm") {
    map.fail("name", "model " + name + " is not supported by this version", "use mpt_causal_lm");
  }
  config.d_model = positive(map, "d_model", config.d_model);
  config.n_heads = positive(map, "n_heads", config.n_heads);
  config.n_layers = positive(map, "n_layers", config.n_layers);
  config.max_seq_len = positive(map, "max_seq_len", config.max_seq_len);
  config.vocab_size = positive(map, "vocab_size", config.vocab_size);
  config.bias = !map.get<bool>("no_bias", false);
  config.tie_word_embeddings = map.get<bool>("tie_word_embeddings", true);
  config.norm = norm_from_yaml(map, config.bias);
  const auto head_dim = map.find<std::int64_t>("head_dim");
  if (head_dim && *head_dim < 1) map.fail("head_dim", "head_dim must be at least 1");
  const YamlMap empty = YamlDocument::parse("{}", map.where()).root();
  config.attention =
      AttentionConfig::from_yaml(map.find_map("attn_config").value_or(empty), config.d_model,
                                 config.n_heads, head_dim, config.bias);
  config.learned_pos_emb = map.get<bool>("learned_pos_emb", true) && !config.attention.rope;
  const double expansion = map.get<double>("expansion_ratio", 4.0);
  if (expansion <= 0) map.fail("expansion_ratio", "expansion_ratio must be above 0");
  const auto d_ffn = static_cast<std::int64_t>(static_cast<double>(config.d_model) * expansion);
  config.ffn = ffn_from_yaml(map.find_map("ffn_config"), config.d_model, d_ffn, config.bias);
  if (const auto init = map.find_map("init_config")) config.init = InitConfig::from_yaml(*init);
  refuse_unsupported(map);
  map.no_effect("loss_fn", "there is one cross-entropy");
  map.no_effect("init_device", "weights are drawn on the CPU");
  map.no_effect("fc_type", "there is one linear layer");
  map.no_effect("use_cache", "generation always uses a key/value cache");
  map.no_effect("verbose", "nothing more is printed");
  map.finish();
  return config;
}

struct Transformer::Block {
  Norm norm_1;
  Attention attention;
  Norm norm_2;
  std::variant<Ffn, MoE> ffn;
};

namespace {

std::variant<Ffn, MoE> make_ffn(const ModelConfig& config, const std::string& name,
                                ParameterMaker& maker) {
  if (const MoELayerConfig* moe = config.moe()) return MoE(*moe, name, maker);
  return Ffn(std::get<FfnConfig>(config.ffn), name, maker);
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, std::uint64_t seed, at::Device device)
    : config_(config), device_(device) {
  ParameterMaker maker(config.init, config.d_model, config.n_layers, seed, device);
  wte_ = maker.embedding("transformer.wte.weight", config.vocab_size, config.d_model);
  if (config.learned_pos_emb) {
    wpe_ = maker.embedding("transformer.wpe.weight", config.max_seq_len, config.d_model);
  }
  blocks_.reserve(config.n_layers);
  for (std::int64_t i = 0; i < config.n_layers; ++i) {
    const std::string name = "transformer.blocks." + std::to_string(i);
    // Braces: evaluated left to right, so parameters are made in the order of the pass.
    blocks_.push_back(Block{Norm(config.norm, name + ".norm_1", config.d_model, maker),
                            Attention(config.attention, name + ".attn", maker, device),
                            Norm(config.norm, name + ".norm_2", config.d_model, maker),
                            make_ffn(config, name + ".ffn", maker)});
  }
  norm_f_.emplace(config.norm, "transformer.norm_f", config.d_model, maker);
  if (!config.tie_word_embeddings) {
    lm_head_ = maker.linear("lm_head.weight", config.vocab_size, config.d_model);
  }
  parameters_ = maker.take();
}

Transformer::~Transformer() = default;

at::Tensor Transformer::forward(const at::Tensor& tokens_BS, RouterRecord& record,
                                ModelCache* cache) {
  if (cache && cache->empty()) cache->resize(blocks_.size());
  const bool cached = cache && (*cache)[0].keys.defined();
  const std::int64_t first = cached ? (*cache)[0].keys.size(2) : 0;
  at::Tensor x = at::embedding(wte_, tokens_BS);
  if (wpe_.defined()) {
    const std::int64_t end = first + tokens_BS.size(1);
    if (end > config_.max_seq_len) {
      throw Error(ErrorKind::kInvalidArgument,
                  "position " + std::to_string(end - 1) + " is beyond the " +
                      std::to_string(config_.max_seq_len) + " learned positions of this model",
                  "shorten the prompt or ask for fewer new tokens");
    }
    x = x + wpe_.narrow(0, first, tokens_BS.size(1)).unsqueeze(0);
  }
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    Block& block = blocks_[i];
    x = x + block.attention.forward(block.norm_1.forward(x), cache ? &(*cache)[i] : nullptr);
    const at::Tensor normed = block.norm_2.forward(x);
    if (const MoE* moe = std::get_if<MoE>(&block.ffn)) {
      x = x + moe->forward(normed, record);
    } else {
      x = x + std::get<Ffn>(block.ffn).forward(normed);
    }
  }
  return at::linear(norm_f_->forward(x), lm_head_.defined() ? lm_head_ : wte_);
}

ParameterCount Transformer::count() const {
  ParameterCount count;
  for (const Parameter& parameter : parameters_) {
    const std::int64_t n = parameter.value.numel();
    count.total += n;
    const MoELayerConfig* moe = config_.moe();
    count.active += parameter.expert ? n / moe->moe.num_experts * moe->moe.top_k : n;
  }
  return count;
}

at::Tensor cross_entropy_sum(const at::Tensor& logits_BSV, const at::Tensor& labels_BS) {
  const at::Tensor logits =
      logits_BSV.reshape({-1, logits_BSV.size(-1)})
          .to(logits_BSV.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  return at::cross_entropy_loss(logits, labels_BS.reshape({-1}), {}, at::Reduction::Sum,
                                /*ignore_index=*/-100);
}

}  // namespace dropless::train
