#include "train/convert/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/hash.h"
#include "train/base/json.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/base/yaml.h"
#include "train/bridge/views.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/manifest.h"
#include "train/convert/hf_folder.h"

namespace dropless::train {
namespace {

// config.json of the model's origin, in a folder of ours: token ids for the way back.
constexpr const char* kKeptConfig = "hf_config.json";
// What goes along unchanged.
constexpr const char* kCompanions[] = {
    "generation_config.json",  "tokenizer.json",    "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json",      "merges.txt",
    "chat_template.jinja",     "chat_template.json"};
constexpr std::uint64_t kMaxCompanionBytes = 256 << 20;

// What is read, as ours or theirs, and what the target needs of it.
struct Source {
  std::string folder;
  ModelConfig config;
  std::string config_yaml;  // what a folder of ours gets
  nlohmann::json kept;      // null where the model did not come from elsewhere
  TensorFolder weights;
  std::vector<MappedTensor> tensors;  // of the target, in its names
};

std::string yaml_of(const HfModel& model, const std::string& folder) {
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

Source open_hf(const std::string& folder, const ConvertOptions& options) {
  if (options.to == Layout::kHf) {
    throw Error(ErrorKind::kInvalidArgument, folder + " is a Hugging Face folder already",
                "another type of it: convert it --to dropless first");
  }
  const std::string path = join_path(folder, kHfConfigFile);
  HfFolder hf = open_hf_folder(folder);
  return {folder,
          hf.model.config,
          yaml_of(hf.model, folder),
          parse_json(read_file(path), path),
          std::move(hf.weights),
          std::move(hf.map.ours)};
}

Source open_ours(const std::string& path, const ConvertOptions& options) {
  const std::string folder = resolve_checkpoint(path);
  const Manifest manifest = read_manifest(folder);
  for (const char* file : {kConfigFile, kModelFile}) verify_file(folder, manifest, file);
  const std::string config_path = join_path(folder, kConfigFile);
  const YamlDocument document = YamlDocument::load(config_path).without_warnings();
  const ModelConfig config = ModelConfig::from_yaml(document.root().map("model"));
  nlohmann::json kept;
  const std::string kept_path = join_path(folder, kKeptConfig);
  if (path_exists(kept_path)) kept = parse_json(read_file(kept_path, 16 << 20), kept_path);
  TensorFolder weights = TensorFolder::open(folder);
  std::vector<MappedTensor> tensors;
  if (options.to == Layout::kHf) {
    TensorMap map = hf_tensor_map(config, hf_family_of(config, kept), ExpertForm::kEach);
    std::vector<TensorShape> wanted;
    for (const MappedTensor& tensor : map.ours) wanted.push_back(tensor.tensor);
    weights.check(wanted, [](const std::string&) { return false; });
    tensors = std::move(map.theirs);
  } else {
    for (const auto& [name, entry] : weights.tensors()) {
      std::int64_t elements = 1;
      for (const std::int64_t size : entry.info.shape) elements *= size;
      const std::int64_t columns = entry.info.shape.empty() ? 1 : entry.info.shape.back();
      const Piece whole{name, 0, elements / std::max<std::int64_t>(columns, 1), columns, false};
      tensors.push_back({{name, entry.info.shape}, {whole}});
    }
  }
  return {folder, config, read_file(config_path), kept, std::move(weights), std::move(tensors)};
}

// Writes into a temporary folder beside the target, which takes the target's name at the end.
class FolderWriter {
 public:
  FolderWriter(std::string target, bool overwrite) : target_(std::move(target)) {
    while (target_.size() > 1 && target_.ends_with('/')) target_.pop_back();
    if (path_exists(target_)) {
      if (!is_folder(target_)) {
        throw Error(ErrorKind::kInvalidArgument, target_ + " is a file", "name a folder");
      }
      if (!overwrite && !list_folder(target_).empty()) {
        throw Error(ErrorKind::kInvalidArgument, target_ + " is not empty",
                    "name another folder, or give --overwrite to replace it");
      }
    }
    temporary_ = target_ + ".dropless-tmp";
    remove_all(temporary_);
    make_folders(temporary_);
  }
  ~FolderWriter() {
    if (published_) return;
    try {
      remove_all(temporary_);
    } catch (const Error& error) {
      log_warning("{}", error.what());
    }
  }
  FolderWriter(const FolderWriter&) = delete;
  FolderWriter& operator=(const FolderWriter&) = delete;

  const std::string& folder() const { return temporary_; }
  void add_text(const std::string& name, std::string_view text) {
    FileWriter writer(join_path(temporary_, name));
    writer.write(text.data(), text.size());
    writer.finish();
    files_.push_back({name, text.size(), xxh3_hex(text)});
  }
  void add_written(const std::string& name, const WrittenFile& file) {
    files_.push_back({name, file.bytes, file.xxh3});
  }
  void add_manifest() {
    const std::string manifest = make_manifest({/*step=*/0, /*sequence=*/0, files_});
    FileWriter writer(join_path(temporary_, kManifestName));
    writer.write(manifest.data(), manifest.size());
    writer.finish();
  }
  void publish() {
    fsync_path(temporary_);
    const std::string replaced = publish_folder(temporary_, target_, target_ + ".dropless-old");
    if (!replaced.empty()) remove_all(replaced);
    published_ = true;
  }

 private:
  std::string target_, temporary_;
  std::vector<CheckpointFile> files_;
  bool published_ = false;
};

// A target inside its own source, or the other way round, would be read while it is replaced.
void require_apart(const std::string& source, const std::string& target) {
  const auto real = [](const std::string& path) {
    return std::filesystem::weakly_canonical(path).string() + "/";
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

// One file of these tensors; returns how many of them have values that are no finite numbers.
WrittenFile write_file(const std::string& path, const Source& source,
                       const std::vector<Planned>& tensors, std::vector<std::string>& not_finite) {
  std::map<std::string, const Planned*> by_name;
  std::vector<NamedTensor> named;
  for (const Planned& tensor : tensors) {
    by_name[tensor.named.name] = &tensor;
    named.push_back(tensor.named);
  }
  SafetensorsWriter writer(path, named, {{"format", "pt"}});
  for (const TensorInfo& info : writer.tensors()) {
    const Planned& tensor = *by_name.at(info.name);
    bool finite = true;
    stream_tensor(source.weights, *tensor.tensor, tensor.type, [&](const at::Tensor& part) {
      check_interrupted();
      finite = finite && at::isfinite(part).all().item<bool>();
      writer.append(part.const_data_ptr(), part.nbytes());
    });
    if (!finite) not_finite.push_back(info.name);
  }
  return writer.finish();
}

// Greedily, in order; a tensor above the limit has a file of its own.
std::vector<std::vector<Planned>> shards_of(std::vector<Planned> tensors, std::uint64_t limit) {
  std::vector<std::vector<Planned>> shards;
  std::uint64_t filled = 0;
  for (Planned& tensor : tensors) {
    if (shards.empty() || (filled > 0 && filled + tensor.bytes > limit)) {
      shards.emplace_back();
      filled = 0;
    }
    filled += tensor.bytes;
    shards.back().push_back(std::move(tensor));
  }
  return shards;
}

void write_hf(const Source& source, const ConvertOptions& options, FolderWriter& writer,
              std::vector<Planned> tensors, std::vector<std::string>& not_finite) {
  // The type of the matrices; transformers reads all in one.
  std::string dtype = "float32";
  for (const Planned& tensor : tensors) {
    if (tensor.tensor->tensor.shape.size() > 1) dtype = dtype_name(dtype_of(tensor.type));
  }
  writer.add_text(kHfConfigFile, make_hf_config(source.config, dtype, source.kept).dump(2) + "\n");
  std::uint64_t total = 0;
  for (const Planned& tensor : tensors) total += tensor.bytes;
  const auto shards = shards_of(std::move(tensors), options.shard_bytes);
  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = total;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        shards.size() == 1 ? kModelFile
                           : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    const std::string path = join_path(writer.folder(), name);
    writer.add_written(name, write_file(path, source, shards[i], not_finite));
    for (const Planned& tensor : shards[i]) index["weight_map"][tensor.named.name] = name;
  }
  if (shards.size() > 1) writer.add_text(kIndexFile, index.dump(2) + "\n");
}

}  // namespace

void convert_model(const std::string& path, const std::string& target,
                   const ConvertOptions& options) {
  if (!path_exists(path)) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("no such model: {}", path));
  }
  const Source source = is_hf_folder(path) ? open_hf(path, options) : open_ours(path, options);
  require_apart(path, target);
  std::vector<Planned> tensors = plan(source, options);
  std::uint64_t bytes = 0;
  for (const Planned& tensor : tensors) bytes += tensor.bytes;
  FolderWriter writer(target, options.overwrite);
  require_free(writer.folder(), bytes, target);
  std::vector<std::string> not_finite;
  for (const char* name : kCompanions) {
    const std::string from = join_path(source.folder, name);
    if (path_exists(from)) writer.add_text(name, read_file(from, kMaxCompanionBytes));
  }
  if (options.to == Layout::kHf) {
    write_hf(source, options, writer, std::move(tensors), not_finite);
  } else {
    writer.add_written(kModelFile, write_file(join_path(writer.folder(), kModelFile), source,
                                              tensors, not_finite));
    writer.add_text(kConfigFile, source.config_yaml);
    if (!source.kept.is_null()) writer.add_text(kKeptConfig, source.kept.dump(2) + "\n");
    writer.add_manifest();
  }
  writer.publish();
  if (!not_finite.empty()) {
    log_warning("{} of {} tensors hold values that are no finite numbers, {} first",
                not_finite.size(), source.tensors.size(), not_finite[0]);
  }
}

}  // namespace dropless::train
