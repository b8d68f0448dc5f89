// `dropless info MODEL|CONFIG.yaml [--json]`: parameters, tensors, and what the config says.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "apps/verbs.h"
#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/checkpoint/checkpoint.h"
#include "train/convert/released_folder.h"
#include "train/nn/transformer.h"
#include "train/run/config.h"
#include "train/run/model_files.h"
#include "train/run/summary.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::apps {

using namespace train;

namespace {

// Of a model that is described but not built: `meta` tensors have shapes and no memory.
nlohmann::ordered_json describe(const ModelConfig& config) {
  const Transformer model(config, /*seed=*/0, at::kMeta);
  const ParameterCount count = model.count();
  nlohmann::ordered_json json;
  json["parameters"] = {{"total", count.total}, {"active", count.active}};
  json["tensors"] = nlohmann::json::array();
  for (const Parameter& parameter : model.parameters()) {
    json["tensors"].push_back({{"name", parameter.name},
                               {"shape", parameter.value.sizes().vec()},
                               {"dtype", "F32"},
                               {"file", nullptr}});
  }
  return json;
}

// What the headers of the files say.
nlohmann::ordered_json list_tensors(const TensorFolder& weights) {
  auto list = nlohmann::ordered_json::array();
  for (const auto& [name, entry] : weights.tensors()) {
    list.push_back({{"name", name},
                    {"shape", entry.info.shape},
                    {"dtype", storage_type_name(entry.info.dtype)},
                    {"file", base_name(entry.file->path())}});
  }
  return list;
}

nlohmann::ordered_json describe_checkpoint(const std::string& path) {
  require_some_config(path);
  const std::string folder = resolve_checkpoint(path);
  const Manifest manifest = read_manifest(folder);
  // The optimizer's state is larger than both and shows nothing here.
  verify_file(folder, manifest, kConfigFile);
  for (const std::string& file : weight_files(folder)) verify_file(folder, manifest, file);
  nlohmann::ordered_json json = describe(load_model_config(folder));
  json["tensors"] = list_tensors(TensorFolder::open(folder));
  json["folder"] = folder;
  json["step"] = manifest.step;
  return json;
}

// What config.json or params.json says; the files may be absent.
nlohmann::ordered_json describe_released(const std::string& folder) {
  nlohmann::ordered_json json = describe(read_released_config(folder).config);
  if (has_weight_files(folder)) {
    const ReleasedFolder released = open_released_folder(folder);
    for (const std::string& what : released.oddities) log_warning("{}", what);
    json["tensors"] = list_tensors(released.weights);
  }
  return json;
}

// A tokenizer that is not here has a name only.
nlohmann::ordered_json describe_tokenizer(const std::string& name) {
  nlohmann::ordered_json json{{"name", name}};
  if (!is_tokenizer(name)) return json;
  const auto tokenizer = make_tokenizer(name);
  const auto id = [](std::optional<TokenId> token) {
    return token ? nlohmann::ordered_json(*token) : nlohmann::ordered_json();
  };
  json["vocab_size"] = tokenizer->vocab_size();
  json["bos_id"] = id(tokenizer->bos_id());
  json["eos_id"] = id(tokenizer->eos_id());
  json["pad_id"] = tokenizer->pad_id();
  return json;
}

void print_text(const nlohmann::ordered_json& json) {
  const auto total = json["parameters"]["total"].get<std::int64_t>();
  const auto active = json["parameters"]["active"].get<std::int64_t>();
  if (json.contains("folder")) {
    std::cout << "checkpoint  " << json["folder"].get<std::string>() << ", step " << json["step"]
              << "\n";
  }
  std::cout << fmt::format("parameters  {} ({}), {} ({}) active per token\n", total,
                           format_count(static_cast<double>(total)), active,
                           format_count(static_cast<double>(active)));
  if (json.contains("tokenizer") && json["tokenizer"].contains("vocab_size")) {
    std::cout << fmt::format("tokenizer   {}, {} ids\n",
                             json["tokenizer"]["name"].get<std::string>(),
                             json["tokenizer"]["vocab_size"].get<std::int64_t>());
  }
  for (const auto& tensor : json["tensors"]) {
    std::cout << fmt::format("  {:<52} {:<4} [{}]\n", tensor["name"].get<std::string>(),
                             tensor["dtype"].get<std::string>(),
                             fmt::join(tensor["shape"].get<std::vector<std::int64_t>>(), ", "));
  }
}

void run_info(const std::string& path, bool as_json) {
  install_signal_handlers(SignalMode::kExit);
  nlohmann::ordered_json json;
  if (is_released_folder(path)) {
    json = describe_released(path);
  } else if (is_folder(path)) {
    json = describe_checkpoint(path);
  } else if (path.ends_with(".safetensors")) {
    throw Error(ErrorKind::kInvalidArgument, path + " holds weights without their config",
                "name the checkpoint's folder");
  } else {
    const TrainConfig config = TrainConfig::from_yaml(YamlDocument::load(path));
    json = describe(config.model);
    json["tokenizer"] = describe_tokenizer(config.tokenizer);
  }
  if (as_json) {
    std::cout << json.dump() << "\n";
  } else {
    print_text(json);
  }
}

}  // namespace

void add_info_verb(CLI::App& app) {
  struct Options {
    std::string path;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("info", "Parameters and tensors of a model or a config");
  verb->add_option("model", options->path,
                   "checkpoint, run folder, Hugging Face folder or YAML config")
      ->required();
  verb->add_flag("--json", options->json, "one JSON document");
  verb->footer("Example: dropless info configs/demo.yaml");
  verb->callback([options] { run_info(options->path, options->json); });
}

}  // namespace dropless::apps
