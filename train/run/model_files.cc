#include "train/run/model_files.h"

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/ranges.h>
#include <fnmatch.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/base/log.h"
#include "train/bridge/views.h"
#include "train/checkpoint/checkpoint.h"
#include "train/convert/hf_folder.h"
#include "train/run/config.h"
#include "train/run/memory.h"

namespace dropless::train {
namespace {

constexpr const char* kRngName = "rng/cpu";

// Reads tensor `name` into `target`, which must have its shape and, unless `any_float`, its type.
void read_tensor(const SafetensorsFile& file, const std::string& name, at::Tensor target,
                 bool any_float = false) {
  const TensorInfo* info = file.find(name);
  if (info == nullptr) {
    throw Error(ErrorKind::kInvalidArgument, file.path() + " holds no tensor " + name,
                "the checkpoint is of another model; check the `model` block of the config");
  }
  const std::optional<DType> stored = to_dtype(info->dtype);
  const bool convertible = any_float && stored && at::isFloatingType(scalar_type_of(*stored)) &&
                           at::isFloatingType(target.scalar_type());
  if (info->shape != target.sizes().vec() ||
      (!convertible && info->dtype != storage_type(dtype_of(target.scalar_type())))) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: {} is {} [{}], the model needs {} [{}]", file.path(), name,
                            storage_type_name(info->dtype), fmt::join(info->shape, ", "),
                            dtype_name(dtype_of(target.scalar_type())),
                            fmt::join(target.sizes().vec(), ", ")),
                "the checkpoint is of another model; check the `model` block of the config");
  }
  at::NoGradGuard no_grad;
  const at::ScalarType type = scalar_type_of(*stored);
  at::Tensor host =
      target.is_cpu() && target.is_contiguous() && target.scalar_type() == type
          ? target.detach()
          : at::empty(target.sizes(), at::TensorOptions().dtype(type).device(at::kCPU));
  file.read_into(name, host.mutable_data_ptr(), info->bytes());
  if (!host.is_alias_of(target)) target.detach().copy_(host);
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
                                     const nlohmann::json& state, std::string config_yaml,
                                     bool copy)
    : resumable_(optimizer != nullptr),
      state_text_(state.dump(2) + "\n"),
      config_yaml_(std::move(config_yaml)) {
  for (const Parameter& parameter : model.parameters()) {
    weights_.add(parameter.name, parameter.value, copy);
  }
  if (optimizer == nullptr) return;
  for (const auto& [name, tensor] : optimizer->state()) moments_.add(name, tensor, copy);
  moments_.add(kRngName, at::Generator(at::detail::getDefaultCPUGenerator()).get_state(), copy);
}

std::string CheckpointContent::write(const std::string& run_folder, std::int64_t step) const {
  const TensorMetadata metadata{{"format", "pt"}};
  const std::uint64_t bytes = safetensors_bytes(weights_.named, metadata) +
                              safetensors_bytes(moments_.named, metadata) + state_text_.size() +
                              config_yaml_.size();
  CheckpointWriter writer(run_folder, step, bytes);
  writer.add_tensors(kModelFile, weights_.named, metadata);
  if (resumable_) writer.add_tensors(kOptimizerFile, moments_.named, metadata);
  writer.add_text(kStateFile, state_text_);
  writer.add_text(kConfigFile, config_yaml_);
  return writer.commit();
}

void load_model_weights(const std::string& checkpoint, Transformer& model) {
  const SafetensorsFile file = SafetensorsFile::open(join_path(checkpoint, kModelFile));
  std::set<std::string> wanted;
  for (const Parameter& parameter : model.parameters()) {
    read_tensor(file, parameter.name, parameter.value, /*any_float=*/true);
    wanted.insert(parameter.name);
  }
  for (const TensorInfo& tensor : file.tensors()) {
    if (!wanted.contains(tensor.name)) {
      throw Error(ErrorKind::kInvalidArgument,
                  file.path() + ": " + tensor.name + " is no tensor of this model",
                  "the checkpoint is of another model; check the `model` block of the config");
    }
  }
}

void load_some_weights(const std::string& checkpoint, Transformer& model,
                       const std::vector<std::string>& ignored) {
  const auto is_ignored = [&](const std::string& name) {
    return std::any_of(ignored.begin(), ignored.end(), [&](const std::string& pattern) {
      for (const char* prefix : {"", "state/model/", "state/model/model."}) {
        if (::fnmatch(pattern.c_str(), (prefix + name).c_str(), 0) == 0) return true;
      }
      return false;
    });
  };
  const SafetensorsFile file = SafetensorsFile::open(join_path(checkpoint, kModelFile));
  std::vector<std::string> missing, surplus;
  std::set<std::string> wanted;
  for (const Parameter& parameter : model.parameters()) {
    wanted.insert(parameter.name);
    if (is_ignored(parameter.name)) continue;
    if (file.find(parameter.name) == nullptr) {
      missing.push_back(parameter.name);
    } else {
      read_tensor(file, parameter.name, parameter.value, /*any_float=*/true);
    }
  }
  for (const TensorInfo& tensor : file.tensors()) {
    if (!wanted.contains(tensor.name) && !is_ignored(tensor.name)) surplus.push_back(tensor.name);
  }
  if (!missing.empty()) {
    log_warning("{} lacks {} of the model's tensors, which keep their initial values: {}",
                file.path(), missing.size(), fmt::join(missing, ", "));
  }
  if (!surplus.empty()) {
    log_warning("{}: {} tensors are none of this model's: {}", file.path(), surplus.size(),
                fmt::join(surplus, ", "));
  }
}

void require_resumable(const std::string& checkpoint) {
  if (path_exists(join_path(checkpoint, kOptimizerFile))) return;
  throw Error(ErrorKind::kInvalidArgument,
              checkpoint + " holds weights alone (save_weights_only): a run cannot go on from it",
              "start a new one from them with load_path and load_weights_only=true");
}

void load_optimizer(const std::string& checkpoint, Optimizer& optimizer) {
  const SafetensorsFile file = SafetensorsFile::open(join_path(checkpoint, kOptimizerFile));
  for (const auto& [name, tensor] : optimizer.state()) read_tensor(file, name, tensor);
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  at::Tensor rng = at::empty_like(generator.get_state());
  read_tensor(file, kRngName, rng);
  generator.set_state(rng);
}

nlohmann::json load_training_state(const std::string& checkpoint) {
  const std::string path = join_path(checkpoint, kStateFile);
  return parse_json(read_file(path, 64 << 20), path, ErrorKind::kDamaged);
}

ModelConfig load_model_config(const std::string& checkpoint) {
  const YamlDocument document = load_config(checkpoint);
  return ModelConfig::from_yaml(document.root().map("model"));
}

std::optional<std::string> maths_difference(const std::string& checkpoint,
                                            const ModelConfig& config) {
  const auto saved = load_model_config(checkpoint).maths(), wanted = config.maths();
  const auto value_in = [](const auto& keys, const std::string& key) -> std::string {
    for (const auto& [name, value] : keys) {
      if (name == key) return value;
    }
    return "not set";
  };
  // Either list may have keys that the other lacks.
  for (const auto* keys : {&saved, &wanted}) {
    for (const auto& [key, value] : *keys) {
      const std::string before = value_in(saved, key), now = value_in(wanted, key);
      if (before == now) continue;
      return fmt::format("{} is {} in {} and {} in this config", key, before, checkpoint, now);
    }
  }
  return std::nullopt;
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

// The first of the files that hold a tokenizer; empty where there is none.
std::string find_tokenizer(const std::string& folder) {
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    if (path_exists(join_path(folder, name))) return join_path(folder, name);
  }
  return {};
}

void load_tokenizer(LoadedModel& loaded, const std::string& name) {
  try {
    loaded.tokenizer = make_tokenizer(name);
  } catch (const Error& error) {
    log_warning("{}: text needs the tokenizer: {}", loaded.folder, error.what());
  }
}

LoadedModel load_hf_model(const std::string& path, at::Device device) {
  LoadedModel loaded;
  loaded.folder = path;
  const HfFolder hf = open_hf_folder(path);
  require_memory(hf.model.config, device, kWeightBytesPerParameter);
  with_torch_errors("", [&] {
    loaded.model = std::make_unique<Transformer>(hf.model.config, /*seed=*/0, device);
    at::NoGradGuard no_grad;
    const auto& parameters = loaded.model->parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      at::Tensor flat = parameters[i].value.detach().view({-1});
      std::int64_t filled = 0;
      stream_tensor(hf.weights, hf.map.ours[i], flat.scalar_type(), [&](const at::Tensor& part) {
        flat.narrow(0, filled, part.numel()).copy_(part.view({-1}));
        filled += part.numel();
      });
    }
  });
  const std::string tokenizer = find_tokenizer(path);
  if (!tokenizer.empty()) load_tokenizer(loaded, tokenizer);
  return loaded;
}

}  // namespace

LoadedModel load_model(const std::string& path, at::Device device) {
  if (is_hf_folder(path)) return load_hf_model(path, device);
  LoadedModel loaded;
  loaded.folder = resolve_checkpoint(path);
  verify_checkpoint(loaded.folder);
  const YamlDocument document = load_config(loaded.folder);
  ModelConfig config = ModelConfig::from_yaml(document.root().map("model"));
  // Which kernels the training demanded says nothing about where its weights may be used.
  if (auto* layer = std::get_if<MoELayerConfig>(&config.ffn)) {
    if (layer->backend == MoEBackend::kDropless) layer->backend = MoEBackend::kAuto;
  }
  require_memory(config, device, kWeightBytesPerParameter);
  with_torch_errors("", [&] {
    loaded.model = std::make_unique<Transformer>(config, /*seed=*/0, device);
    load_model_weights(loaded.folder, *loaded.model);
  });
  // A converted model brings its tokenizer's file along.
  const std::string name = tokenizer_from_yaml(document.root().map("tokenizer"));
  const std::string beside = join_path(loaded.folder, name);
  load_tokenizer(loaded, path_exists(beside) ? beside : name);
  return loaded;
}

}  // namespace dropless::train
