#include "train/data/epoch_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "dropless/error.h"
#include "train/data/order_size.h"
#include "train/data/resample.h"
#include "train/data/rng.h"

namespace dropless::train {
namespace {

using Counts = std::vector<std::int64_t>;

[[noreturn]] void refuse(const std::string& what, const std::string& hint = {}) {
  throw Error(ErrorKind::kInvalidArgument, what, hint);
}

template <class Value, std::size_t kCount>
Value parse_name(const char* key, const std::string& name,
                 const std::pair<const char*, Value> (&known)[kCount]) {
  std::vector<std::string> names;
  for (const auto& [word, value] : known) {
    if (name == word) return value;
    names.emplace_back(word);
  }
  refuse(fmt::format("unknown {} '{}'", key, name),
         fmt::format("one of: {}", fmt::join(names, ", ")));
}

constexpr std::pair<const char*, BatchingMethod> kBatching[] = {
    {"random", BatchingMethod::kRandom},
    {"stratified", BatchingMethod::kStratified},
    {"per_stream", BatchingMethod::kPerStream},
    {"device_per_stream", BatchingMethod::kDevicePerStream}};
constexpr std::pair<const char*, SamplingMethod> kSampling[] = {
    {"balanced", SamplingMethod::kBalanced}, {"fixed", SamplingMethod::kFixed}};
constexpr std::pair<const char*, PartitionAlgo> kPartitions[] = {
    {"relaxed", PartitionAlgo::kRelaxed}, {"orig", PartitionAlgo::kOrig}};

std::int64_t sum(std::span<const std::int64_t> values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

// Id: std::int32_t where all sample ids and positions fit, else std::int64_t.
template <class Id>
class Planner {
  using Ids = std::vector<Id>;

 public:
  Planner(const EpochConfig& config, std::span<const EpochStream> streams, const World& world,
          std::int64_t epoch)
      : config_(config),
        streams_(streams),
        world_(world),
        epoch_(epoch),
        shuffles_(config.shuffle.algo != ShuffleAlgo::kNone),
        canonical_(resolve_canonical_nodes(config.shuffle, world.nodes)),
        shares_(share_epoch(streams, config.epoch_size, config.shuffle.seed)) {
    if (config.sampling_granularity <= 0) {
      refuse(fmt::format("a sampling granularity of {}", config.sampling_granularity));
    }
    if (canonical_ <= 0) refuse(fmt::format("num_canonical_nodes is {}", canonical_));
    block_size_ = resolve_block_size(config.shuffle, canonical_);
    std::int64_t first = 0;
    for (const EpochStream& stream : streams) {
      first_ids_.push_back(first);
      first += sum(stream.shard_sizes);
    }
  }

  Partition<Id> plan(std::int64_t sample_in_epoch) const {
    switch (config_.batching) {
      case BatchingMethod::kRandom:
        return random(sample_in_epoch);
      case BatchingMethod::kStratified:
        return finish(stratified(), sample_in_epoch);
      case BatchingMethod::kPerStream:
        return finish(per_stream(), sample_in_epoch);
      case BatchingMethod::kDevicePerStream:
        return finish(device_per_stream(), sample_in_epoch);
    }
    throw Error(ErrorKind::kInternal, "unknown batching method");
  }

 private:
  std::uint64_t seed(bool of_epoch) const {
    return static_cast<std::uint64_t>(config_.shuffle.seed + (of_epoch ? epoch_ : 0));
  }
  bool seed_changes() const { return shuffles_ && config_.sampling == SamplingMethod::kBalanced; }
  std::int64_t global_batch() const {
    return world_.nodes * world_.ranks_per_node * world_.batch_size;
  }

  void resample(std::size_t stream, NumpyRng& rng, Resampled<Id>& out) const {
    const Counts& sizes = streams_[stream].shard_sizes;
    const Counts chosen = choose_per_shard<Id>(sizes, shares_.choose[stream],
                                               config_.sampling_granularity, seed(seed_changes()));
    std::int64_t first = first_ids_[stream];
    for (std::size_t i = 0; i < sizes.size(); first += sizes[i], ++i) {
      if (sizes[i] == 0) continue;
      for (std::int64_t repeat = 0; repeat < chosen[i] / sizes[i]; ++repeat) {
        out.add_unit(first, sizes[i]);
      }
      const std::int64_t part = chosen[i] % sizes[i];
      if (part == 0) continue;
      Counts picked = rng.choice(sizes[i], part);
      std::sort(picked.begin(), picked.end());
      out.add_unit(first, picked);
    }
  }

  NumpyRng resampling_rng() const {
    return NumpyRng(seed(config_.sampling == SamplingMethod::kBalanced));
  }

  // Which position of the resampled ids stands at each of the epoch's; empty: its own.
  Ids shuffle(const Resampled<Id>& resampled, std::int64_t block_size) const {
    if (!shuffles_) return {};
    return shuffle_ids<Id>(config_.shuffle.algo, resampled.units(), canonical_,
                           config_.shuffle.seed, epoch_, block_size);
  }

  // positions -> sample ids, through the shuffle and the resampling.
  static void place(Ids& positions, const Resampled<Id>& resampled, const Ids& shuffled) {
    for (Id& id : positions) {
      if (id < 0) continue;
      if (!shuffled.empty()) id = shuffled[static_cast<std::size_t>(id)];
      id = static_cast<Id>(resampled[static_cast<std::size_t>(id)]);
    }
  }

  Partition<Id> random(std::int64_t sample_in_epoch) const {
    Resampled<Id> all;
    NumpyRng rng = resampling_rng();
    for (std::size_t i = 0; i < streams_.size(); ++i) resample(i, rng, all);
    if (all.size() == 0) refuse("the streams give no samples");
    // Only where a part is taken of a stream with an empty shard; the package fails there too.
    if (static_cast<std::int64_t>(all.size()) < shares_.epoch_size) {
      refuse(fmt::format("the streams give {} samples of an epoch of {}", all.size(),
                         shares_.epoch_size),
             "write the set without empty shards: raise its size limit");
    }
    // Shuffled first: that needs memory for a while, in which there are no positions yet.
    const Ids shuffled = shuffle(all, block_size_);
    auto out = partition_epoch<Id>(config_.partition, shares_.epoch_size, canonical_, world_,
                                   sample_in_epoch, config_.initial_nodes);
    place(out.ids_PRWNB, all, shuffled);
    return out;
  }

  // One stream alone, in the order of traversal over `world`.
  Ids stream_traversal(std::size_t stream, const World& world, bool needs_block) const {
    Resampled<Id> own;
    NumpyRng rng = resampling_rng();
    resample(stream, rng, own);
    if (own.size() == 0) refuse(fmt::format("stream {} gives no samples", stream));
    auto partition = partition_epoch<Id>(config_.partition, static_cast<std::int64_t>(own.size()),
                                         canonical_, world, 0, config_.initial_nodes);
    const std::int64_t block =
        static_cast<std::int64_t>(static_cast<double>(block_size_) * shares_.proportion[stream]);
    if (needs_block && shuffles_ && block == 0) {
      refuse(fmt::format("stream {} gets no part of a shuffle block of {}", stream, block_size_),
             "raise shuffle_block_size, or the stream's proportion");
    }
    place(partition.ids_PRWNB, own, shuffle(own, block));
    return traversal(partition, world);
  }

  // Rows of `width` that have no gaps: as many as there are, from the front.
  static Ids full_rows(Ids ids, std::int64_t width) {
    const std::size_t row = static_cast<std::size_t>(width);
    std::size_t full = 0;
    for (std::size_t at = 0; at + row <= ids.size(); at += row) {
      const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(at);
      if (*std::min_element(begin, begin + width) >= 0) ++full;
    }
    ids.resize(full * row);
    return ids;
  }

  // How many samples of each stream are in every global batch.
  Counts batch_portions() const {
    const std::int64_t batch = global_batch();
    Counts portions;
    std::vector<double> left;
    for (const double proportion : shares_.proportion) {
      const double exact = static_cast<double>(batch) * proportion;
      portions.push_back(static_cast<std::int64_t>(proportion * static_cast<double>(batch)));
      left.push_back(exact - static_cast<double>(portions.back()));
    }
    std::vector<std::size_t> order(portions.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return left[a] < left[b]; });
    std::reverse(order.begin(), order.end());
    const std::int64_t missing = batch - sum(portions);
    for (std::size_t i = 0; i < order.size() && static_cast<std::int64_t>(i) < missing; ++i) {
      ++portions[order[i]];
    }
    for (std::size_t i = 0; i < portions.size(); ++i) {
      if (portions[i] > 0) continue;
      refuse(fmt::format("stream {} gives no sample to a global batch of {}", i, batch),
             "raise the batch size or the stream's proportion");
    }
    return portions;
  }

  Ids stratified() const {
    World world = world_;
    world.nodes = 1;
    world.batch_size = 1;
    const Counts portions = batch_portions();
    std::vector<Ids> parts;
    std::int64_t batches = std::numeric_limits<std::int64_t>::max();
    for (std::size_t i = 0; i < streams_.size(); ++i) {
      parts.push_back(full_rows(stream_traversal(i, world, false), portions[i]));
      batches = std::min(batches, static_cast<std::int64_t>(parts.back().size()) / portions[i]);
    }
    Ids out;
    for (std::int64_t batch = 0; batch < batches; ++batch) {
      for (std::size_t i = 0; i < parts.size(); ++i) {
        const auto begin = parts[i].begin() + batch * portions[i];
        out.insert(out.end(), begin, begin + portions[i]);
      }
    }
    return out;
  }

  // Rows of `width` of several streams, in random order; each stream's stay in theirs.
  static Ids mix_rows(const std::vector<Ids>& rows, std::int64_t width, NumpyRng& rng) {
    Counts origins;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      origins.insert(origins.end(), rows[i].size() / static_cast<std::size_t>(width),
                     static_cast<std::int64_t>(i));
    }
    rng.shuffle(std::span(origins));
    std::vector<std::size_t> next(rows.size());
    Ids out;
    for (const std::int64_t origin : origins) {
      const std::size_t stream = static_cast<std::size_t>(origin);
      const auto begin = rows[stream].begin() + static_cast<std::ptrdiff_t>(next[stream]);
      out.insert(out.end(), begin, begin + width);
      next[stream] += static_cast<std::size_t>(width);
    }
    return out;
  }

  Ids per_stream() const {
    std::vector<Ids> rows;
    for (std::size_t i = 0; i < streams_.size(); ++i) {
      rows.push_back(full_rows(stream_traversal(i, world_, false), global_batch()));
      if (rows.back().empty()) {
        refuse(fmt::format("stream {} does not fill one global batch of {}", i, global_batch()),
               "lower the batch size or give the stream more samples");
      }
    }
    NumpyRng rng(seed(seed_changes()));
    return mix_rows(rows, global_batch(), rng);
  }

  Ids device_per_stream() const {
    if (canonical_ % world_.nodes != 0) {
      refuse(fmt::format("device_per_stream: {} canonical nodes are no multiple of {} nodes",
                         canonical_, world_.nodes),
             "choose num_canonical_nodes as a multiple of the nodes");
    }
    World world = world_;
    world.nodes = canonical_;
    world.batch_size = 1;
    const std::int64_t batch = world_.batch_size;
    const std::size_t nodes = static_cast<std::size_t>(world_.nodes);
    std::vector<std::vector<Ids>> rows(nodes);  // of each node, of each stream
    for (std::size_t i = 0; i < streams_.size(); ++i) {
      // Traversal is (batch, worker, node, rank): a run of ranks a canonical node.
      const Ids ids = stream_traversal(i, world, true);
      std::vector<Ids> own(nodes);
      const std::int64_t run = world.ranks_per_node * canonical_ / world_.nodes;
      for (std::size_t at = 0; at < ids.size(); ++at) {
        own[at / static_cast<std::size_t>(run) % nodes].push_back(ids[at]);
      }
      for (std::size_t node = 0; node < nodes; ++node) {
        rows[node].push_back(full_rows(std::move(own[node]), batch));
        if (rows[node].back().empty()) {
          refuse(fmt::format("stream {} does not fill one batch of {} on node {}", i, batch, node),
                 "lower the batch size or give the stream more samples");
        }
      }
    }
    NumpyRng rng(seed(seed_changes()));
    std::vector<Ids> mixed;
    std::size_t longest = 0;
    for (std::size_t node = 0; node < nodes; ++node) {
      mixed.push_back(mix_rows(rows[node], batch, rng));
      longest = std::max(longest, mixed.back().size() / static_cast<std::size_t>(batch));
    }
    // As the package: up to a multiple of the ranks, and by all of them where it is one.
    const std::size_t ranks = nodes * static_cast<std::size_t>(world_.ranks_per_node);
    longest += ranks - longest % ranks;
    Ids out;
    for (std::size_t row = 0; row < longest; ++row) {
      for (const Ids& ids : mixed) {
        const std::size_t at = row * static_cast<std::size_t>(batch);
        for (std::size_t k = at; k < at + static_cast<std::size_t>(batch); ++k) {
          out.push_back(k < ids.size() ? ids[k] : -1);
        }
      }
    }
    return out;
  }

  // Global batches -> the workers' share, from the batch in which `sample_in_epoch` lies.
  Partition<Id> finish(Ids batches, std::int64_t sample_in_epoch) const {
    const std::int64_t drop = sample_in_epoch / global_batch() * global_batch();
    const std::int64_t size = static_cast<std::int64_t>(batches.size());
    batches.erase(batches.begin(), batches.begin() + std::min(drop, size));
    const std::int64_t turn = global_batch() * world_.workers_per_rank;
    const std::int64_t left = static_cast<std::int64_t>(batches.size()) % turn;
    if (left != 0) batches.resize(batches.size() + static_cast<std::size_t>(turn - left), -1);
    return from_traversal(batches, world_);
  }

  const EpochConfig& config_;
  std::span<const EpochStream> streams_;
  const World world_;
  const std::int64_t epoch_;
  const bool shuffles_;
  const std::int64_t canonical_;
  std::int64_t block_size_ = 0;
  const StreamShares shares_;
  Counts first_ids_;  // of each stream
};

std::int64_t count_samples(std::span<const EpochStream> streams) {
  std::int64_t samples = 0;
  for (const EpochStream& stream : streams) samples += sum(stream.shard_sizes);
  return samples;
}

World replicate(World world, std::int64_t replication) {
  const std::int64_t ranks = world.nodes * world.ranks_per_node;
  if (replication <= 0 || ranks % replication != 0) {
    refuse(fmt::format("a replication of {} for {} ranks", replication, ranks),
           "the number of ranks must be a multiple of it");
  }
  const std::int64_t left = ranks / replication;
  world.nodes = left % world.ranks_per_node == 0 ? left / world.ranks_per_node : 1;
  world.ranks_per_node = left / world.nodes;
  return world;
}

}  // namespace

BatchingMethod parse_batching_method(const std::string& name) {
  return parse_name("batching_method", name, kBatching);
}
SamplingMethod parse_sampling_method(const std::string& name) {
  return parse_name("sampling_method", name, kSampling);
}
PartitionAlgo parse_partition_algo(const std::string& name) {
  return parse_name("partition_algo", name, kPartitions);
}
const char* batching_method_name(BatchingMethod method) {
  return kBatching[static_cast<std::size_t>(method)].first;
}
const char* sampling_method_name(SamplingMethod method) {
  return kSampling[static_cast<std::size_t>(method)].first;
}

EpochPlan plan_epoch(const EpochConfig& config, std::span<const EpochStream> streams,
                     const World& world, std::int64_t epoch, std::int64_t sample_in_epoch) {
  if (epoch < 0 || sample_in_epoch < 0) {
    refuse(fmt::format("epoch {}, sample {}", epoch, sample_in_epoch));
  }
  if (world.nodes <= 0 || world.ranks_per_node <= 0 || world.workers_per_rank <= 0 ||
      world.batch_size <= 0) {
    refuse(fmt::format(
        "nodes {}, ranks per node {}, workers {} and batch size {} must all be positive",
        world.nodes, world.ranks_per_node, world.workers_per_rank, world.batch_size));
  }
  check_counts(config, streams, world, epoch, sample_in_epoch);
  EpochPlan out;
  out.world = config.replication ? replicate(world, *config.replication) : world;
  const auto plan = [&]<class Id>(Id) {
    auto partition = Planner<Id>(config, streams, out.world, epoch).plan(sample_in_epoch);
    out.batches = partition.batches;
    out.ids_PRWNB = SampleIds(std::move(partition.ids_PRWNB));
  };
  const std::int64_t epoch_size =
      share_epoch(streams, config.epoch_size, config.shuffle.seed).epoch_size;
  const bool narrow =
      std::max(count_samples(streams), epoch_size) <= std::numeric_limits<std::int32_t>::max();
  check_order_size(config, streams.size(), out.world, epoch_size,
                   narrow ? sizeof(std::int32_t) : sizeof(std::int64_t));
  if (narrow) {
    plan(std::int32_t{});
  } else {
    plan(std::int64_t{});
  }
  return out;
}

SampleIds epoch_order(const EpochConfig& config, std::span<const EpochStream> streams,
                      std::int64_t batch_size, std::int64_t epoch) {
  World world;
  world.batch_size = batch_size;
  SampleIds ids = plan_epoch(config, streams, world, epoch, 0).ids_PRWNB;
  ids.erase_none();
  return ids;
}

}  // namespace dropless::train
