// TextDatasetConfig::from_yaml: LLM Foundry's train_loader / eval_loader block.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "dropless/error.h"
#include "train/data/encodings.h"
#include "train/data/file_hash.h"
#include "train/data/loader.h"
#include "train/data/mds_writer.h"

namespace dropless::train {
namespace {

// A whole number of at least `least`; absent: nullopt.
std::optional<std::int64_t> find_at_least(const YamlMap& map, const char* key, std::int64_t least) {
  const auto value = map.find<std::int64_t>(key);
  if (value && *value < least) map.fail(key, fmt::format("{} is below {}", *value, least));
  return value;
}

// What fetches a set. Keys that a stream lacks are the data set's.
void read_store(const YamlMap& map, ShardStoreOptions& store) {
  store.validate_hash = map.get<std::string>("validate_hash", store.validate_hash);
  if (!store.validate_hash.empty() && !is_hash_name(store.validate_hash)) {
    map.fail("validate_hash", fmt::format("unknown hash '{}'", store.validate_hash),
             "one of: " + known_hashes());
  }
  store.keep_zip = map.get<bool>("keep_zip", store.keep_zip);
  constexpr int kMostRetries = 1000;
  const auto retries = map.non_negative<std::int64_t>("download_retry", store.remote.retries);
  store.remote.retries = static_cast<int>(std::min<std::int64_t>(retries, kMostRetries));
  store.remote.timeout = map.positive<double>("download_timeout", store.remote.timeout);
}

StreamWeight read_weight(const YamlMap& stream) {
  StreamWeight weight;
  weight.proportion = stream.find<double>("proportion");
  weight.repeat = stream.find<double>("repeat");
  weight.choose = stream.find<std::int64_t>("choose");
  if (weight.proportion && *weight.proportion < 0) stream.fail("proportion", "it is below 0");
  if (weight.repeat && *weight.repeat < 0) stream.fail("repeat", "it is below 0");
  if (weight.choose && *weight.choose < 0) stream.fail("choose", "it is below 0");
  const int given =
      weight.proportion.has_value() + weight.repeat.has_value() + weight.choose.has_value();
  if (given > 1) {
    stream.fail("", "more than one of proportion, repeat and choose", "keep one of them");
  }
  return weight;
}

// The folder in which a stream's shards lie or are kept, without its spelling.
std::filesystem::path folder_of(const StreamConfig& stream) {
  std::error_code error;
  const auto folder =
      std::filesystem::absolute(strip_file_scheme(stream.local)) / stream.split / "";
  const auto real = std::filesystem::weakly_canonical(folder, error) / "";
  return (error ? folder : real).lexically_normal();
}

// Of each stream; relative weights go with relative ones only.
void read_streams(const YamlMap& dataset, TextDatasetConfig& config) {
  const auto streams = dataset.find_map("streams");
  if (!streams) return;
  for (const std::string& name : streams->keys()) {
    const YamlMap map = streams->map(name);
    StreamConfig stream;
    stream.name = name;
    stream.local = map.get<std::string>("local", config.local);
    stream.remote = map.get<std::string>("remote", config.remote);
    stream.split = map.get<std::string>("split", config.split);
    stream.store = config.store;
    read_store(map, stream.store);
    stream.weight = read_weight(map);
    if (stream.local.empty() && stream.remote.empty()) {
      map.fail("local", "neither local nor remote is given", "name the folder of the MDS set");
    }
    if (!config.streams.empty() &&
        config.streams[0].weight.proportion.has_value() != stream.weight.proportion.has_value()) {
      map.fail("proportion", "it does not go with streams that have another weight or none",
               "give every stream a proportion, or none");
    }
    for (const StreamConfig& other : config.streams) {
      // Sets without a remote may share a folder: nothing is made or removed there.
      const bool fetched = !stream.remote.empty() || !other.remote.empty();
      if (fetched && !stream.local.empty() && !other.local.empty() &&
          folder_of(stream) == folder_of(other)) {
        map.fail("local", fmt::format("another stream has {} too", stream.local),
                 "give each stream a folder of its own");
      }
    }
    map.finish();
    config.streams.push_back(std::move(stream));
  }
  if (config.streams.empty()) dataset.fail("streams", "no streams", "name one or remove the key");
}

// One of the words that `parse` knows.
template <class Parse, class Value>
void read_word(const YamlMap& map, const char* key, Parse parse, Value& value) {
  const auto word = map.find<std::string>(key);
  if (!word) return;
  value = map.locate(key, [&] { return parse(*word); });
}

void read_order(const YamlMap& dataset, EpochConfig& order) {
  ShuffleConfig& shuffle = order.shuffle;
  ShuffleAlgo algo = ShuffleAlgo::kPy1e;
  read_word(dataset, "shuffle_algo", parse_shuffle_algo, algo);
  shuffle.algo = dataset.get<bool>("shuffle", false) ? algo : ShuffleAlgo::kNone;
  shuffle.seed = find_at_least(dataset, "shuffle_seed", 0).value_or(shuffle.seed);
  // Blocks are drawn from 0.75 to 1.25 of this size; below 2 no whole number lies between.
  shuffle.block_size = find_at_least(dataset, "shuffle_block_size", 2);
  if (shuffle.algo == ShuffleAlgo::kNone) {
    for (const char* key : {"shuffle_algo", "shuffle_block_size"}) {
      dataset.no_effect(key, "shuffle is off");
    }
    // Which samples are picked of streams depends on the seed without a shuffle too.
    if (!dataset.has("streams") && !dataset.has("epoch_size")) {
      dataset.no_effect("shuffle_seed", "shuffle is off");
    }
  }
  shuffle.num_canonical_nodes = find_at_least(dataset, "num_canonical_nodes", 1);
  read_word(dataset, "partition_algo", parse_partition_algo, order.partition);
  read_word(dataset, "batching_method", parse_batching_method, order.batching);
  read_word(dataset, "sampling_method", parse_sampling_method, order.sampling);
  order.sampling_granularity = find_at_least(dataset, "sampling_granularity", 1).value_or(1);
  read_word(
      dataset, "epoch_size",
      [](const std::string& text) { return std::optional(parse_sample_count(text)); },
      order.epoch_size);
  order.replication = find_at_least(dataset, "replication", 1);
}

// Keys of the package that do not change which samples come.
void read_settings_without_effect(const YamlMap& dataset) {
  dataset.no_effect("allow_unsafe_types", "pickles are never loaded");
}

std::optional<DocumentSeparator> read_separator(const YamlMap& dataset) {
  const auto eos = find_at_least(dataset, "eos_token_id", 0);
  const auto bos = find_at_least(dataset, "bos_token_id", 0);
  if (eos && bos) {
    dataset.fail("bos_token_id", "eos_token_id and bos_token_id exclude each other",
                 "name the token that stands between documents once");
  }
  if (eos) return DocumentSeparator{*eos, false};
  if (bos) return DocumentSeparator{*bos, true};
  return std::nullopt;
}

}  // namespace

std::vector<StreamConfig> TextDatasetConfig::all_streams() const {
  if (!streams.empty()) return streams;
  return {{"", local, remote, split, {}, store}};
}

TextDatasetConfig TextDatasetConfig::from_yaml(const YamlMap& loader) {
  TextDatasetConfig config;
  const auto name = loader.get<std::string>("name", "text");
  if (name != "text" && name != "finetuning") {
    loader.fail("name", fmt::format("loader '{}' is not supported by this version", name),
                "use text or finetuning");
  }
  config.label = loader.get<std::string>("label", "");
  config.drop_last = loader.get<bool>("drop_last", false);
  config.prefetch_batches =
      find_at_least(loader, "prefetch_factor", 1).value_or(config.prefetch_batches);
  find_at_least(loader, "num_workers", 0);
  loader.get<bool>("pin_memory", true);
  loader.get<bool>("persistent_workers", true);
  loader.get<double>("timeout", 0);
  for (const char* key : {"num_workers", "pin_memory", "persistent_workers", "timeout"}) {
    loader.no_effect(key, "one thread reads ahead, there are no worker processes");
  }

  const YamlMap dataset = loader.map("dataset");
  if (name == "finetuning") config.finetuning = FinetuningConfig::from_yaml(dataset);
  config.local = dataset.get<std::string>("local", "");
  if (config.finetuning && !config.finetuning->folder.empty()) {
    config.local = config.finetuning->folder;
  }
  config.remote = dataset.get<std::string>("remote", "");
  config.split = dataset.get<std::string>("split", "");
  read_store(dataset, config.store);
  read_streams(dataset, config);
  if (config.streams.empty() && config.local.empty() && config.remote.empty()) {
    dataset.fail("local", "neither local nor remote is given", "name the folder of the MDS set");
  }
  read_order(dataset, config.order);
  config.predownload = find_at_least(dataset, "predownload", 1);
  read_word(
      dataset, "cache_limit",
      [](const std::string& text) { return std::optional(parse_byte_size(text)); },
      config.cache_limit);
  config.max_seq_len = find_at_least(dataset, "max_seq_len", 1).value_or(0);
  config.token_encoding_type =
      dataset.get<std::string>("token_encoding_type", config.token_encoding_type);
  const NumpyType* type = find_numpy_type(std::string_view(config.token_encoding_type));
  if (type == nullptr || !type->is_integer) {
    dataset.fail("token_encoding_type",
                 fmt::format("'{}' is not an integer type", config.token_encoding_type),
                 "use int8 to int64 or uint8 to uint64");
  }
  config.separator = read_separator(dataset);
  read_settings_without_effect(dataset);
  dataset.finish();
  loader.finish();
  return config;
}

}  // namespace dropless::train
