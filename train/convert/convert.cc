#include "train/convert/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/hash.h"
#include "train/base/json.h"
#include "train/base/log.h"
#include "train/base/progress.h"
#include "train/base/signals.h"
#include "train/base/yaml.h"
#include "train/bridge/views.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/manifest.h"
#include "train/convert/adapter_folder.h"
#include "train/convert/companions.h"
#include "train/convert/folder_writer.h"
#include "train/convert/mistral_config.h"
#include "train/convert/mpt_config.h"
#include "train/convert/peft.h"
#include "train/convert/released_folder.h"

namespace dropless::train {
namespace {

// What is read, as ours or theirs, and what the target needs of it.
struct Source {
  std::string folder;
  ModelConfig config;
  std::string config_yaml;  // what a folder of ours gets
  nlohmann::json kept;      // config.json of the model's origin; null where it is of ours
  TensorFolder weights;
  std::vector<MappedTensor> tensors;  // of the target, in its names
  Family family{};                    // the target's, for kHf and kPeft
  std::string base;                   // the model beside which adapters were trained
};

std::string yaml_of(const ReleasedModel& model, const std::string& folder) {
  nlohmann::ordered_json config;
  config["max_seq_len"] = model.config.max_seq_len;
  config["model"] = model.block;
  std::string tokenizer = "none";
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    if (path_exists(join_path(folder, name))) {
      tokenizer = name;
      break;
    }
  }
  config["tokenizer"] = {{"name", tokenizer}};
  return YamlDocument::parse(config.dump(), folder).dump();
}

// Puts the adapter of options.adapter beside the weights, as of a model that was trained with it.
void adapt(Source& source, const std::string& folder, const nlohmann::json& kept) {
  const AdapterFolder adapter = open_adapter_folder(folder, source.config, kept);
  for (const auto& [name, tensor] : adapter.tensors) source.weights.add_tensor(name, tensor);
  source.config.set_lora(adapter.lora);
  const std::string base = adapter.base.empty() ? source.folder : adapter.base;
  source.config_yaml =
      YamlDocument::parse(source.config_yaml, source.folder,
                          {"model.peft_config=" + peft_config_of(adapter.lora, base)})
          .dump();
}

Source open_released(const std::string& folder, const ConvertOptions& options) {
  if (options.to != Layout::kDropless) {
    throw Error(
        ErrorKind::kInvalidArgument,
        folder + " is a released model's folder already, and only --to dropless reads those",
        "another type or layout of it: convert it --to dropless first");
  }
  ReleasedFolder released = open_released_folder(folder);
  for (const std::string& what : released.oddities) log_warning("{}", what);
  Source source{folder,
                released.model.config,
                yaml_of(released.model, folder),
                nlohmann::json(),
                std::move(released.weights),
                std::move(released.map.ours),
                {},
                {}};
  if (options.adapter.empty()) return source;
  adapt(source, options.adapter, read_origin_config(folder));
  for (const std::string& name : adapter_names(source.config)) {
    source.tensors.push_back(same_tensor({name, source.weights.at(name).info.shape}));
  }
  return source;
}

// The tensors of `layout`, out of a model of ours without adapters.
std::vector<MappedTensor> tensors_of(const Source& source, Layout layout) {
  if (layout == Layout::kDropless) {
    std::vector<MappedTensor> tensors;
    for (const auto& [name, entry] : source.weights.tensors()) {
      tensors.push_back(same_tensor({name, entry.info.shape}));
    }
    return tensors;
  }
  Family family = source.family;
  if (layout == Layout::kFoundry) {
    make_mpt_config(source.config, "float32", source.kept);  // it says what has no key there
    family = Family::kMpt;
  } else if (layout == Layout::kMistral) {
    make_mistral_params(source.config);
    family = Family::kMistralNative;
  }
  TensorMap map = released_tensor_map(source.config, family, ExpertForm::kEach);
  std::vector<TensorShape> wanted;
  for (const MappedTensor& tensor : map.ours) wanted.push_back(tensor.tensor);
  source.weights.check(wanted, [](const std::string&) { return false; });
  return std::move(map.theirs);
}

// Adds the adapters to the weights that are read from now on, and takes them out of the model.
void merge(Source& source) {
  const std::vector<std::string> names = adapter_names(source.config);
  merge_adapters(source.config, source.weights);
  source.weights.leave_out({names.begin(), names.end()});
  source.config.set_lora(std::nullopt);
  source.config_yaml =
      YamlDocument::parse(source.config_yaml, join_path(source.folder, kConfigFile),
                          {"model.peft_config=null"})
          .dump();
}

Source open_ours(const std::string& path, const ConvertOptions& options) {
  require_some_config(path);
  const std::string folder = resolve_checkpoint(path);
  const Manifest manifest = read_manifest(folder);
  verify_file(folder, manifest, kConfigFile);
  for (const std::string& file : weight_files(folder)) verify_file(folder, manifest, file);
  const std::string config_path = join_path(folder, kConfigFile);
  const YamlDocument document = YamlDocument::load(config_path).without_warnings();
  const nlohmann::json kept = read_origin_config(folder);
  Source source{folder,
                ModelConfig::from_yaml(document.root().map("model")),
                read_file(config_path),
                kept,
                TensorFolder::open(folder),
                {},
                {},
                {}};
  source.base = document.root().get<std::string>("load_path", "");
  if (!options.adapter.empty()) {
    adapt(source, options.adapter, kept);
  } else if (const auto peft = document.root().map("model").find_map("peft_config")) {
    source.base = peft->get<std::string>("base_model_name_or_path", source.base);
  }
  const bool adapts = source.config.lora.has_value();
  if (options.to == Layout::kPeft) {
    if (!adapts) {
      throw Error(ErrorKind::kInvalidArgument, folder + " has no adapters",
                  "--to hf writes the model; model.peft_config trains adapters");
    }
    source.family = peft_family_of(source.config, kept);
    source.tensors = peft_tensors(source.config, source.family);
    return source;
  }
  if (options.merge_adapter && !adapts) {
    throw Error(ErrorKind::kInvalidArgument, folder + " has no adapters to merge");
  }
  if (adapts && (options.merge_adapter || options.to != Layout::kDropless)) merge(source);
  if (options.to == Layout::kHf) source.family = hf_family_of(source.config, kept);
  source.tensors = tensors_of(source, options.to);
  return source;
}

// A target inside its own source, or the other way round, would be read while it is replaced.
void require_apart(const std::string& source, const std::string& target) {
  const auto real = [](const std::string& path) {
    std::error_code error;  // then the path as it is: whoever opens it will say what is wrong
    const auto canonical = std::filesystem::weakly_canonical(path, error);
    return (error ? path : canonical.string()) + "/";
  };
  const std::string a = real(source), b = real(target);
  if (a.starts_with(b) || b.starts_with(a)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} and {} are one folder, or one is in the other", source, target),
                "name another target");
  }
}

StorageType storage_of(at::ScalarType type) { return storage_type(dtype_of(type)); }

struct Planned {
  const MappedTensor* tensor;
  at::ScalarType type;
  NamedTensor named;
  std::uint64_t bytes = 0;
};

std::vector<Planned> plan(const Source& source, const ConvertOptions& options) {
  std::vector<Planned> all;
  for (const MappedTensor& tensor : source.tensors) {
    const at::ScalarType stored =
        options.dtype ? *options.dtype : common_type(source.weights, tensor);
    std::uint64_t bytes = c10::elementSize(stored);
    for (const std::int64_t size : tensor.tensor.shape) bytes *= static_cast<std::uint64_t>(size);
    all.push_back({&tensor,
                   stored,
                   {tensor.tensor.name, storage_of(stored), tensor.tensor.shape, nullptr},
                   bytes});
  }
  return all;
}

// All that decides the files' bytes: what is read, and how it is written.
std::string plan_of(const Source& source, const std::vector<Planned>& tensors,
                    const ConvertOptions& options) {
  nlohmann::json plan{{"to", static_cast<int>(options.to)},
                      {"shard_bytes", options.shard_bytes},
                      {"merge", options.merge_adapter}};
  for (const auto& file : source.weights.files()) plan["files"].push_back(file_stamp(file->path()));
  for (const Planned& tensor : tensors) {
    plan["tensors"].push_back({tensor.named.name, storage_type_name(tensor.named.dtype)});
  }
  return xxh3_hex(plan.dump());
}

// Whether no value is NaN or infinite: in all of these types, one whose exponent is all ones.
bool all_finite(const at::Tensor& part) {
  const auto none_is = [&]<class Bits>(Bits exponent) {
    const auto* bits = static_cast<const Bits*>(part.const_data_ptr());
    Bits found = 0;
    for (std::int64_t i = 0; i < part.numel(); ++i) found |= (bits[i] & exponent) == exponent;
    return found == 0;
  };
  switch (part.scalar_type()) {
    case at::kBFloat16:
      return none_is(std::uint16_t{0x7f80});
    case at::kHalf:
      return none_is(std::uint16_t{0x7c00});
    case at::kFloat:
      return none_is(std::uint32_t{0x7f800000});
    default:
      return at::isfinite(part).all().item<bool>();
  }
}

// Writes the tensor files into a FolderWriter, which may have some of them.
class TensorWriter {
 public:
  TensorWriter(const Source& source, FolderWriter& folder, std::uint64_t bytes, bool progress)
      : source_(source),
        folder_(folder),
        before_(folder.finished_bytes()),
        start_(std::chrono::steady_clock::now()) {
    ProgressLine::Options options;
    options.label = "convert MB";
    options.total = (bytes + kMega - 1) / kMega;
    options.start = before_ / kMega;
    options.enabled = progress;
    progress_.emplace(options);
  }

  // `tensors` in files of at most `limit` bytes, greedily and in order; a tensor above the limit has
  // a file of its own. With more than one file, an index says which tensor is where.
  void write(std::vector<Planned> tensors, const FileNames& names, std::uint64_t limit) {
    std::vector<std::vector<Planned>> shards;
    std::uint64_t filled = 0, total = 0;
    for (Planned& tensor : tensors) {
      if (shards.empty() || (filled > 0 && filled + tensor.bytes > limit)) {
        shards.emplace_back();
        filled = 0;
      }
      filled += tensor.bytes;
      total += tensor.bytes;
      shards.back().push_back(std::move(tensor));
    }
    nlohmann::ordered_json index;
    index["metadata"]["total_size"] = total;
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const std::string name = shards.size() == 1 ? names.single() : names.shard(i, shards.size());
      if (!folder_.has(name)) folder_.add_tensors(name, write_file(name, shards[i]));
      for (const Planned& tensor : shards[i]) index["weight_map"][tensor.named.name] = name;
    }
    if (shards.size() > 1) folder_.add_text(names.index(), index.dump(2) + "\n");
    progress_->finish();
  }

 private:
  static constexpr std::uint64_t kMega = 1'000'000;

  WrittenFile write_file(const std::string& name, const std::vector<Planned>& tensors) {
    std::map<std::string, const Planned*> by_name;
    std::vector<NamedTensor> named;
    for (const Planned& tensor : tensors) {
      by_name[tensor.named.name] = &tensor;
      named.push_back(tensor.named);
    }
    SafetensorsWriter writer(join_path(folder_.folder(), name), named, {{"format", "pt"}});
    std::vector<std::string> not_finite;
    bool narrowed = false;
    for (const TensorInfo& info : writer.tensors()) {
      const Planned& tensor = *by_name.at(info.name);
      bool finite = true;
      stream_tensor(source_.weights, *tensor.tensor, tensor.type, [&](const at::Tensor& part) {
        check_interrupted();
        finite = finite && all_finite(part);
        writer.append(part.const_data_ptr(), part.nbytes());
        count(part.nbytes());
      });
      if (finite) continue;
      not_finite.push_back(info.name);
      narrowed = narrowed || (tensor.type == at::kHalf &&
                              common_type(source_.weights, *tensor.tensor) != at::kHalf);
    }
    if (!not_finite.empty()) {
      log_warning("{} of the {} tensors of {} hold values that are no finite numbers, {} first{}",
                  not_finite.size(), tensors.size(), name, not_finite[0],
                  narrowed ? " (fp16 ends at 65504: --dtype bf16 has room)" : "");
    }
    return writer.finish();
  }

  void count(std::uint64_t bytes) {
    written_ += bytes;
    const std::uint64_t done = (before_ + written_) / kMega;
    if (!progress_->due(done)) return;
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start_;
    progress_->update(done, {fmt::format("{:.0f} MB/s", static_cast<double>(written_) / 1e6 /
                                                            std::max(passed.count(), 1e-9))});
  }

  const Source& source_;
  FolderWriter& folder_;
  std::uint64_t before_;  // bytes that were there
  std::chrono::steady_clock::time_point start_;
  std::optional<ProgressLine> progress_;
  std::uint64_t written_ = 0;  // here, and not before
};

// transformers' name of the type of the matrices; it reads all in one.
std::string dtype_of_matrices(const std::vector<Planned>& tensors) {
  std::string dtype = "float32";
  for (const Planned& tensor : tensors) {
    if (tensor.tensor->tensor.shape.size() > 1) dtype = dtype_name(dtype_of(tensor.type));
  }
  return dtype;
}

const FileNames& file_names(Layout layout) {
  if (layout == Layout::kMistral) return kMistralFiles;
  return layout == Layout::kPeft ? kAdapterFiles : kModelFiles;
}

void write_config(const Source& source, const ConvertOptions& options, const std::string& dtype,
                  FolderWriter& folder) {
  const auto add = [&](const char* name, const nlohmann::ordered_json& json) {
    folder.add_text(name, json.dump(2) + "\n");
  };
  switch (options.to) {
    case Layout::kDropless:
      folder.add_text(kConfigFile, source.config_yaml);
      folder.add_manifest();
      return;
    case Layout::kHf:
      return add(kHfConfigFile, make_hf_config(source.config, dtype, source.kept));
    case Layout::kFoundry:
      return add(kHfConfigFile, make_mpt_config(source.config, dtype, source.kept));
    case Layout::kMistral:
      return add(kMistralConfigFile, make_mistral_params(source.config));
    case Layout::kPeft:
      return add(kAdapterConfig, make_adapter_config(source.config, source.family, source.base));
  }
}

}  // namespace

void convert_model(const std::string& path, const std::string& target,
                   const ConvertOptions& options) {
  if (!path_exists(path)) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("no such model: {}", path));
  }
  if (target.empty()) throw Error(ErrorKind::kInvalidArgument, "the target has no name");
  const Source source =
      is_released_folder(path) ? open_released(path, options) : open_ours(path, options);
  require_apart(path, target);
  const std::vector<Planned> tensors = plan(source, options);
  std::uint64_t bytes = 0;
  for (const Planned& tensor : tensors) bytes += tensor.bytes;
  FolderWriter folder(target, options.overwrite, plan_of(source, tensors, options));
  if (folder.finished_files() > 0) {
    log_info("{} files of an earlier start are whole: going on", folder.finished_files());
  }
  require_free(folder.folder(), bytes - std::min(bytes, folder.finished_bytes()), target);
  TensorWriter writer(source, folder, bytes, options.progress);
  // PEFT looks for one file.
  const bool one_file = options.to == Layout::kPeft;
  writer.write(tensors, file_names(options.to), one_file ? UINT64_MAX : options.shard_bytes);
  for (const Companion& companion : read_companions(source.folder)) {
    // The target's own config says the same.
    if (options.to != Layout::kDropless && companion.name == kKeptConfig) continue;
    folder.add_text(companion.name, companion.content);
  }
  write_config(source, options, dtype_of_matrices(tensors), folder);
  folder.publish();
}

}  // namespace dropless::train
