#include "train/convert/tensor_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "dropless/error.h"
#include "train/nn/transformer.h"

namespace dropless::train {
namespace {

std::int64_t count(const std::vector<std::int64_t>& shape) {
  std::int64_t product = 1;
  for (const std::int64_t size : shape) product *= size;
  return product;
}

// Links both sides of one model, in the order of its layers.
class Linker {
 public:
  Linker(const ModelConfig& config, Family family, ExpertForm form)
      : config_(config), family_(family), form_(form) {}

  // `ours`: the model's parameters.
  std::vector<Link> links(const std::vector<TensorShape>& ours) {
    if (family_ == Family::kDbrx) {
      dbrx();
    } else if (family_ == Family::kMpt || family_ == Family::kMptFusedNorms) {
      mpt(ours);
    } else if (family_ == Family::kMistralNative) {
      mistral();
    } else {
      llama_like();
    }
    return std::move(links_);
  }
  const std::map<std::string, std::vector<std::int64_t>>& their_shapes() const { return shapes_; }

 private:
  // The whole of one tensor, of one shape on both sides.
  void same(const std::string& ours, const std::string& theirs, std::vector<std::int64_t> shape) {
    const std::int64_t columns = shape.back();
    links_.push_back({ours, 0, theirs, 0, count(shape) / columns, columns, false});
    shapes_[theirs] = std::move(shape);
  }
  // Rows [row, row + rows) of ours are the whole of theirs.
  void rows(const std::string& ours, std::int64_t row, const std::string& theirs,
            std::int64_t n_rows, std::int64_t columns) {
    links_.push_back({ours, row, theirs, 0, n_rows, columns, false});
    shapes_[theirs] = {n_rows, columns};
  }

  // The same of vectors.
  void elements(const std::string& ours, std::int64_t first, const std::string& theirs,
                std::int64_t count) {
    links_.push_back({ours, first, theirs, 0, count, 1, false});
    shapes_[theirs] = {count};
  }

  void embeddings(const std::string& table, const std::string& norm) {
    const std::int64_t V = config_.vocab_size, D = config_.d_model;
    same("transformer.wte.weight", table, {V, D});
    if (!config_.tie_word_embeddings) same("lm_head.weight", "lm_head.weight", {V, D});
    same("transformer.norm_f.weight", norm, {D});
  }

  void dbrx() {
    const std::int64_t D = config_.d_model;
    const AttentionConfig& attention = config_.attention;
    const std::int64_t q = attention.n_heads * attention.head_dim;
    const MoELayerConfig& layer = *config_.moe();
    const std::int64_t E = layer.moe.num_experts, F = layer.moe.d_ffn;
    embeddings("transformer.wte.weight", "transformer.norm_f.weight");
    for (std::int64_t i = 0; i < config_.n_layers; ++i) {
      const std::string block = fmt::format("transformer.blocks.{}.", i);
      const std::string first = block + "norm_attn_norm.";
      same(block + "norm_1.weight", first + "norm_1.weight", {D});
      same(block + "norm_2.weight", first + "norm_2.weight", {D});
      same(block + "attn.Wqkv.weight", first + "attn.Wqkv.weight",
           {q + 2 * attention.kv_n_heads * attention.head_dim, D});
      same(block + "attn.out_proj.weight", first + "attn.out_proj.weight", {D, q});
      same(block + "ffn.router.layer.weight", block + "ffn.router.layer.weight", {E, D});
      for (const char* name : {"w1", "v1", "w2"}) {
        const std::string weight = block + "ffn.experts.mlp." + name;
        same(weight, weight, {E * F, D});
      }
    }
  }

  void attention(const std::string& block, const std::string& theirs) {
    const AttentionConfig& attention = config_.attention;
    const std::int64_t D = config_.d_model, d = attention.head_dim;
    const std::int64_t q = attention.n_heads * d, kv = attention.kv_n_heads * d;
    const std::string wqkv = block + "attn.Wqkv.weight";
    rows(wqkv, 0, theirs + "q_proj.weight", q, D);
    rows(wqkv, q, theirs + "k_proj.weight", kv, D);
    rows(wqkv, q + kv, theirs + "v_proj.weight", kv, D);
    same(block + "attn.out_proj.weight", theirs + "o_proj.weight", {D, q});
    if (attention.bias) {
      const std::string bias = block + "attn.Wqkv.bias";
      elements(bias, 0, theirs + "q_proj.bias", q);
      elements(bias, q, theirs + "k_proj.bias", kv);
      elements(bias, q + kv, theirs + "v_proj.bias", kv);
    }
    if (attention.out_bias) same(block + "attn.out_proj.bias", theirs + "o_proj.bias", {D});
    if (attention.qk_norm == QkNorm::kNone) return;
    const bool whole = attention.qk_norm == QkNorm::kWhole;
    same(block + "attn.q_ln.weight", theirs + "q_norm.weight", {whole ? q : d});
    same(block + "attn.k_ln.weight", theirs + "k_norm.weight", {whole ? kv : d});
  }

  void experts(const std::string& block, const std::string& layer) {
    const MoEConfig& moe = config_.moe()->moe;
    const std::int64_t E = moe.num_experts, F = moe.d_ffn, D = config_.d_model;
    const bool old_mixtral = family_ == Family::kMixtral && form_ == ExpertForm::kEach;
    const std::string mlp = layer + (old_mixtral ? "block_sparse_moe." : "mlp.");
    const std::string ours = block + "ffn.experts.mlp.";
    same(block + "ffn.router.layer.weight", mlp + "gate.weight", {E, D});
    for (std::int64_t e = 0; e < E; ++e) {
      if (form_ == ExpertForm::kStacked) {
        const std::string up = mlp + "experts.gate_up_proj", down = mlp + "experts.down_proj";
        links_.push_back({ours + "w1", e * F, up, 2 * e * F, F, D, false});
        links_.push_back({ours + "v1", e * F, up, (2 * e + 1) * F, F, D, false});
        links_.push_back({ours + "w2", e * F, down, e * D, F, D, true});
        shapes_[up] = {E, 2 * F, D};
        shapes_[down] = {E, D, F};
        continue;
      }
      const std::string expert = fmt::format("{}experts.{}.", mlp, e);
      rows(ours + "w1", e * F, expert + (old_mixtral ? "w1" : "gate_proj") + ".weight", F, D);
      rows(ours + "v1", e * F, expert + (old_mixtral ? "w3" : "up_proj") + ".weight", F, D);
      const std::string down = expert + (old_mixtral ? "w2" : "down_proj") + ".weight";
      links_.push_back({ours + "w2", e * F, down, 0, F, D, true});
      shapes_[down] = {D, F};
    }
  }

  void dense(const std::string& ours, const std::string& theirs, std::int64_t F) {
    const std::int64_t D = config_.d_model;
    for (const char* name : {"gate_proj.weight", "up_proj.weight"}) {
      same(ours + name, theirs + name, {F, D});
    }
    same(ours + "down_proj.weight", theirs + "down_proj.weight", {D, F});
    if (!config_.bias) return;
    for (const char* name : {"gate_proj.bias", "up_proj.bias"})
      same(ours + name, theirs + name, {F});
    same(ours + "down_proj.bias", theirs + "down_proj.bias", {D});
  }

  void llama_like() {
    embeddings("model.embed_tokens.weight", "model.norm.weight");
    for (std::int64_t i = 0; i < config_.n_layers; ++i) {
      const std::string block = fmt::format("transformer.blocks.{}.", i);
      const std::string layer = fmt::format("model.layers.{}.", i);
      same(block + "norm_1.weight", layer + "input_layernorm.weight", {config_.d_model});
      attention(block, layer + "self_attn.");
      same(block + "norm_2.weight", layer + "post_attention_layernorm.weight", {config_.d_model});
      const auto ffn = config_.ffn_of(i);
      if (const auto* mixture = std::get_if<MoELayerConfig>(&ffn)) {
        experts(block, layer);
        if (mixture->shared_d_ffn == 0) continue;
        dense(block + "ffn.shared_expert.", layer + "mlp.shared_expert.", mixture->shared_d_ffn);
        same(block + "ffn.shared_expert_gate.weight", layer + "mlp.shared_expert_gate.weight",
             {1, config_.d_model});
      } else {
        dense(block + "ffn.", layer + "mlp.", std::get<FfnConfig>(ffn).d_ffn);
      }
    }
  }

  // LLM Foundry's names are ours, but for what fuse_norm_attn_norm renames.
  void mpt(const std::vector<TensorShape>& ours) {
    for (const TensorShape& tensor : ours) {
      std::string theirs = tensor.name;
      if (family_ == Family::kMptFusedNorms) {
        for (const char* part : {".norm_1.", ".norm_2.", ".attn."}) {
          const std::size_t at = theirs.find(part);
          if (at != std::string::npos) theirs.insert(at, ".norm_attn_norm");
        }
      }
      same(tensor.name, theirs, tensor.shape);
    }
  }

  // Mistral turns neighbouring pairs of a head's elements, where everybody else turns i and d / 2 + i:
  // rows 2 i + h of a head there are rows h d / 2 + i here.
  void turned_rows(const std::string& ours, std::int64_t first, const std::string& theirs,
                   std::int64_t heads) {
    const std::int64_t d = config_.attention.head_dim, D = config_.d_model;
    for (std::int64_t row = 0; row < heads * d; ++row) {
      const std::int64_t within = row % d, pair = within % (d / 2), half = within / (d / 2);
      links_.push_back({ours, first + row, theirs, row - within + 2 * pair + half, 1, D, false});
    }
    shapes_[theirs] = {heads * d, D};
  }

  void mistral() {
    const AttentionConfig& attention = config_.attention;
    const std::int64_t D = config_.d_model, q = attention.n_heads * attention.head_dim;
    const std::int64_t kv = attention.kv_n_heads * attention.head_dim;
    same("transformer.wte.weight", "tok_embeddings.weight", {config_.vocab_size, D});
    for (std::int64_t i = 0; i < config_.n_layers; ++i) {
      const std::string block = fmt::format("transformer.blocks.{}.", i);
      const std::string layer = fmt::format("layers.{}.", i), wqkv = block + "attn.Wqkv.weight";
      same(block + "norm_1.weight", layer + "attention_norm.weight", {D});
      turned_rows(wqkv, 0, layer + "attention.wq.weight", attention.n_heads);
      turned_rows(wqkv, q, layer + "attention.wk.weight", attention.kv_n_heads);
      rows(wqkv, q + kv, layer + "attention.wv.weight", kv, D);
      same(block + "attn.out_proj.weight", layer + "attention.wo.weight", {D, q});
      same(block + "norm_2.weight", layer + "ffn_norm.weight", {D});
      mistral_ffn(block + "ffn.", layer);
    }
    same("transformer.norm_f.weight", "norm.weight", {D});
    same("lm_head.weight", "output.weight", {config_.vocab_size, D});
  }

  void mistral_ffn(const std::string& ours, const std::string& layer) {
    const std::int64_t D = config_.d_model;
    const MoELayerConfig* mixture = config_.moe();
    if (!mixture) {
      const std::int64_t F = std::get<FfnConfig>(config_.ffn).d_ffn;
      const std::string theirs = layer + "feed_forward.";
      same(ours + "gate_proj.weight", theirs + "w1.weight", {F, D});
      same(ours + "up_proj.weight", theirs + "w3.weight", {F, D});
      same(ours + "down_proj.weight", theirs + "w2.weight", {D, F});
      return;
    }
    const std::int64_t E = mixture->moe.num_experts, F = mixture->moe.d_ffn;
    const bool stacked = form_ == ExpertForm::kStacked;
    const std::string theirs = layer + (stacked ? "block_sparse_moe." : "feed_forward.");
    const std::string mlp = ours + "experts.mlp.";
    same(ours + "router.layer.weight", theirs + "gate.weight", {E, D});
    if (stacked) {
      same(mlp + "w1", theirs + "w1", {E * F, D});
      same(mlp + "v1", theirs + "w3", {E * F, D});
      same(mlp + "w2", theirs + "w2", {E * F, D});
      return;
    }
    for (std::int64_t e = 0; e < E; ++e) {
      const std::string expert = fmt::format("{}experts.{}.", theirs, e);
      rows(mlp + "w1", e * F, expert + "w1.weight", F, D);
      rows(mlp + "v1", e * F, expert + "w3.weight", F, D);
      links_.push_back({mlp + "w2", e * F, expert + "w2.weight", 0, F, D, true});
      shapes_[expert + "w2.weight"] = {D, F};
    }
  }

  const ModelConfig& config_;
  Family family_;
  ExpertForm form_;
  std::vector<Link> links_;
  std::map<std::string, std::vector<std::int64_t>> shapes_;
};

}  // namespace

std::vector<MappedTensor> gather_pieces(const std::vector<Link>& links,
                                        const std::vector<TensorShape>& tensors, bool ours) {
  std::map<std::string, std::vector<const Link*>> by_target;
  for (const Link& link : links) by_target[ours ? link.ours : link.theirs].push_back(&link);
  std::vector<MappedTensor> mapped;
  for (const TensorShape& tensor : tensors) {
    std::vector<const Link*>& parts = by_target[tensor.name];
    std::sort(parts.begin(), parts.end(), [&](const Link* a, const Link* b) {
      return ours ? a->ours_row < b->ours_row : a->theirs_row < b->theirs_row;
    });
    MappedTensor target{tensor, {}};
    std::int64_t elements = 0;
    for (const Link* link : parts) {
      const bool turned = ours && link->transposed;  // the source's rows are our columns
      target.pieces.push_back({ours ? link->theirs : link->ours,
                               ours ? link->theirs_row : link->ours_row,
                               turned ? link->columns : link->rows,
                               turned ? link->rows : link->columns, link->transposed});
      elements += link->rows * link->columns;
    }
    if (elements != count(tensor.shape)) {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("the parameter {} has no counterpart in this family", tensor.name));
    }
    mapped.push_back(std::move(target));
  }
  return mapped;
}

MappedTensor same_tensor(const TensorShape& tensor) {
  const std::int64_t columns = tensor.shape.empty() ? 1 : tensor.shape.back();
  const std::int64_t rows = columns == 0 ? 0 : count(tensor.shape) / columns;
  return {tensor, {{tensor.name, 0, rows, columns, false}}};
}

TensorMap released_tensor_map(const ModelConfig& config, Family family, ExpertForm form) {
  std::vector<TensorShape> ours, theirs;
  const Transformer unfilled(config, /*seed=*/0, at::kMeta);
  for (const Parameter& parameter : unfilled.parameters()) {
    ours.push_back({parameter.name, parameter.value.sizes().vec()});
  }
  Linker linker(config, family, form);
  const std::vector<Link> links = linker.links(ours);
  // In the order of the layers, as shards are filled.
  std::map<std::string, bool> listed;
  for (const Link& link : links) {
    if (listed.emplace(link.theirs, true).second) {
      theirs.push_back({link.theirs, linker.their_shapes().at(link.theirs)});
    }
  }
  return {gather_pieces(links, ours, /*ours=*/true), gather_pieces(links, theirs, /*ours=*/false)};
}

}  // namespace dropless::train
