#include "train/data/loader.h"

#include <fmt/format.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"
#include "train/data/token_reader.h"

namespace dropless::train {
namespace {

using nlohmann::json;

// `local` where it holds a set, else a `remote` that is a path.
std::string find_set(const TextDatasetConfig& config) {
  const auto has_index = [&](const std::string& root) {
    const std::string folder = config.split.empty() ? root : join_path(root, config.split);
    return !root.empty() && path_exists(join_path(folder, "index.json"));
  };
  if (config.remote.find("://") != std::string::npos) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("remote {}: this version does not download data sets", config.remote),
                "copy the set to a local folder, name it as local and remove remote");
  }
  if (has_index(config.local)) return split_folder(config.local, config.split);
  if (has_index(config.remote)) return split_folder(config.remote, config.split);
  return split_folder(config.local.empty() ? config.remote : config.local, config.split);
}

std::int64_t choose_seq_len(const TextDatasetConfig& config, const TextLoaderOptions& options) {
  if (config.max_seq_len <= 0 && options.seq_len <= 0) {
    throw Error(ErrorKind::kInvalidArgument,
                "neither the data set nor the model gives max_seq_len");
  }
  if (config.max_seq_len > 0 && options.seq_len > 0 && config.max_seq_len > options.seq_len) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("the data set's max_seq_len {} is above the model's {}",
                            config.max_seq_len, options.seq_len),
                "set both to ${max_seq_len}");
  }
  return config.max_seq_len > 0 ? config.max_seq_len : options.seq_len;
}

std::int64_t choose_vocab_size(const TextLoaderOptions& options) {
  if (options.vocab_size > 0) return options.vocab_size;
  return options.tokenizer ? options.tokenizer->vocab_size() : 0;
}

}  // namespace

// The calling thread owns the position; the reading thread owns tokens_ while it runs, and shares
// only what stands under mutex_.
struct TextLoader::Impl {
  Impl(const TextDatasetConfig& config, const TextLoaderOptions& options)
      : config_(config),
        batch_size_(options.batch_size),
        tokens_(MdsReader(find_set(config)), options.tokenizer, config.token_encoding_type,
                choose_seq_len(config, options), choose_vocab_size(options)),
        shard_sizes_(tokens_.reader().index().shard_sizes()),
        num_samples_(tokens_.reader().num_samples()),
        canonical_nodes_(resolve_canonical_nodes(config.shuffle, 1)),
        fingerprint_(tokens_.reader().fingerprint()) {
    const std::string& folder = tokens_.reader().folder();
    if (batch_size_ <= 0)
      throw Error(ErrorKind::kInvalidArgument, fmt::format("a batch size of {}", batch_size_));
    if (num_samples_ == 0)
      throw Error(ErrorKind::kInvalidArgument, fmt::format("{} holds no samples", folder));
    if (config_.shuffle.algo != ShuffleAlgo::kNone && canonical_nodes_ > num_samples_) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{} holds {} samples, fewer than num_canonical_nodes {}", folder,
                              num_samples_, canonical_nodes_),
                  "lower num_canonical_nodes");
    }
    // One process: the canonical nodes' shares differ by at most one sample, made equal by repeats.
    samples_per_epoch_ =
        (num_samples_ + canonical_nodes_ - 1) / canonical_nodes_ * canonical_nodes_;
    if (config_.drop_last && samples_per_epoch_ < batch_size_) {
      throw Error(
          ErrorKind::kInvalidArgument,
          fmt::format(
              "{} gives {} samples an epoch, and drop_last drops what does not fill a batch of {}",
              folder, samples_per_epoch_, batch_size_),
          "lower the batch size or set drop_last: false");
    }
  }

  ~Impl() { stop(); }

  // ---- the reading thread ----

  void start() {
    stopping_ = finished_ = false;
    error_ = nullptr;
    ready_.clear();
    thread_ =
        std::thread([this, epoch = epoch_, from = sample_in_epoch_] { read_epoch(epoch, from); });
  }

  void stop() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void read_epoch(std::int64_t epoch, std::int64_t from) {
    std::exception_ptr error;
    try {
      const auto order = epoch_order(config_.shuffle, shard_sizes_, epoch, from);
      std::int64_t left = samples_per_epoch_ - from;
      for (std::size_t at = 0; left > 0 && !(config_.drop_last && left < batch_size_);) {
        const std::int64_t rows = std::min(left, batch_size_);
        Batch batch = read_batch(std::span(order).subspan(at, static_cast<std::size_t>(rows)));
        at += static_cast<std::size_t>(rows);
        left -= rows;
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] {
          return stopping_ || static_cast<std::int64_t>(ready_.size()) < config_.prefetch_batches;
        });
        if (stopping_) return;
        ready_.push_back(std::move(batch));
        changed_.notify_all();
      }
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    finished_ = true;
    error_ = error;
    changed_.notify_all();
  }

  Batch read_batch(std::span<const std::int64_t> samples) {
    Batch batch;
    batch.batch = static_cast<std::int64_t>(samples.size());
    std::vector<std::int64_t>& ids = batch.tokens_BS;
    for (const std::int64_t sample : samples) {
      const std::int64_t length = tokens_.append(sample, ids);
      batch.lengths_B.push_back(static_cast<std::int32_t>(length));
      batch.tokens += length;
      batch.seq_len = std::max(batch.seq_len, length);
    }
    pad_rows(batch, tokens_.pad_id());
    return batch;
  }

  // ---- the calling thread ----

  bool next(Batch& batch) {
    if (!thread_.joinable()) start();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !ready_.empty() || finished_; });
    if (ready_.empty()) {
      if (error_) std::rethrow_exception(error_);
      return false;
    }
    batch = std::move(ready_.front());
    ready_.pop_front();
    sample_in_epoch_ += batch.batch;
    lock.unlock();
    changed_.notify_all();
    return true;
  }

  void stand_at(std::int64_t epoch, std::int64_t sample) {
    stop();
    epoch_ = epoch;
    sample_in_epoch_ = sample;
  }

  // What a position must share with this loader for the rest of its epoch to be the same samples.
  json identity() const {
    return {{"num_canonical_nodes", canonical_nodes_},
            {"shuffle", config_.shuffle.algo != ShuffleAlgo::kNone},
            {"shuffle_algo", shuffle_algo_name(config_.shuffle.algo)},
            {"shuffle_seed", config_.shuffle.seed},
            {"shuffle_block_size", resolve_block_size(config_.shuffle, canonical_nodes_)},
            {"num_samples", num_samples_},
            {"fingerprint", fingerprint_}};
  }

  const TextDatasetConfig config_;
  const std::int64_t batch_size_;
  TokenReader tokens_;
  const std::vector<std::int64_t> shard_sizes_;
  const std::int64_t num_samples_;
  const std::int64_t canonical_nodes_;
  const std::string fingerprint_;
  std::int64_t samples_per_epoch_ = 0;

  std::int64_t epoch_ = 0;
  std::int64_t sample_in_epoch_ = 0;

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> ready_;
  std::exception_ptr error_;
  bool stopping_ = false;
  bool finished_ = false;
};

TextLoader::TextLoader(const TextDatasetConfig& config, const TextLoaderOptions& options)
    : impl_(std::make_unique<Impl>(config, options)) {}
TextLoader::~TextLoader() = default;

void TextLoader::check_files() const {
  const MdsReader& reader = impl_->tokens_.reader();
  for (const MdsShard& shard : reader.index().shards) {
    const std::string path = join_path(reader.folder(), shard.raw.basename);
    const auto damaged = [&](const std::string& what) {
      throw Error(ErrorKind::kDamaged, path + ": " + what,
                  "restore this file, or write the data set again");
    };
    if (!path_exists(path)) damaged("the index names this shard, but it is missing");
    if (is_folder(path)) damaged("the index names this shard, but it is a folder");
    if (::access(path.c_str(), R_OK) != 0) {
      throw Error(ErrorKind::kInvalidArgument, path + ": no right to read this shard");
    }
    const std::uint64_t bytes = file_bytes(path);
    if (bytes != shard.raw.bytes) {
      damaged(fmt::format("{} bytes, but the index says {}", bytes, shard.raw.bytes));
    }
  }
}

bool TextLoader::next(Batch& batch) { return impl_->next(batch); }
void TextLoader::begin_epoch(std::int64_t epoch) { impl_->stand_at(epoch, 0); }

std::int64_t TextLoader::epoch() const { return impl_->epoch_; }
std::int64_t TextLoader::sample_in_epoch() const { return impl_->sample_in_epoch_; }
std::int64_t TextLoader::num_samples() const { return impl_->num_samples_; }
std::int64_t TextLoader::samples_per_epoch() const { return impl_->samples_per_epoch_; }
std::int64_t TextLoader::batches_per_epoch() const {
  const std::int64_t rounding = impl_->config_.drop_last ? 0 : impl_->batch_size_ - 1;
  return (impl_->samples_per_epoch_ + rounding) / impl_->batch_size_;
}

json TextLoader::record_position() const {
  json position = impl_->identity();
  position["epoch"] = impl_->epoch_;
  position["sample_in_epoch"] = impl_->sample_in_epoch_;
  return position;
}

void TextLoader::reload_position(const json& position) {
  const auto number = [&](const char* key) {
    if (!position.is_object() || !position.contains(key) || !position[key].is_number_integer() ||
        position[key] < 0) {
      throw Error(ErrorKind::kDamaged,
                  fmt::format("the stored data position has no valid '{}'", key));
    }
    return position[key].get<std::int64_t>();
  };
  const std::int64_t epoch = number("epoch"), sample = number("sample_in_epoch");
  const json identity = impl_->identity();
  for (const auto& [key, value] : identity.items()) {
    const json stored = position.contains(key) ? position[key] : json();
    if (stored != value) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("cannot resume the data where it stopped: {} was {}, and is now {}",
                              key, stored.dump(), value.dump()),
                  "use the data set and the shuffle settings of the run that wrote the checkpoint");
    }
  }
  if (sample > impl_->samples_per_epoch_) {
    throw Error(ErrorKind::kDamaged,
                fmt::format("the stored data position is sample {} of an epoch of {}", sample,
                            impl_->samples_per_epoch_));
  }
  impl_->stand_at(epoch, sample);
}

}  // namespace dropless::train
