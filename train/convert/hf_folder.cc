#include "train/convert/hf_folder.h"

#include <fmt/format.h>

#include <variant>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/checkpoint/manifest.h"

namespace dropless::train {

bool is_hf_folder(const std::string& path) {
  return is_folder(path) && path_exists(join_path(path, kHfConfigFile)) &&
         !path_exists(join_path(path, kManifestName));
}

nlohmann::json read_hf_json(const std::string& folder) {
  constexpr std::uint64_t kMaxBytes = 16 << 20;
  const std::string path = join_path(folder, kHfConfigFile);
  return parse_json(read_file(path, kMaxBytes), path);
}

HfModel read_hf_folder_config(const std::string& folder) {
  return read_hf_config(read_hf_json(folder), join_path(folder, kHfConfigFile));
}

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

HfFolder open_hf_folder(const std::string& folder) {
  HfModel model = read_hf_folder_config(folder);
  TensorFolder weights = TensorFolder::open(folder);
  // In the first layer that is a mixture.
  const std::int64_t layer = first_mixture(model.config);
  const bool stacked =
      weights.contains(fmt::format("model.layers.{}.mlp.experts.gate_up_proj", layer));
  TensorMap map =
      hf_tensor_map(model.config, model.family, stacked ? ExpertForm::kStacked : ExpertForm::kEach);
  std::vector<TensorShape> wanted;
  for (const MappedTensor& tensor : map.theirs) wanted.push_back(tensor.tensor);
  // Frequencies follow from rope_theta, a tied head from the table.
  const bool tied = model.config.tie_word_embeddings;
  weights.check(wanted, [tied](const std::string& name) {
    return name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight");
  });
  return {std::move(model), std::move(weights), std::move(map)};
}

}  // namespace dropless::train
