// TextDatasetConfig::from_yaml: LLM Foundry's train_loader / eval_loader block.
#include <fmt/format.h>

#include "dropless/error.h"
#include "train/data/encodings.h"
#include "train/data/loader.h"

namespace dropless::train {
namespace {

// A whole number of at least `least`; absent: nullopt.
std::optional<std::int64_t> find_at_least(const YamlMap& map, const char* key, std::int64_t least) {
  const auto value = map.find<std::int64_t>(key);
  if (value && *value < least) map.fail(key, fmt::format("{} is below {}", *value, least));
  return value;
}

// `streams` with one entry is the same as its keys one level up.
void read_streams(const YamlMap& dataset, TextDatasetConfig& config) {
  const auto streams = dataset.find_map("streams");
  if (!streams) return;
  const auto names = streams->keys();
  if (names.size() != 1) {
    dataset.fail("streams", fmt::format("{} streams; this version reads one", names.size()),
                 "write one set, or name one stream");
  }
  const YamlMap stream = streams->map(names[0]);
  config.local = stream.get<std::string>("local", config.local);
  config.remote = stream.get<std::string>("remote", config.remote);
  config.split = stream.get<std::string>("split", config.split);
  for (const char* key : {"proportion", "repeat", "choose"}) {
    if (stream.has(key)) stream.fail(key, "not supported by this version", "remove it");
  }
  stream.finish();
}

void read_shuffle(const YamlMap& dataset, ShuffleConfig& shuffle) {
  const auto name = dataset.find<std::string>("shuffle_algo");
  ShuffleAlgo algo = ShuffleAlgo::kPy1e;
  if (name) {
    algo = dataset.locate("shuffle_algo", [&] { return parse_shuffle_algo(*name); });
  }
  shuffle.algo = dataset.get<bool>("shuffle", false) ? algo : ShuffleAlgo::kNone;
  shuffle.seed = find_at_least(dataset, "shuffle_seed", 0).value_or(shuffle.seed);
  // Blocks are drawn from 0.75 to 1.25 of this size; below 2 no whole number lies between.
  shuffle.block_size = find_at_least(dataset, "shuffle_block_size", 2);
  if (shuffle.algo == ShuffleAlgo::kNone) {
    for (const char* key : {"shuffle_algo", "shuffle_seed", "shuffle_block_size"}) {
      dataset.no_effect(key, "shuffle is off");
    }
  }
  shuffle.num_canonical_nodes = find_at_least(dataset, "num_canonical_nodes", 1);
}

// Keys of the package that do not change which samples come, given one stream and one process.
void read_settings_without_effect(const YamlMap& dataset) {
  // They size the package's own cache, download and sampling machinery.
  find_at_least(dataset, "predownload", 0);
  find_at_least(dataset, "download_retry", 0);
  find_at_least(dataset, "sampling_granularity", 1);
  dataset.get<double>("download_timeout", 0);
  dataset.get<bool>("keep_zip", false);
  dataset.get<bool>("allow_unsafe_types", false);
  for (const char* key : {"cache_limit", "validate_hash"}) {
    dataset.no_effect(key, "the set is read where it lies");
  }
  for (const char* key : {"eos_token_id", "bos_token_id"}) {
    dataset.no_effect(key, "sequence ids serve attn_uses_sequence_id only, which is not supported");
  }
  const auto one_of = [&](const char* key, std::initializer_list<const char*> known) {
    const auto value = dataset.find<std::string>(key);
    if (!value) return;
    for (const char* word : known) {
      if (*value == word) return;
    }
    dataset.fail(key, fmt::format("'{}' is not supported by this version", *value),
                 fmt::format("use {}", *known.begin()));
  };
  one_of("partition_algo", {"relaxed", "orig"});
  one_of("sampling_method", {"balanced", "fixed"});
  one_of("batching_method", {"random"});
  for (const char* key : {"epoch_size", "replication"}) {
    if (dataset.has(key)) dataset.fail(key, "not supported by this version", "remove it");
    dataset.skip(key);
  }
}

}  // namespace

TextDatasetConfig TextDatasetConfig::from_yaml(const YamlMap& loader) {
  TextDatasetConfig config;
  const auto name = loader.get<std::string>("name", "text");
  if (name != "text") {
    loader.fail("name", fmt::format("loader '{}' is not supported by this version", name),
                "use text");
  }
  config.label = loader.get<std::string>("label", "");
  config.drop_last = loader.get<bool>("drop_last", false);
  config.prefetch_batches =
      find_at_least(loader, "prefetch_factor", 1).value_or(config.prefetch_batches);
  // They tune the worker processes that upstream needs; here one thread reads ahead.
  find_at_least(loader, "num_workers", 0);
  loader.get<bool>("pin_memory", true);
  loader.get<bool>("persistent_workers", true);
  loader.get<double>("timeout", 0);

  const YamlMap dataset = loader.map("dataset");
  config.local = dataset.get<std::string>("local", "");
  config.remote = dataset.get<std::string>("remote", "");
  config.split = dataset.get<std::string>("split", "");
  read_streams(dataset, config);
  if (config.local.empty() && config.remote.empty()) {
    dataset.fail("local", "neither local nor remote is given", "name the folder of the MDS set");
  }
  read_shuffle(dataset, config.shuffle);
  config.max_seq_len = find_at_least(dataset, "max_seq_len", 1).value_or(0);
  config.token_encoding_type =
      dataset.get<std::string>("token_encoding_type", config.token_encoding_type);
  const NumpyType* type = find_numpy_type(std::string_view(config.token_encoding_type));
  if (type == nullptr || !type->is_integer) {
    dataset.fail("token_encoding_type",
                 fmt::format("'{}' is not an integer type", config.token_encoding_type),
                 "use int8 to int64 or uint8 to uint64");
  }
  read_settings_without_effect(dataset);
  dataset.finish();
  loader.finish();
  return config;
}

}  // namespace dropless::train
