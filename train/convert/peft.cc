#include "train/convert/peft.h"

#include <fmt/format.h>

#include <array>
#include <set>
#include <utility>

#include "dropless/error.h"
#include "train/convert/hf_config.h"

namespace dropless::train {
namespace {

// The adapters of one matrix, or of one matrix of every expert.
struct Adapter {
  LoraTarget target;
  std::int64_t layer;
  std::string part;    // "attn", "ffn", "ffn.shared_expert" or "ffn.experts.mlp"
  std::string a, b;    // their parameters
  std::int64_t count;  // experts, or 1
  std::int64_t out, in;
  bool expert() const { return part == "ffn.experts.mlp"; }
  std::string block() const { return fmt::format("transformer.blocks.{}.", layer); }
};

std::vector<Adapter> adapters_of(const ModelConfig& config) {
  std::vector<Adapter> all;
  const LoraConfig& lora = *config.lora;
  const AttentionConfig& attention = config.attention;
  const std::int64_t D = config.d_model, q = attention.n_heads * attention.head_dim;
  const std::int64_t kv = attention.kv_n_heads * attention.head_dim;
  std::int64_t layer = 0;
  const auto add = [&](LoraTarget target, const std::string& part, std::int64_t out,
                       std::int64_t in) {
    if (!lora.has(target)) return;
    const std::string name =
        fmt::format("transformer.blocks.{}.{}.{}", layer, part, lora_target_name(target));
    all.push_back(
        {target, layer, part, name + ".lora_A.weight", name + ".lora_B.weight", 1, out, in});
  };
  const auto add_dense = [&](const std::string& part, std::int64_t F, bool glu) {
    if (glu) add(LoraTarget::kGate, part, F, D);
    add(LoraTarget::kUp, part, F, D);
    add(LoraTarget::kDown, part, D, F);
  };
  const auto add_experts = [&](LoraTarget target, const char* weight, std::int64_t experts,
                               std::int64_t out, std::int64_t in) {
    if (!lora.has(target)) return;
    const std::string part = "ffn.experts.mlp";
    const std::string name = fmt::format("transformer.blocks.{}.{}.{}", layer, part, weight);
    all.push_back({target, layer, part, name + ".lora_A", name + ".lora_B", experts, out, in});
  };
  for (; layer < config.n_layers; ++layer) {
    add(LoraTarget::kWqkv, "attn", q + 2 * kv, D);
    add(LoraTarget::kQ, "attn", q, D);
    add(LoraTarget::kK, "attn", kv, D);
    add(LoraTarget::kV, "attn", kv, D);
    add(LoraTarget::kOut, "attn", D, q);
    const auto ffn = config.ffn_of(layer);
    if (const auto* dense = std::get_if<FfnConfig>(&ffn)) {
      add_dense("ffn", dense->d_ffn, dense->glu);
      continue;
    }
    const auto& mixture = std::get<MoELayerConfig>(ffn);
    const std::int64_t E = mixture.moe.num_experts, F = mixture.moe.d_ffn;
    const bool glu = mixture.moe.glu;
    add_experts(glu ? LoraTarget::kGate : LoraTarget::kUp, "w1", E, F, D);
    if (glu) add_experts(LoraTarget::kUp, "v1", E, F, D);
    add_experts(LoraTarget::kDown, "w2", E, D, F);
    if (mixture.shared_d_ffn > 0) add_dense("ffn.shared_expert", mixture.shared_d_ffn, glu);
  }
  return all;
}

// Where the rows of queries, keys and values are in Wqkv, and how many.
struct Rows {
  LoraTarget target;
  std::int64_t first, count;
  const char* module;      // Hugging Face's
  const char* own_matrix;  // ours, with fused_qkv: false
};

std::array<Rows, 3> attention_rows(const ModelConfig& config) {
  const AttentionConfig& attention = config.attention;
  const std::int64_t q = attention.n_heads * attention.head_dim;
  const std::int64_t kv = attention.kv_n_heads * attention.head_dim;
  return {Rows{LoraTarget::kQ, 0, q, "q_proj", "Wq"},
          {LoraTarget::kK, q, kv, "k_proj", "Wk"},
          {LoraTarget::kV, q + kv, kv, "v_proj", "Wv"}};
}

void merge_attention(const ModelConfig& config, const Adapter& adapter, const at::Tensor& a,
                     const at::Tensor& b, TensorFolder& folder) {
  const std::string attn = adapter.block() + "attn.";
  const bool whole = adapter.target == LoraTarget::kWqkv;
  for (const Rows& rows : attention_rows(config)) {
    if (!whole && rows.target != adapter.target) continue;
    const at::Tensor left = whole ? b.narrow(0, rows.first, rows.count) : b;
    if (config.attention.fused_qkv) {
      folder.add_term(attn + "Wqkv.weight", {rows.first, left, a});
    } else {
      folder.add_term(attn + rows.own_matrix + ".weight", {0, left, a});
    }
  }
}

}  // namespace

std::vector<std::string> adapter_names(const ModelConfig& config) {
  std::vector<std::string> names;
  for (const Adapter& adapter : adapters_of(config)) {
    names.push_back(adapter.a);
    names.push_back(adapter.b);
  }
  return names;
}

void merge_adapters(const ModelConfig& config, TensorFolder& folder) {
  const std::int64_t r = config.lora->r;
  for (const Adapter& adapter : adapters_of(config)) {
    const at::Tensor a = read_whole(folder, adapter.a);
    const at::Tensor b = read_whole(folder, adapter.b) * config.lora->scale();
    if (adapter.part == "attn" && adapter.target != LoraTarget::kOut) {
      merge_attention(config, adapter, a, b, folder);
    } else if (!adapter.expert()) {
      const char* name = lora_target_name(adapter.target);
      folder.add_term(fmt::format("{}{}.{}.weight", adapter.block(), adapter.part, name),
                      {0, b, a});
    } else {
      const std::string weight = adapter.a.substr(0, adapter.a.rfind(".lora_A"));
      for (std::int64_t e = 0; e < adapter.count; ++e) {
        const at::Tensor a_e = a.narrow(0, e * r, r);
        const at::Tensor b_e = b.narrow(0, e * adapter.out, adapter.out);
        // Ours of the down projection is [F, D], the transposed of a linear layer's.
        if (adapter.target == LoraTarget::kDown) {
          folder.add_term(weight, {e * adapter.in, a_e.t(), b_e.t()});
        } else {
          folder.add_term(weight, {e * adapter.out, b_e, a_e});
        }
      }
    }
  }
}

namespace {

// The modules of an adapter in Hugging Face's class, as links from our parameters.
class PeftNames {
 public:
  PeftNames(const ModelConfig& config, Family family) : config_(config), family_(family) {}

  void add(const Adapter& adapter) {
    ours.push_back({adapter.a, {adapter.count * config_.lora->r, adapter.in}});
    ours.push_back({adapter.b, {adapter.count * adapter.out, config_.lora->r}});
    if (adapter.part == "attn") return attention(adapter);
    if (!adapter.expert()) {
      module(adapter, ffn_prefix(adapter), leaf(adapter));
      if (adapter.part == "ffn" && family_ == Family::kQwen3Moe) dense_.push_back(adapter);
      return;
    }
    experts_.insert(adapter.target);
    if (!llama_like()) {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("PEFT has no adapters for the experts of {}, which are no modules",
                              family_name(family_)),
                  "merge them into the model: convert --to hf");
    }
    const std::string prefix = fmt::format("model.layers.{}.{}.experts.", adapter.layer,
                                           mixtral() ? "block_sparse_moe" : "mlp");
    const char* name = mixtral() ? mixtral_leaf(adapter) : leaf(adapter);
    const std::int64_t r = config_.lora->r;
    for (std::int64_t e = 0; e < adapter.count; ++e) {
      link(adapter, fmt::format("{}{}.", prefix, e), name, {e * r, r},
           {e * adapter.out, adapter.out});
    }
  }

  std::vector<Link> links;
  std::vector<TensorShape> ours, tensors;
  std::set<std::string> leaves;  // adapter_config.json's target_modules

  bool has_experts() const { return !experts_.empty(); }
  bool has_gates() const { return experts_.contains(LoraTarget::kGate); }
  // PEFT 0.21 makes parameters of the stacked experts out of target_modules that are called like their
  // layers. It does so for none of Qwen2-MoE's, and for Qwen3-MoE's dense layers of these names too.
  std::set<std::string> target_parameters() const {
    std::set<std::string> names;
    if (family_ == Family::kQwen2Moe) {
      if (has_gates()) names.insert("mlp.experts.gate_up_proj");
      if (experts_.contains(LoraTarget::kDown)) names.insert("mlp.experts.down_proj");
    } else if (has_experts()) {
      for (const Adapter& adapter : dense_) {
        names.insert(ffn_prefix(adapter) + leaf(adapter) + ".weight");
      }
    }
    return names;
  }
  // Throws Error(kUnsupported). Our models may have adapters of one half.
  void require_pairs() const {
    if (has_gates() == experts_.contains(LoraTarget::kUp)) return;
    throw Error(ErrorKind::kUnsupported,
                fmt::format("PEFT has one adapter for gate_proj and up_proj of an expert, and this "
                            "model has one of {} alone",
                            has_gates() ? "gate_proj" : "up_proj"),
                "train both; or merge it into the model: convert --to hf");
  }

 private:
  struct Range {
    std::int64_t first, count;
  };

  bool mixtral() const { return family_ == Family::kMixtral; }
  bool llama_like() const { return family_ != Family::kDbrx && family_ != Family::kMpt; }
  static const char* leaf(const Adapter& adapter) { return lora_target_name(adapter.target); }
  static const char* mixtral_leaf(const Adapter& adapter) {
    if (adapter.target == LoraTarget::kGate) return "w1";
    return adapter.target == LoraTarget::kUp ? "w3" : "w2";
  }
  std::string ffn_prefix(const Adapter& adapter) const {
    if (!llama_like()) return adapter.block() + adapter.part + ".";
    const char* part = adapter.part == "ffn" ? "mlp." : "mlp.shared_expert.";
    return fmt::format("model.layers.{}.{}", adapter.layer, part);
  }

  void attention(const Adapter& adapter) {
    if (llama_like()) {
      const std::string prefix = fmt::format("model.layers.{}.self_attn.", adapter.layer);
      if (adapter.target == LoraTarget::kOut) return module(adapter, prefix, "o_proj");
      if (adapter.target != LoraTarget::kWqkv) return module(adapter, prefix, leaf(adapter));
      // One A of three layers is an A of each.
      for (const Rows& rows : attention_rows(config_)) {
        link(adapter, prefix, rows.module, {0, config_.lora->r}, {rows.first, rows.count});
      }
      return;
    }
    if (adapter.target != LoraTarget::kOut && adapter.target != LoraTarget::kWqkv &&
        config_.attention.fused_qkv) {
      throw Error(
          ErrorKind::kUnsupported,
          fmt::format("{} has one module for queries, keys and values, and this adapter is of {}",
                      family_name(family_), leaf(adapter)),
          "merge it into the model: convert --to hf; or train one of Wqkv");
    }
    const bool dbrx = family_ == Family::kDbrx;
    module(adapter, adapter.block() + (dbrx ? "norm_attn_norm.attn." : "attn."), leaf(adapter));
  }

  void module(const Adapter& adapter, const std::string& prefix, const char* name) {
    link(adapter, prefix, name, {0, config_.lora->r}, {0, adapter.out});
  }
  void link(const Adapter& adapter, const std::string& prefix, const char* name, Range a, Range b) {
    const std::string module = "base_model.model." + prefix + name;
    const std::int64_t r = config_.lora->r;
    links.push_back({adapter.a, a.first, module + ".lora_A.weight", 0, r, adapter.in, false});
    links.push_back({adapter.b, b.first, module + ".lora_B.weight", 0, b.count, r, false});
    tensors.push_back({module + ".lora_A.weight", {r, adapter.in}});
    tensors.push_back({module + ".lora_B.weight", {b.count, r}});
    leaves.insert(name);
  }

  const ModelConfig& config_;
  Family family_;
  std::set<LoraTarget> experts_;  // which of every expert's matrices have adapters
  std::vector<Adapter> dense_;    // of Qwen3-MoE's dense layers
};

PeftNames peft_names(const ModelConfig& config, Family family) {
  PeftNames names(config, family);
  for (const Adapter& adapter : adapters_of(config)) names.add(adapter);
  return names;
}

}  // namespace

PeftLayout peft_layout(const ModelConfig& config, Family family) {
  PeftNames names = peft_names(config, family);
  return {std::move(names.ours), std::move(names.tensors), std::move(names.links)};
}

Family peft_family_of(ModelConfig config, const nlohmann::json& kept) {
  config.set_lora(std::nullopt);
  try {
    return hf_family_of(config, kept);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUnsupported) throw;
    return Family::kMpt;
  }
}

std::optional<std::string> peft_obstacle(const ModelConfig& config, const nlohmann::json& kept) {
  try {
    peft_names(config, peft_family_of(config, kept)).require_pairs();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUnsupported) throw;
    return error.what();
  }
  return std::nullopt;
}

std::vector<MappedTensor> peft_tensors(const ModelConfig& config, Family family) {
  const PeftNames names = peft_names(config, family);
  names.require_pairs();
  return gather_pieces(names.links, names.tensors, /*ours=*/false);
}

nlohmann::ordered_json make_adapter_config(const ModelConfig& config, Family family,
                                           const std::string& base) {
  const LoraConfig& lora = *config.lora;
  const PeftNames names = peft_names(config, family);
  nlohmann::ordered_json json{{"peft_type", "LORA"},
                              {"task_type", "CAUSAL_LM"},
                              {"base_model_name_or_path", base},
                              {"r", lora.r},
                              {"lora_alpha", lora.alpha},
                              {"lora_dropout", lora.dropout},
                              {"use_rslora", lora.rslora},
                              {"target_modules", names.leaves},
                              {"bias", "none"},
                              {"fan_in_fan_out", false},
                              {"init_lora_weights", true},
                              {"inference_mode", true}};
  if (!names.has_experts()) return json;
  // PEFT has no dropout for parameters, and doubles alpha with the rank whatever the scale is.
  json["lora_dropout"] = 0.0;
  if (lora.rslora) {
    json["lora_alpha"] = lora.scale() * static_cast<double>(lora.r);
    json["use_rslora"] = false;
  }
  if (const auto parameters = names.target_parameters(); !parameters.empty()) {
    json["target_parameters"] = parameters;
  }
  if (family == Family::kQwen2Moe && names.has_gates()) {
    constexpr const char* kBoth = ".*\\.gate_up_proj";
    json["rank_pattern"][kBoth] = 2 * lora.r;
    json["alpha_pattern"][kBoth] = 2 * json["lora_alpha"].get<double>();
  }
  return json;
}

}  // namespace dropless::train
