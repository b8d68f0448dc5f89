#include "train/convert/adapter_folder.h"

#include <fmt/format.h>

#include <set>
#include <utility>
#include <vector>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/base/log.h"
#include "train/convert/config_keys.h"
#include "train/convert/peft.h"
#include "train/convert/peft_modules.h"
#include "train/convert/tensor_folder.h"

namespace dropless::train {
namespace {

// What says nothing about the function of the saved tensors: origin, how they were drawn, which modules got
// some and of which rank (the tensors say so), and numbers that belong to a switch which is refused.
const std::set<std::string> kHarmless = {"auto_mapping",      "base_model_name_or_path",
                                         "inference_mode",    "init_lora_weights",
                                         "layers_pattern",    "layers_to_transform",
                                         "exclude_modules",   "target_modules",
                                         "megatron_core",     "peft_version",
                                         "qalora_group_size", "revision",
                                         "target_parameters", "rank_pattern",
                                         "alpha_pattern"};

// Whether the value is one that switches something on.
bool is_set(const Json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value != 0;
  if (value.is_string()) return value != "" && value != "none";
  return !value.empty();  // null is empty
}

LoraConfig read_config(const Json& json, const std::string& path) {
  const Keys keys(json, path);
  const auto type = keys.get<std::string>("peft_type");
  if (type != "LORA") keys.fail("peft_type " + type + " is not supported: LORA is");
  if (keys.get<std::string>("task_type", "CAUSAL_LM") != "CAUSAL_LM") {
    keys.fail("task_type " + keys.get<std::string>("task_type") +
              " is not supported: CAUSAL_LM is");
  }
  LoraConfig lora;
  lora.r = keys.get<std::int64_t>("r");
  lora.alpha = keys.get<double>("lora_alpha");
  lora.dropout = keys.get<double>("lora_dropout", 0.0);
  lora.rslora = keys.get<bool>("use_rslora", false);
  constexpr std::int64_t kMost = 1 << 16;
  if (lora.r < 1 || lora.r > kMost) keys.fail(fmt::format("r is {}", lora.r));
  if (!(lora.alpha > 0)) keys.fail(fmt::format("lora_alpha is {}", lora.alpha));
  if (!(lora.dropout >= 0 && lora.dropout < 1)) {
    keys.fail(fmt::format("lora_dropout is {}", lora.dropout));
  }
  // Some ways to draw the adapters change the model's own weights with them.
  const Json init = json.value("init_lora_weights", Json(true));
  if (init.is_string() && init != "gaussian" && init != "eva" && init != "orthogonal") {
    keys.fail(
        fmt::format("init_lora_weights {} changed the weights of the model too; save the adapter "
                    "with PEFT's path_initial_model_for_weight_conversion",
                    init.dump()));
  }
  static const std::set<std::string> read = {"peft_type",  "task_type",    "r",
                                             "lora_alpha", "lora_dropout", "use_rslora"};
  for (const auto& [key, value] : json.items()) {
    if (read.contains(key) || kHarmless.contains(key) || !is_set(value)) continue;
    keys.fail(fmt::format("{} {} is not supported", key, value.dump()));
  }
  return lora;
}

// Those of `config` that some tensor of the file belongs to.
std::set<LoraTarget> targets_in(const TensorFolder& file, ModelConfig config, LoraConfig lora,
                                Family family) {
  std::set<LoraTarget> found;
  for (const LoraTarget target :
       {LoraTarget::kWqkv, LoraTarget::kQ, LoraTarget::kK, LoraTarget::kV, LoraTarget::kOut,
        LoraTarget::kGate, LoraTarget::kUp, LoraTarget::kDown}) {
    lora.targets = {target};
    config.set_lora(lora);
    try {
      for (const TensorShape& tensor : peft_layout(config, family).theirs) {
        if (file.contains(tensor.name)) found.insert(target);
      }
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kUnsupported) throw;
    }
  }
  // One name of a module for all three is the three names' in most families.
  if (found.contains(LoraTarget::kQ) || found.contains(LoraTarget::kK) ||
      found.contains(LoraTarget::kV)) {
    found.erase(LoraTarget::kWqkv);
  }
  return found;
}

// Zeros for the modules without an adapter. `layout.theirs` has an A and its B side by side.
void add_zeros(const PeftLayout& layout, TensorFolder& file) {
  std::size_t without = 0;
  for (std::size_t i = 0; i < layout.theirs.size(); i += 2) {
    const TensorShape &a = layout.theirs[i], &b = layout.theirs[i + 1];
    if (file.contains(a.name) || file.contains(b.name)) continue;
    for (const TensorShape* side : {&a, &b}) {
      file.add_tensor(side->name, at::zeros(side->shape, at::kFloat));
    }
    ++without;
  }
  if (without > 0) {
    log_info("{} of {} modules have no adapter and stay as they are", without,
             layout.theirs.size() / 2);
  }
}

}  // namespace

bool is_adapter_folder(const std::string& path) {
  return is_folder(path) && path_exists(join_path(path, kAdapterConfig));
}

AdapterFolder open_adapter_folder(const std::string& folder, const ModelConfig& model,
                                  const nlohmann::json& kept) {
  if (model.lora) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("the model has adapters, and takes no others from {}", folder),
                "merge them first: convert --to dropless --merge-adapter");
  }
  if (!is_adapter_folder(folder)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} is no adapter's folder: it has no {}", folder, kAdapterConfig),
                "name what PEFT's save_pretrained or `convert --to peft` wrote");
  }
  const std::string config_path = join_path(folder, kAdapterConfig);
  const std::string weights_path = join_path(folder, kAdapterFiles.single());
  const Json json = parse_json(read_file(config_path, 16 << 20), config_path);
  AdapterFolder adapter{read_config(json, config_path), {}, {}};
  if (json.contains("base_model_name_or_path") && json["base_model_name_or_path"].is_string()) {
    adapter.base = json["base_model_name_or_path"].get<std::string>();
  }
  if (!path_exists(weights_path)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} holds no {}", folder, kAdapterFiles.single()),
                "PEFT's save_pretrained writes it; a .bin is a pickle and is not read");
  }
  TensorFolder file = TensorFolder::open_file(weights_path);
  const Family family = peft_family_of(model, kept);
  unify_modules(json, weights_path, model, family, file, adapter.lora);
  adapter.lora.targets = targets_in(file, model, adapter.lora, family);
  if (adapter.lora.targets.empty()) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} holds no adapter of this model's modules", weights_path),
                "name the model that it was trained beside");
  }
  ModelConfig config = model;
  config.set_lora(adapter.lora);
  const PeftLayout layout = peft_layout(config, family);
  add_zeros(layout, file);
  file.check(layout.theirs, [](const std::string&) { return false; });
  for (const MappedTensor& tensor : gather_pieces(layout.links, layout.ours, /*ours=*/true)) {
    adapter.tensors.emplace(tensor.tensor.name, read_whole(file, tensor));
  }
  return adapter;
}

std::string peft_config_of(const LoraConfig& lora, const std::string& base) {
  OrderedJson json{{"peft_type", "LORA"},
                   {"r", lora.r},
                   {"lora_alpha", lora.alpha},
                   {"lora_dropout", lora.dropout},
                   {"use_rslora", lora.rslora}};
  for (const LoraTarget target : lora.targets) {
    json["target_modules"].push_back(lora_target_name(target));
  }
  if (!base.empty()) json["base_model_name_or_path"] = base;
  return json.dump();
}

}  // namespace dropless::train
