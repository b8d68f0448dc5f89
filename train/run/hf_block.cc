#include "train/run/hf_block.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/convert/released_config.h"

namespace dropless::train {
namespace {

// A plain scalar of YAML: numbers and bools are JSON's but for a few spellings of numbers.
nlohmann::json json_of_scalar(const std::string& text) {
  nlohmann::json value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() || value.is_structured() ? nlohmann::json(text) : value;
}

nlohmann::json json_of(const YamlMap& map) {
  nlohmann::json json = nlohmann::json::object();
  for (const std::string& key : map.keys()) {
    if (map.is_map(key)) {
      json[key] = json_of(map.map(key));
    } else if (map.is_sequence(key)) {
      auto& list = json[key] = nlohmann::json::array();
      for (const std::string& item : map.get<std::vector<std::string>>(key)) {
        list.push_back(json_of_scalar(item));
      }
    } else if (!map.has(key)) {
      map.skip(key);
      json[key] = nullptr;
    } else {
      const auto text = map.get<std::string>(key);
      json[key] = map.is_string(key) ? nlohmann::json(text) : json_of_scalar(text);
    }
  }
  return json;
}

void accept_without_effect(const YamlMap& map) {
  map.no_effect("init_device", "weights are made on the CPU");
  map.no_effect("use_auth_token", "nothing is fetched");
  map.no_effect("trust_remote_code", "there is no Python to run");
  for (const char* key : {"use_flash_attention_2", "attn_implementation"}) {
    map.no_effect(key, "libtorch picks the fused attention kernel");
  }
  for (const char* key :
       {"use_train_metrics", "additional_train_metrics", "additional_eval_metrics"}) {
    map.no_effect(key, "cross-entropy and perplexity are always logged");
  }
  map.no_effect("allow_embedding_resizing", "the table has config.json's vocab_size");
}

void refuse_unsupported(const YamlMap& map) {
  map.refuse("pretrained_lora_id_or_path", map.has("pretrained_lora_id_or_path"),
             "`dropless convert FOLDER DST --to dropless --adapter ADAPTER` makes what load_path "
             "goes on from, with mpt_causal_lm's keys in its config.yaml");
  map.refuse("load_in_8bit", map.get<bool>("load_in_8bit", false), "weights are fp32");
}

std::string folder_at(const YamlMap& map) {
  const char* key = "pretrained_model_name_or_path";
  const std::string name = map.get<std::string>(key);
  if (is_released_folder(name) && path_exists(join_path(name, kHfConfigFile))) return name;
  if (is_folder(name)) {
    map.fail(key, name + " is no Hugging Face folder: it has no config.json of one",
             "give a checkpoint of this program to load_path");
  }
  map.fail(key, name + " is no folder here, and nothing is fetched from the Hugging Face hub",
           "download it and name the folder");
}

}  // namespace

bool is_hf_block(const YamlMap& model) {
  return model.get<std::string>("name", "mpt_causal_lm") == "hf_causal_lm";
}

HfBlock read_hf_block(const YamlMap& map, bool loads) {
  const std::string folder = folder_at(map);
  const bool pretrained = map.get<bool>("pretrained", true);
  std::string path = join_path(folder, kHfConfigFile);
  nlohmann::json json =
      map.locate("pretrained_model_name_or_path", [&] { return read_hf_json(folder); });
  if (const auto overrides = map.find_map("config_overrides")) {
    json.merge_patch(json_of(*overrides));
    path += " with config_overrides";
  }
  accept_without_effect(map);
  refuse_unsupported(map);
  ReleasedModel model =
      map.locate("pretrained_model_name_or_path", [&] { return read_hf_config(json, path); });
  if (!pretrained) {
    // transformers draws every matrix and table from one normal distribution.
    const double std = json.value("initializer_range", 0.02);
    model.block["init_config"] = {
        {"name", "baseline_"}, {"init_std", std}, {"init_div_is_residual", false}};
    model.config = map.locate("pretrained_model_name_or_path", [&] {
      return ModelConfig::from_yaml(YamlDocument::parse(model.block.dump(), path).root());
    });
  }
  model.config.read_lora(map);
  if (const auto peft = map.find_map("peft_config")) {
    model.block["peft_config"] = json_of(*peft);
    // What PEFT is told that the adapters stand beside.
    if (pretrained && !loads) model.block["peft_config"]["base_model_name_or_path"] = folder;
  }
  map.finish();
  return {std::move(model.config), model.block.dump(), pretrained ? folder : ""};
}

}  // namespace dropless::train
