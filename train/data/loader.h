// Batches of tokens from an MDS set, in LLM Foundry's order, resumable at any sample.
//
// The config is LLM Foundry's train_loader / eval_loader block. With `name: text`, samples hold
// `tokens` (an ndarray of any integer type, or bytes read as token_encoding_type) or `text` (str,
// tokenised here); with `name: finetuning`, instructions and answers (finetuning.h). Batches are read and decoded by one background thread, a bounded number of them
// ahead; other threads bring the shards that it will need.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "train/base/yaml.h"
#include "train/data/batch.h"
#include "train/data/epoch_plan.h"
#include "train/data/finetuning.h"
#include "train/data/shard_store.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

// Where a set lies. With `remote` (a folder or a URL), `local` is the folder into which shards are
// brought as they are needed; alone, it is the set, and compressed shards are decompressed in it.
struct StreamConfig {
  std::string name;  // its key in the config
  std::string local, remote, split;
  StreamWeight weight;
  ShardStoreOptions store;  // but its cache limit, which is the data set's
};

struct TextDatasetConfig {
  std::string label;                         // eval_loader entries may carry one; else empty
  std::string local, remote, split;          // the one stream, where `streams` is empty
  ShardStoreOptions store;                   // of it
  std::vector<StreamConfig> streams;         // sorted by name, as the keys of the config
  std::optional<std::uint64_t> cache_limit;  // bytes, of each stream
  std::optional<std::int64_t> predownload;   // samples ahead; default 8 batches
  EpochConfig order;
  std::optional<FinetuningConfig> finetuning;  // samples of instructions and answers
  std::int64_t max_seq_len = 0;                // 0: take TextLoaderOptions::seq_len
  std::string token_encoding_type = "int64";
  bool drop_last = false;
  std::optional<DocumentSeparator> separator;
  std::int64_t prefetch_batches = 2;

  // `streams`, or the one that the block itself describes, which has no name.
  std::vector<StreamConfig> all_streams() const;
  // Reads one loader block and refuses unknown keys. Throws Error(kInvalidArgument) with the place.
  static TextDatasetConfig from_yaml(const YamlMap& loader);
};

struct TextLoaderOptions {
  std::int64_t batch_size = 1;  // samples a batch
  std::int64_t seq_len = 0;     // samples are cut to this many tokens
  // Every id is checked to be below it; 0: the tokenizer's, or unchecked without a tokenizer.
  std::int64_t vocab_size = 0;
  // May be null for sets of `tokens`; then pads are id 0.
  std::shared_ptr<const Tokenizer> tokenizer = nullptr;
};

class TextLoader : public BatchSource {
 public:
  // Opens the set and stands at epoch 0, sample 0. Throws Error: kInvalidArgument (absent set, no
  // usable column, impossible sizes), kDamaged (unreadable index).
  TextLoader(const TextDatasetConfig& config, const TextLoaderOptions& options);
  ~TextLoader() override;
  TextLoader(const TextLoader&) = delete;
  TextLoader& operator=(const TextLoader&) = delete;

  // Every shard of the index is there and has its size; reads none. Throws Error(kDamaged).
  void check_files() const;

  // The next batch of the epoch; false at its end (again and again, until begin_epoch). The last
  // batch may have fewer rows unless drop_last. Rethrows what the background thread met, at the
  // batch where it met it.
  bool next(Batch& batch) override;
  // Stands at the first sample of the epoch, wherever the loader stood before.
  void begin_epoch(std::int64_t epoch);

  std::int64_t epoch() const;
  std::int64_t sample_in_epoch() const;    // samples handed out in this epoch
  std::int64_t num_samples() const;        // in the set
  std::int64_t samples_per_epoch() const;  // with the repeats of the partition
  std::int64_t batches_per_epoch() const;

  // Where the next batch begins, with what fixes the order: {"epoch", "sample_in_epoch",
  // "num_canonical_nodes", "shuffle", "shuffle_algo", "shuffle_seed", "shuffle_block_size",
  // "num_samples", "fingerprint"}, and of batching and sampling, stream weights and epoch size what
  // is not the default. Batches read ahead are not counted.
  nlohmann::json record_position() const;
  // Stands there again. Throws Error(kInvalidArgument) naming those that differ and do not follow from others,
  // since the remaining samples would not be the ones left out.
  void reload_position(const nlohmann::json& position);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dropless::train
