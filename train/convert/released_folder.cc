#include "train/convert/released_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <variant>

#include "dropless/error.h"

namespace dropless::train {

namespace {

std::int64_t first_mixture(const ModelConfig& config) {
  std::int64_t layer = 0;
  while (layer < config.n_layers - 1 &&
         !std::holds_alternative<MoELayerConfig>(config.ffn_of(layer))) {
    ++layer;
  }
  return layer;
}

// With tied embeddings a head is a copy of the table. One that is not is the model's own, and transformers takes
// it: config.json and the weights contradict each other.
void require_tied_head(const TensorFolder& weights, const std::string& table) {
  constexpr const char* kHead = "lm_head.weight";
  if (!weights.contains(kHead)) return;
  const TensorFolder::Entry &head = weights.at(kHead), &tied = weights.at(table);
  bool same = head.info.shape == tied.info.shape && head.info.dtype == tied.info.dtype;
  constexpr std::uint64_t kPiece = 1 << 20;
  std::vector<char> a(kPiece), b(kPiece);
  for (std::uint64_t at = 0; same && at < head.info.bytes(); at += kPiece) {
    const std::uint64_t bytes = std::min(kPiece, head.info.bytes() - at);
    head.file->read_part(head.info, at, a.data(), bytes);
    tied.file->read_part(tied.info, at, b.data(), bytes);
    same = std::memcmp(a.data(), b.data(), bytes) == 0;
  }
  if (same) return;
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("{}: lm_head.weight is another matrix than {}, and config.json says "
                          "tie_word_embeddings: true",
                          head.file->path(), table),
              "\"tie_word_embeddings\": false in config.json keeps both; else remove the head");
}

}  // namespace

ReleasedFolder open_released_folder(const std::string& folder) {
  ReleasedModel model = read_released_config(folder);
  TensorFolder weights = TensorFolder::open(folder);
  // In the first layer that is a mixture.
  const std::int64_t layer = first_mixture(model.config);
  const bool stacked =
      weights.contains(fmt::format("model.layers.{}.mlp.experts.gate_up_proj", layer)) ||
      weights.contains(fmt::format("layers.{}.block_sparse_moe.w1", layer));
  if (model.family == Family::kMpt &&
      weights.contains("transformer.blocks.0.norm_attn_norm.norm_1.weight")) {
    model.family = Family::kMptFusedNorms;
  }
  TensorMap map = released_tensor_map(model.config, model.family,
                                      stacked ? ExpertForm::kStacked : ExpertForm::kEach);
  std::vector<TensorShape> wanted;
  for (const MappedTensor& tensor : map.theirs) wanted.push_back(tensor.tensor);
  // Frequencies follow from rope_theta, a tied head from the table.
  const bool tied = model.config.tie_word_embeddings;
  weights.check(wanted, [tied](const std::string& name) {
    return name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight");
  });
  if (tied) {
    const auto table = std::find_if(map.ours.begin(), map.ours.end(), [](const auto& tensor) {
      return tensor.tensor.name == "transformer.wte.weight";
    });
    require_tied_head(weights, table->pieces.at(0).source);
  }
  std::vector<std::string> oddities = model.oddities;
  oddities.insert(oddities.end(), weights.oddities().begin(), weights.oddities().end());
  return {std::move(model), std::move(weights), std::move(map), std::move(oddities)};
}

}  // namespace dropless::train
