#include "train/data/loader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <thread>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/hash.h"
#include "train/base/log.h"
#include "train/data/finetuning.h"
#include "train/data/token_reader.h"

namespace dropless::train {
namespace {

using nlohmann::json;

std::string in_split(const std::string& root, const std::string& split) {
  return split.empty() ? root : join_path(root, split);
}

// The shards of one stream.
std::shared_ptr<ShardStore> open_store(const StreamConfig& stream,
                                       std::optional<std::uint64_t> cache_limit) {
  ShardStoreOptions options = stream.store;
  options.cache_limit = cache_limit;
  const std::string local = strip_file_scheme(stream.local);
  const std::string remote = strip_file_scheme(stream.remote);
  if (is_url(local)) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("local {} is not on this machine", local),
                "name it as remote, and a folder as local");
  }
  if (is_url(remote)) {
    const std::string cache = local.empty() ? local : in_split(local, stream.split);
    return std::make_shared<ShardStore>(in_split(remote, stream.split), cache, options);
  }
  if (!remote.empty()) {
    const std::string cache = local.empty() ? local : in_split(local, stream.split);
    // What is whole in `local` serves where the remote folder is gone.
    if (!path_exists(remote) && path_exists(join_path(cache, "index.json"))) {
      return std::make_shared<ShardStore>(cache, cache, options);
    }
    return std::make_shared<ShardStore>(split_folder(remote, stream.split), cache, options);
  }
  const std::string folder = split_folder(local, stream.split);
  const bool writable = ::access(folder.c_str(), W_OK) == 0;
  return std::make_shared<ShardStore>(folder, writable ? folder : "", options);
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

// What differs between the two identities, as "KEY was A, and is now B": what the user can have changed; what
// follows from it (blocks and canonical nodes from the algorithm, the batch size from the batching method)
// only where nothing else differs.
std::vector<std::string> changed_keys(const json& stored, const json& now) {
  const auto value = [](const json& map, const std::string& key) {
    if (map.contains(key)) return map[key];
    // One stream that gives each of its samples once.
    if (key == "stream_choose" && map.contains("num_samples"))
      return json::array({map["num_samples"]});
    return key == "batching_method" ? json("random") : json();
  };
  std::vector<std::string> changes;
  const auto differs = [&](const std::string& key, const std::string& shown) {
    const json before = value(stored, key), after = value(now, key);
    if (before == after) return false;
    changes.push_back(fmt::format("{} was {}, and is now {}", shown, before.dump(), after.dump()));
    return true;
  };
  const bool other_set = differs("num_samples", "num_samples") ||
                         differs("stream_samples", "stream_samples") ||
                         differs("fingerprint", "fingerprint");
  differs("shuffle", "shuffle") || differs("shuffle_algo", "shuffle_algo");
  differs("shuffle_seed", "shuffle_seed");
  differs("batching_method", "batching_method");
  if (!other_set) differs("stream_choose", "what epoch_size or the weights of the streams choose");
  for (const char* key : {"sampling_method", "sampling_granularity"}) {
    if (stored.contains(key) && now.contains(key)) differs(key, key);
  }
  json keys = stored;
  keys.update(now);
  for (const char* key : {"num_canonical_nodes", "shuffle_block_size", "batch_size"}) {
    if (changes.empty()) differs(key, key);
  }
  for (const auto& [key, either] : keys.items()) {
    if (changes.empty()) differs(key, key);
  }
  return changes;
}

}  // namespace

// The calling thread owns the position; the reading thread owns tokens_ while it runs, and shares
// only what stands under mutex_.
struct TextLoader::Impl {
  Impl(const TextDatasetConfig& config, const TextLoaderOptions& options)
      : config_(config),
        batch_size_(options.batch_size),
        seq_len_(choose_seq_len(config, options)),
        canonical_nodes_(resolve_canonical_nodes(config.order.shuffle, 1)) {
    open_streams(options);
    if (batch_size_ <= 0)
      throw Error(ErrorKind::kInvalidArgument, fmt::format("a batch size of {}", batch_size_));
    shares_ = share_epoch(streams_, config_.order.epoch_size, config_.order.shuffle.seed);
    if (packs()) batch_size_ = choose_packed_samples(batch_size_);
    if (config_.order.shuffle.algo == ShuffleAlgo::kPy1e && canonical_nodes_ > shares_.epoch_size) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{}: {} samples an epoch, fewer than num_canonical_nodes {}", name_,
                              shares_.epoch_size, canonical_nodes_),
                  "lower num_canonical_nodes");
    }
    if (config_.order.batching == BatchingMethod::kRandom) {
      // One process: the canonical nodes' shares differ by at most one sample, made equal by
      // repeats.
      samples_per_epoch_ =
          (shares_.epoch_size + canonical_nodes_ - 1) / canonical_nodes_ * canonical_nodes_;
    }
    order_an_epoch(0);  // says now what it would refuse then
    if (config_.order.batching != BatchingMethod::kRandom) {
      samples_per_epoch_ = static_cast<std::int64_t>(order_.size());
    }
    if (config_.drop_last && samples_per_epoch_ < batch_size_) {
      const double ratio =
          static_cast<double>(batch_size_) / static_cast<double>(options.batch_size);
      throw Error(
          ErrorKind::kInvalidArgument,
          fmt::format("{} gives {} samples an epoch, and drop_last drops what does not fill a "
                      "batch of {}{}",
                      name_, samples_per_epoch_, batch_size_,
                      packs()
                          ? fmt::format(", packed from {:.1f} samples a row (packing_ratio)", ratio)
                          : ""),
          "lower the batch size or set drop_last: false");
    }
  }

  ~Impl() { stop(); }

  void open_streams(const TextLoaderOptions& options) {
    std::string prints;
    for (const StreamConfig& stream : config_.all_streams()) {
      MdsReader opened(open_store(stream, config_.cache_limit));
      if (config_.finetuning) {
        tokens_.push_back(std::make_unique<FinetuningReader>(std::move(opened), options.tokenizer,
                                                             *config_.finetuning, seq_len_,
                                                             choose_vocab_size(options)));
      } else {
        tokens_.push_back(std::make_unique<TokenReader>(std::move(opened), options.tokenizer,
                                                        config_.token_encoding_type, seq_len_,
                                                        choose_vocab_size(options)));
      }
      const MdsReader& reader = tokens_.back()->reader();
      if (reader.num_samples() == 0) {
        throw Error(ErrorKind::kInvalidArgument,
                    fmt::format("{} holds no samples", reader.folder()));
      }
      streams_.push_back({reader.index().shard_sizes(), stream.weight});
      first_samples_.push_back(num_samples_);
      num_samples_ += reader.num_samples();
      name_ += (name_.empty() ? "" : ", ") + reader.folder();
      prints += reader.fingerprint();
    }
    fingerprint_ = tokens_.size() == 1 ? prints : xxh3_hex(prints);
  }

  std::size_t stream_of(std::int64_t sample) const {
    const auto after = std::upper_bound(first_samples_.begin(), first_samples_.end(), sample);
    return static_cast<std::size_t>(after - first_samples_.begin()) - 1;
  }

  // The order of an epoch is kept until another one's is asked for.
  void order_an_epoch(std::int64_t epoch) {
    if (ordered_epoch_ == epoch) return;
    SampleIds order = epoch_order(config_.order, streams_, batch_size_, epoch);
    const std::lock_guard lock(mutex_);
    order_ = std::move(order);
    ordered_epoch_ = epoch;
  }

  // ---- the threads that bring shards ----

  // The store of the shard that is needed first, of those that are to be made now.
  ShardStore* find_first_missing() const {
    ShardStore* first = nullptr;
    std::uint64_t place = 0;
    for (const auto& tokens : tokens_) {
      ShardStore& store = tokens->reader().store();
      const auto next = store.next_ahead();
      if (!next || (first != nullptr && *next >= place)) continue;
      first = &store;
      place = *next;
    }
    return first;
  }

  void make_shards_ahead() {
    std::unique_lock lock(mutex_);
    while (!stopping_ && !finished_) {
      const std::uint64_t seen = advances_;
      lock.unlock();
      ShardStore* store = find_first_missing();
      const bool made = store != nullptr && store->make_next();
      lock.lock();
      if (made) continue;
      // Where something was missing, there may be room when samples have been read.
      advanced_.wait(lock, [&] { return stopping_ || finished_ || advances_ != seen; });
    }
  }

  // Called before the sample at `place` is read: tells the stores of those that follow.
  void look_ahead(std::size_t place) {
    const auto reach = static_cast<std::size_t>(config_.predownload.value_or(8 * batch_size_));
    for (; known_ < order_.size() && known_ - place < reach; ++known_) {
      const std::size_t stream = stream_of(order_[known_]);
      const MdsReader& reader = tokens_[stream]->reader();
      reader.store().expect(reader.shard_of(order_[known_] - first_samples_[stream]), known_);
    }
    tokens_[stream_of(order_[place])]->reader().store().pass(place);
    {
      const std::lock_guard lock(mutex_);
      ++advances_;
    }
    // Most samples need nothing new: then nobody is woken.
    if (find_first_missing() != nullptr) advanced_.notify_all();
  }

  // Of one batch.
  void warn_of_small_caches(std::span<const std::int64_t> samples) {
    std::vector<std::set<std::size_t>> shards(tokens_.size());
    for (const std::int64_t sample : samples) {
      const std::size_t stream = stream_of(sample);
      shards[stream].insert(tokens_[stream]->reader().shard_of(sample - first_samples_[stream]));
    }
    for (std::size_t stream = 0; stream < tokens_.size(); ++stream) {
      tokens_[stream]->reader().store().warn_if_short(shards[stream]);
    }
  }

  bool brings_shards() const {
    return std::any_of(tokens_.begin(), tokens_.end(),
                       [](const auto& tokens) { return tokens->reader().store().makes_shards(); });
  }

  // ---- the reading thread ----

  void start() {
    stopping_ = finished_ = false;
    error_ = nullptr;
    ready_.clear();
    brings_ = brings_shards();
    for (const auto& tokens : tokens_) tokens->reader().store().resume();
    thread_ =
        std::thread([this, epoch = epoch_, from = sample_in_epoch_] { read_epoch(epoch, from); });
    constexpr int kMakers = 4;  // they wait for disks and networks more than they compute
    for (int i = 0; brings_ && i < kMakers; ++i) {
      makers_.emplace_back([this] { make_shards_ahead(); });
    }
  }

  void stop() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    advanced_.notify_all();
    for (const auto& tokens : tokens_) tokens->reader().store().cancel();
    thread_.join();
    for (std::thread& maker : makers_) maker.join();
    makers_.clear();
  }

  void read_epoch(std::int64_t epoch, std::int64_t from) {
    std::exception_ptr error;
    try {
      // One process: to leave out samples is to leave out the front. The partition's own drop
      // refuses to go beyond N + 1, though an epoch with repeats is longer.
      order_an_epoch(epoch);
      std::size_t at = static_cast<std::size_t>(from);
      known_ = at;
      std::int64_t left =
          std::max<std::int64_t>(static_cast<std::int64_t>(order_.size()) - from, 0);
      if (brings_) warn_of_small_caches(order_.slice(at, static_cast<std::size_t>(batch_size_)));
      while (left > 0 && !(config_.drop_last && left < batch_size_)) {
        const std::int64_t rows = std::min(left, batch_size_);
        Batch batch = read_batch(order_.slice(at, static_cast<std::size_t>(rows)), at);
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
      for (const auto& tokens : tokens_) tokens->report_lost();
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    finished_ = true;
    error_ = error;
    changed_.notify_all();
    advanced_.notify_all();
  }

  // The samples' tokens one after another, and how many each has. `place`: where they begin in the
  // order that is being read; else nothing is brought ahead.
  std::vector<std::int64_t> read_samples(std::span<const std::int64_t> samples, TokenRow& tokens,
                                         std::optional<std::size_t> place = std::nullopt) {
    std::vector<std::int64_t> lengths;
    for (const std::int64_t sample : samples) {
      if (place && brings_) look_ahead((*place)++);
      const std::size_t begin = tokens.ids.size(), stream = stream_of(sample);
      tokens_[stream]->append(sample - first_samples_[stream], tokens);
      lengths.push_back(static_cast<std::int64_t>(tokens.ids.size() - begin));
    }
    return lengths;
  }

  Batch read_batch(std::span<const std::int64_t> samples, std::size_t place) {
    TokenRow tokens;
    const std::vector<std::int64_t> lengths = read_samples(samples, tokens, place);
    Batch batch;
    batch.samples = std::ssize(samples);
    batch.separator = config_.separator;
    batch.tokens = std::ssize(tokens.ids);
    if (packs()) {
      pack(tokens, lengths, batch);
    } else {
      batch.tokens_BS = std::move(tokens.ids);
      batch.learned_BS = std::move(tokens.learned);
      batch.lengths_B.assign(lengths.begin(), lengths.end());
    }
    batch.batch = std::ssize(batch.lengths_B);
    batch.seq_len = *std::max_element(batch.lengths_B.begin(), batch.lengths_B.end());
    pad_rows(batch, tokens_[0]->pad_id());
    return batch;
  }

  // ---- packing ----

  bool packs() const { return config_.finetuning && config_.finetuning->packs; }

  void pack(const TokenRow& tokens, const std::vector<std::int64_t>& lengths, Batch& batch) const {
    std::vector<std::int64_t> begins(lengths.size());
    std::exclusive_scan(lengths.begin(), lengths.end(), begins.begin(), std::int64_t{0});
    for (const std::vector<std::size_t>& row : pack_rows(lengths, seq_len_)) {
      std::int32_t document = 0, length = 0;
      for (const std::size_t sample : row) {
        const auto begin = static_cast<std::ptrdiff_t>(begins[sample]);
        const auto end = begin + static_cast<std::ptrdiff_t>(lengths[sample]);
        batch.tokens_BS.insert(batch.tokens_BS.end(), tokens.ids.begin() + begin,
                               tokens.ids.begin() + end);
        batch.learned_BS.insert(batch.learned_BS.end(), tokens.learned.begin() + begin,
                                tokens.learned.begin() + end);
        batch.documents_BS.resize(batch.tokens_BS.size(), document++);
        length += static_cast<std::int32_t>(lengths[sample]);
      }
      batch.lengths_B.push_back(length);
    }
  }

  // Samples that make about `rows` rows: by the ratio given; else the most, of the first thousand of
  // the first epoch, that go into as many rows in proportion.
  std::int64_t choose_packed_samples(std::int64_t rows) {
    if (config_.finetuning->packing_ratio) {
      return static_cast<std::int64_t>(*config_.finetuning->packing_ratio *
                                       static_cast<double>(rows));
    }
    constexpr std::size_t kLookedAt = 1000;
    const std::vector<std::int64_t> order =
        epoch_order(config_.order, streams_, rows, 0).slice(0, kLookedAt);
    TokenRow tokens;
    const std::vector<std::int64_t> lengths = read_samples(order, tokens);
    for (const auto& stream : tokens_) stream->forget_lost();
    // The last row is what was left over.
    auto packed = pack_rows(lengths, seq_len_);
    if (packed.empty()) return rows;
    auto count = std::ssize(order);
    if (packed.size() > 1) {
      count -= std::ssize(packed.back());
      packed.pop_back();
    }
    return std::max(rows, count * rows / std::ssize(packed));
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
    sample_in_epoch_ += batch.samples;
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
    const ShuffleConfig& shuffle = config_.order.shuffle;
    json out = {{"num_canonical_nodes", canonical_nodes_},
                {"shuffle", shuffle.algo != ShuffleAlgo::kNone},
                {"shuffle_algo", shuffle_algo_name(shuffle.algo)},
                {"shuffle_seed", shuffle.seed},
                {"shuffle_block_size", resolve_block_size(shuffle, canonical_nodes_)},
                {"num_samples", num_samples_},
                {"fingerprint", fingerprint_}};
    const EpochConfig& order = config_.order;
    if (order.batching != BatchingMethod::kRandom) {
      out["batching_method"] = batching_method_name(order.batching);
      out["batch_size"] = batch_size_;  // it decides the order of these methods
    }
    if (tokens_.size() > 1) {
      std::vector<std::int64_t> sizes;
      for (const auto& tokens : tokens_) sizes.push_back(tokens->reader().num_samples());
      out["stream_samples"] = sizes;
    }
    if (tokens_.size() > 1 || shares_.epoch_size != num_samples_) {
      out["stream_choose"] = shares_.choose;
      out["sampling_method"] = sampling_method_name(order.sampling);
      out["sampling_granularity"] = order.sampling_granularity;
    }
    return out;
  }

  const TextDatasetConfig config_;
  std::int64_t batch_size_;  // samples; where they are packed, more than rows
  const std::int64_t seq_len_;
  const std::int64_t canonical_nodes_;
  std::vector<std::unique_ptr<SampleReader>> tokens_;  // one a stream, and so are the next two
  std::vector<EpochStream> streams_;
  std::vector<std::int64_t> first_samples_;
  std::int64_t num_samples_ = 0;
  StreamShares shares_;
  std::string fingerprint_, name_;
  std::int64_t samples_per_epoch_ = 0;

  std::int64_t epoch_ = 0;
  std::int64_t sample_in_epoch_ = 0;

  std::thread thread_;
  std::vector<std::thread> makers_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable advanced_;  // for the threads that bring shards
  std::uint64_t advances_ = 0;        // samples that the reading thread came to
  std::deque<Batch> ready_;
  std::exception_ptr error_;
  SampleIds order_;  // of ordered_epoch_; set by the reading thread, under mutex_
  std::optional<std::int64_t> ordered_epoch_;
  std::size_t known_ = 0;  // the reading thread's: places below it are told to the stores
  bool brings_ = false;    // set before the threads start
  bool stopping_ = false;
  bool finished_ = false;
};

TextLoader::TextLoader(const TextDatasetConfig& config, const TextLoaderOptions& options)
    : impl_(std::make_unique<Impl>(config, options)) {}
TextLoader::~TextLoader() = default;

void TextLoader::check_files() const {
  for (const auto& tokens : impl_->tokens_) tokens->reader().store().check_files();
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
  json stored = position;
  for (const char* key : {"epoch", "sample_in_epoch"}) stored.erase(key);
  if (const auto changes = changed_keys(stored, impl_->identity()); !changes.empty()) {
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("cannot resume the data where it stopped: {}", fmt::join(changes, "; ")),
        "use the data set and the shuffle settings of the run that wrote the checkpoint");
  }
  if (sample > impl_->samples_per_epoch_) {
    throw Error(ErrorKind::kDamaged,
                fmt::format("the stored data position is sample {} of an epoch of {}", sample,
                            impl_->samples_per_epoch_));
  }
  impl_->stand_at(epoch, sample);
}

}  // namespace dropless::train
