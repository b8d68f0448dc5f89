#include "train/run/model_files.h"

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/ranges.h>
#include <fnmatch.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/base/log.h"
#include "train/bridge/views.h"
#include "train/checkpoint/checkpoint.h"
#include "train/convert/adapter_folder.h"
#include "train/convert/released_folder.h"
#include "train/run/config.h"
#include "train/run/memory.h"
#include "train/run/model_tokenizer.h"

namespace dropless::train {
namespace {

constexpr const char* kRngName = "rng/cpu";
constexpr const char* kAnotherModel =
    "the checkpoint is of another model; check the `model` block of the config";

constexpr const char* kAnotherShape =
    "; load_ignore_keys, with load_weights_only=true, leaves a tensor of another shape out";

constexpr const char* kAnotherPrecision =
    "a run goes on in fp64 only where it began in it: give `precision` its former value, or start "
    "from the weights alone with load_path and load_weights_only=true";

constexpr const char* kAnotherMemory =
    "the `optimizer` block has changed (momentum, disable_grad, param_groups): give its keys their "
    "former values, or start a new run from the weights alone with load_path and "
    "load_weights_only=true";

constexpr const char* kNoGenerator =
    "load_ignore_keys=[rng] goes on with the generator that `seed` begins";

// Reads tensor `name` into `target`, which must have its shape and type; `hint` is of an absent one.
void read_tensor(const SafetensorsFile& file, const std::string& name, at::Tensor target,
                 const char* hint) {
  const TensorInfo* info = file.find(name);
  if (info == nullptr) {
    throw Error(ErrorKind::kInvalidArgument, file.path() + " holds no tensor " + name, hint);
  }
  if (info->shape != target.sizes().vec() ||
      info->dtype != storage_type(dtype_of(target.scalar_type()))) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: {} is {} [{}], the model needs {} [{}]", file.path(), name,
                            storage_type_name(info->dtype), fmt::join(info->shape, ", "),
                            dtype_name(dtype_of(target.scalar_type())),
                            fmt::join(target.sizes().vec(), ", ")),
                info->shape == target.sizes().vec() ? kAnotherPrecision : kAnotherModel);
  }
  at::NoGradGuard no_grad;
  at::Tensor host = target.is_cpu() && target.is_contiguous()
                        ? target.detach()
                        : at::empty(target.sizes(), target.options().device(at::kCPU));
  file.read_into(name, host.mutable_data_ptr(), info->bytes());
  if (!host.is_alias_of(target)) target.detach().copy_(host);
}

bool is_adapter(const std::string& name) { return name.find(".lora_") != std::string::npos; }

// The tensors of a folder under our names.
struct StoredWeights {
  TensorFolder files;
  std::map<std::string, MappedTensor> tensors;

  bool has_adapters() const {
    return std::any_of(tensors.begin(), tensors.end(),
                       [](const auto& tensor) { return is_adapter(tensor.first); });
  }
};

StoredWeights open_weights(const std::string& folder) {
  const auto by_name = [](std::vector<MappedTensor> tensors) {
    std::map<std::string, MappedTensor> map;
    for (MappedTensor& tensor : tensors) map.emplace(tensor.tensor.name, std::move(tensor));
    return map;
  };
  if (is_released_folder(folder)) {
    ReleasedFolder hf = open_released_folder(folder);
    return {std::move(hf.weights), by_name(std::move(hf.map.ours))};
  }
  TensorFolder files = TensorFolder::open(folder);
  std::vector<MappedTensor> tensors;
  for (const auto& [name, entry] : files.tensors()) {
    tensors.push_back(same_tensor({name, entry.info.shape}));
  }
  return {std::move(files), by_name(std::move(tensors))};
}

// Whatever floating-point type it is stored in; `hint` is of another shape. With `map` it may lie in its
// file from now on: for weights that nobody changes.
void fill_parameter(const StoredWeights& weights, const std::string& folder,
                    const Parameter& parameter, const std::string& hint, bool map = false) {
  const MappedTensor& stored = weights.tensors.at(parameter.name);
  if (stored.tensor.shape != parameter.value.sizes().vec()) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: {} is [{}], the model needs [{}]", folder, parameter.name,
                            fmt::join(stored.tensor.shape, ", "),
                            fmt::join(parameter.value.sizes().vec(), ", ")),
                hint);
  }
  at::NoGradGuard no_grad;
  if (map && parameter.value.is_cpu()) {
    const at::Tensor mapped = map_tensor(weights.files, stored, parameter.value.scalar_type());
    if (mapped.defined()) return parameter.value.set_data(mapped);
  }
  at::Tensor flat = parameter.value.detach().view({-1});
  std::int64_t filled = 0;
  stream_tensor(weights.files, stored, flat.scalar_type(), [&](const at::Tensor& part) {
    flat.narrow(0, filled, part.numel()).copy_(part.view({-1}));
    filled += part.numel();
  });
}

// The names that only one of model and folder has, each in its order.
struct NameDifference {
  std::vector<std::string> missing, surplus;
};

NameDifference name_difference(const Transformer& model, const StoredWeights& weights) {
  NameDifference difference;
  std::set<std::string> wanted;
  for (const Parameter& parameter : model.parameters()) {
    wanted.insert(parameter.name);
    if (!weights.tensors.contains(parameter.name)) difference.missing.push_back(parameter.name);
  }
  for (const auto& [name, tensor] : weights.tensors) {
    if (!wanted.contains(name)) difference.surplus.push_back(name);
  }
  return difference;
}

// What it has to warn of was said when it was trained.
YamlDocument load_config(const std::string& checkpoint) {
  return YamlDocument::load(join_path(checkpoint, kConfigFile)).without_warnings();
}

}  // namespace

void CheckpointContent::Tensors::add(const std::string& name, const at::Tensor& tensor, bool copy) {
  at::Tensor host = tensor.detach().cpu().contiguous();
  if (copy && host.is_alias_of(tensor)) host = host.clone();
  storage.push_back(host);
  named.push_back({name, storage_type(dtype_of(host.scalar_type())), host.sizes().vec(),
                   host.const_data_ptr()});
}

CheckpointContent::CheckpointContent(const Transformer& model, const Optimizer* optimizer,
                                     const nlohmann::json& state, std::vector<Companion> texts,
                                     bool copy)
    : resumable_(optimizer != nullptr), texts_(std::move(texts)) {
  texts_.push_back({kStateFile, state.dump(2) + "\n"});
  for (const Parameter& parameter : model.parameters()) {
    weights_.add(parameter.name, parameter.value, copy);
  }
  if (optimizer == nullptr) return;
  for (const auto& [name, tensor] : optimizer->state()) moments_.add(name, tensor, copy);
  moments_.add(kRngName, at::Generator(at::detail::getDefaultCPUGenerator()).get_state(), copy);
}

std::uint64_t checkpoint_bytes(const Transformer& model, const Optimizer* optimizer) {
  std::uint64_t bytes = 0;
  for (const Parameter& parameter : model.parameters()) bytes += parameter.value.nbytes();
  if (optimizer != nullptr) {
    for (const auto& [name, tensor] : optimizer->state()) bytes += tensor.nbytes();
  }
  return bytes;
}

std::string CheckpointContent::write(const std::string& run_folder, std::int64_t step) const {
  const TensorMetadata metadata{{"format", "pt"}};
  std::uint64_t bytes =
      safetensors_bytes(weights_.named, metadata) + safetensors_bytes(moments_.named, metadata);
  for (const Companion& text : texts_) bytes += text.content.size();
  CheckpointWriter writer(run_folder, step, bytes);
  writer.add_tensors(kModelFile, weights_.named, metadata);
  if (resumable_) writer.add_tensors(kOptimizerFile, moments_.named, metadata);
  for (const Companion& text : texts_) writer.add_text(text.name, text.content);
  return writer.commit();
}

std::string resolve_model(const std::string& path) {
  if (path.find("://") != std::string::npos) {
    throw Error(ErrorKind::kInvalidArgument,
                path + " is not on this machine, and checkpoints are not fetched",
                "download it, and give its folder");
  }
  if (path.ends_with(".pt") && path_exists(path) && !is_folder(path)) {
    throw Error(ErrorKind::kInvalidArgument,
                path + " is a pickle, as Composer saves, which is not read: it may run code",
                "write a Hugging Face folder of it with LLM Foundry's "
                "scripts/inference/convert_composer_to_hf.py, and give that");
  }
  if (is_adapter_folder(path) && !is_released_folder(path)) {
    throw Error(ErrorKind::kInvalidArgument, path + " is an adapter, which is no model alone",
                "name its model, and this with --adapter");
  }
  if (is_released_folder(path)) return path;
  require_some_config(path);
  return resolve_checkpoint(path);
}

void verify_model(const std::string& folder) {
  if (is_released_folder(folder)) {
    const ReleasedFolder released = open_released_folder(folder);
    for (const std::string& what : released.oddities) log_warning("{}", what);
  } else {
    verify_checkpoint(folder);
  }
}

bool is_of_a_run(const std::string& folder) {
  return !is_released_folder(folder) && path_exists(join_path(folder, kStateFile));
}

void load_model_weights(const std::string& folder, Transformer& model, const std::string& way,
                        bool map) {
  const std::string hint = kAnotherModel + way;
  const StoredWeights weights = open_weights(folder);
  auto [missing, surplus] = name_difference(model, weights);
  // Adapters that begin beside released weights keep their initial values.
  if (!weights.has_adapters()) std::erase_if(missing, is_adapter);
  if (!missing.empty()) {
    throw Error(ErrorKind::kInvalidArgument, folder + " holds no tensor " + missing.front(), hint);
  }
  if (!surplus.empty()) {
    throw Error(ErrorKind::kInvalidArgument,
                folder + ": " + surplus.front() + " is no tensor of this model", hint);
  }
  const std::string of_shape =
      way.empty() ? kAnotherModel : std::string(kAnotherModel) + kAnotherShape;
  for (const Parameter& parameter : model.parameters()) {
    if (weights.tensors.contains(parameter.name)) {
      fill_parameter(weights, folder, parameter, of_shape, map);
    }
  }
}

namespace {

bool matches_tensor(const std::string& pattern, const std::string& name) {
  for (const char* prefix : {"", "state/model/", "state/model/model."}) {
    if (::fnmatch(pattern.c_str(), (prefix + name).c_str(), 0) == 0) return true;
  }
  return false;
}

// Of load_ignore_keys: a pattern may be a slip, and one that matches may match more than was meant.
void report_ignored(const std::string& folder, const StoredWeights& weights,
                    const std::vector<std::string>& patterns) {
  std::set<std::string> left_out;
  for (const std::string& pattern : patterns) {
    bool any = false;
    for (const auto& [name, tensor] : weights.tensors) {
      if (!matches_tensor(pattern, name)) continue;
      any = true;
      left_out.insert(name);
    }
    if (!any) log_warning("load_ignore_keys: '{}' matches no tensor of {}", pattern, folder);
  }
  if (left_out.empty()) return;
  constexpr std::size_t kMost = 8;
  std::vector<std::string> names(left_out.begin(), left_out.end());
  if (names.size() > kMost) names.resize(kMost);
  log_info("load_ignore_keys leaves out {} of the {} tensors of {}: {}{}", left_out.size(),
           weights.tensors.size(), folder, fmt::join(names, ", "),
           left_out.size() > kMost ? " ..." : "");
}

}  // namespace

void load_some_weights(const std::string& folder, Transformer& model,
                       const std::vector<std::string>& ignored) {
  const auto is_ignored = [&](const std::string& name) {
    return std::any_of(ignored.begin(), ignored.end(),
                       [&](const std::string& pattern) { return matches_tensor(pattern, name); });
  };
  const StoredWeights weights = open_weights(folder);
  report_ignored(folder, weights, ignored);
  for (const Parameter& parameter : model.parameters()) {
    if (weights.tensors.contains(parameter.name) && !is_ignored(parameter.name)) {
      fill_parameter(weights, folder, parameter, std::string(kAnotherModel) + kAnotherShape);
    }
  }
  auto [missing, surplus] = name_difference(model, weights);
  std::erase_if(missing, is_ignored);
  std::erase_if(surplus, is_ignored);
  if (!missing.empty()) {
    log_warning("{} lacks {} of the model's tensors, which keep their initial values: {}", folder,
                missing.size(), fmt::join(missing, ", "));
  }
  if (!surplus.empty()) {
    log_warning("{}: {} tensors are none of this model's: {}", folder, surplus.size(),
                fmt::join(surplus, ", "));
  }
}

namespace {

// The folder's tensor that holds the first value of the parameter that is no finite number.
std::string ruined_source(const std::string& folder, const Parameter& parameter) {
  const StoredWeights weights = open_weights(folder);
  const auto found = weights.tensors.find(parameter.name);
  if (found == weights.tensors.end()) return parameter.name;
  const at::Tensor ruined = at::isfinite(parameter.value).logical_not().view({-1}).nonzero();
  auto place = ruined[0][0].item<std::int64_t>();
  for (const Piece& piece : found->second.pieces) {
    place -= piece.rows * piece.columns;
    if (place < 0) return piece.source;
  }
  return parameter.name;
}

}  // namespace

std::string ruined_weights(const std::string& folder, const Transformer& model) {
  at::NoGradGuard no_grad;
  std::vector<const Parameter*> ruined;
  for (const Parameter& parameter : model.parameters()) {
    if (!at::isfinite(parameter.value).all().item<bool>()) ruined.push_back(&parameter);
  }
  if (ruined.empty()) return {};
  return fmt::format("{} of the {} tensors of {} hold NaN or infinite values, {} first",
                     ruined.size(), model.parameters().size(), folder,
                     ruined_source(folder, *ruined[0]));
}

void require_resumable(const std::string& checkpoint) {
  if (path_exists(join_path(checkpoint, kOptimizerFile))) return;
  throw Error(ErrorKind::kInvalidArgument,
              checkpoint + " holds weights alone (save_weights_only): a run cannot go on from it",
              "start a new one from them with load_path and load_weights_only=true");
}

void load_optimizer(const std::string& checkpoint, Optimizer& optimizer) {
  const SafetensorsFile file = SafetensorsFile::open(join_path(checkpoint, kOptimizerFile));
  for (const auto& [name, tensor] : optimizer.state()) {
    read_tensor(file, name, tensor, kAnotherMemory);
  }
}

void load_generator(const std::string& checkpoint) {
  const SafetensorsFile file = SafetensorsFile::open(join_path(checkpoint, kOptimizerFile));
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  at::Tensor rng = at::empty_like(generator.get_state());
  read_tensor(file, kRngName, rng, kNoGenerator);
  generator.set_state(rng);
}

OptimizerType load_optimizer_type(const std::string& checkpoint) {
  const YamlDocument document = load_config(checkpoint);
  return OptimizerConfig::from_yaml(document.root().map("optimizer")).type;
}

nlohmann::json load_training_state(const std::string& checkpoint) {
  const std::string path = join_path(checkpoint, kStateFile);
  return parse_json(read_file(path, 64 << 20), path, ErrorKind::kDamaged);
}

ModelConfig load_model_config(const std::string& folder) {
  if (is_released_folder(folder)) return read_released_config(folder).config;
  const YamlDocument document = load_config(folder);
  return ModelConfig::from_yaml(document.root().map("model"));
}

std::vector<std::string> maths_differences(const std::string& checkpoint,
                                           const ModelConfig& config) {
  const auto saved = load_model_config(checkpoint).maths(), wanted = config.maths();
  const auto value_in = [](const auto& keys, const std::string& key) -> std::string {
    for (const auto& [name, value] : keys) {
      if (name == key) return value;
    }
    return "not set";
  };
  std::vector<std::string> differences;
  std::set<std::string> seen;
  // Either list may have keys that the other lacks.
  for (const auto* keys : {&saved, &wanted}) {
    for (const auto& [key, value] : *keys) {
      const std::string before = value_in(saved, key), now = value_in(wanted, key);
      if (before == now || !seen.insert(key).second) continue;
      differences.push_back(
          fmt::format("{} is {} in {} and {} in this config", key, before, checkpoint, now));
    }
  }
  return differences;
}

bool same_parameters(const std::string& checkpoint, const ModelConfig& config) {
  const auto shapes = [](const ModelConfig& model) {
    std::set<std::pair<std::string, std::vector<std::int64_t>>> all;
    const Transformer unfilled(model, /*seed=*/0, at::kMeta);
    for (const Parameter& parameter : unfilled.parameters()) {
      all.emplace(parameter.name, parameter.value.sizes().vec());
    }
    return all;
  };
  return shapes(load_model_config(checkpoint)) == shapes(config);
}

namespace {

void load_tokenizer(LoadedModel& loaded) {
  const std::string name = tokenizer_of_model(loaded.folder);
  if (name.empty()) return;
  try {
    loaded.tokenizer = make_tokenizer(name);
  } catch (const Error& error) {
    log_warning("{}: text needs the tokenizer: {}", loaded.folder, error.what());
  }
}

// The first that says so of generation_config.json and config.json; empty where neither does.
std::vector<TokenId> eos_of_files(const std::string& folder) {
  const char* config = is_released_folder(folder) ? kHfConfigFile : kKeptConfig;
  for (const char* name : {kGenerationConfig, config}) {
    const std::string path = join_path(folder, name);
    if (!path_exists(path)) continue;
    const nlohmann::json json = parse_json(read_file(path, 16 << 20), path);
    if (!json.is_object() || !json.contains("eos_token_id") || json["eos_token_id"].is_null()) {
      continue;
    }
    const nlohmann::json& eos = json["eos_token_id"];
    std::vector<TokenId> ids;
    for (const auto& id : eos.is_array() ? eos : nlohmann::json::array({eos})) {
      if (!id.is_number_integer() || id < 0 || id > INT32_MAX) {
        throw Error(ErrorKind::kInvalidArgument,
                    fmt::format("{}: eos_token_id {} is no token id", path, eos.dump()));
      }
      ids.push_back(id.get<TokenId>());
    }
    return ids;
  }
  return {};
}

// Makes `config` that of the model with the adapter, whose tensors it returns.
std::map<std::string, at::Tensor> add_adapter(const std::string& adapter, const std::string& folder,
                                              ModelConfig& config) {
  AdapterFolder opened = open_adapter_folder(adapter, config, read_origin_config(folder));
  config.set_lora(opened.lora);
  return std::move(opened.tensors);
}

}  // namespace

LoadedModel load_model(const std::string& path, at::Device device, const std::string& adapter,
                       Precision precision) {
  LoadedModel loaded;
  loaded.folder = resolve_model(path);
  verify_model(loaded.folder);
  ModelConfig config = load_model_config(loaded.folder);
  load_tokenizer(loaded);
  if (loaded.tokenizer) require_vocabulary(loaded.folder, config, *loaded.tokenizer);
  std::map<std::string, at::Tensor> beside;
  if (!adapter.empty()) beside = add_adapter(adapter, loaded.folder, config);
  // Which kernels the training demanded says nothing about where its weights may be used.
  if (auto* layer = std::get_if<MoELayerConfig>(&config.ffn)) {
    if (layer->backend == MoEBackend::kDropless) layer->backend = MoEBackend::kAuto;
  }
  const WeightOptions weights{
      .type = weight_type(precision), .matrices = compute_type(precision), .drawn = false};
  require_memory(config, device, static_cast<double>(c10::elementSize(*weights.matrices)));
  with_torch_errors("", [&] {
    loaded.model = std::make_unique<Transformer>(config, /*seed=*/0, device, weights);
    load_model_weights(loaded.folder, *loaded.model, /*way=*/{}, /*map=*/true);
    at::NoGradGuard no_grad;
    for (const Parameter& parameter : loaded.model->parameters()) {
      const auto found = beside.find(parameter.name);
      if (found != beside.end()) parameter.value.detach().copy_(found->second);
    }
  });
  loaded.eos = eos_of_files(loaded.folder);
  if (loaded.eos.empty() && loaded.tokenizer && loaded.tokenizer->eos_id()) {
    loaded.eos.push_back(*loaded.tokenizer->eos_id());
  }
  return loaded;
}

}  // namespace dropless::train
