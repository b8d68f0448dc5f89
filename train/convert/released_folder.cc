#include "train/convert/released_folder.h"

#include <fmt/format.h>

#include <variant>

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
  std::vector<std::string> oddities = model.oddities;
  oddities.insert(oddities.end(), weights.oddities().begin(), weights.oddities().end());
  return {std::move(model), std::move(weights), std::move(map), std::move(oddities)};
}

}  // namespace dropless::train
