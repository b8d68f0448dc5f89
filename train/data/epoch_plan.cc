#include "train/data/epoch_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "dropless/error.h"
#include "train/data/rng.h"

namespace dropless::train {
namespace {

using Ids = std::vector<std::int64_t>;

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

// numpy's sum of doubles: in pairs of halves, each by eight running sums.
double pairwise_sum(std::span<const double> values) {
  const std::size_t n = values.size();
  if (n < 8) return std::accumulate(values.begin(), values.end(), 0.0);
  if (n > 128) {
    const std::size_t half = n / 2 - n / 2 % 8;
    return pairwise_sum(values.first(half)) + pairwise_sum(values.subspan(half));
  }
  std::array<double, 8> r;
  std::copy_n(values.begin(), 8, r.begin());
  std::size_t i = 8;
  for (; i < n - n % 8; i += 8) {
    for (std::size_t k = 0; k < 8; ++k) r[k] += values[i + k];
  }
  double total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
  for (; i < n; ++i) total += values[i];
  return total;
}

// ---- weights ----

bool check_weights(std::span<const EpochStream> streams) {
  if (streams.empty()) refuse("no streams");
  const bool relative = streams[0].weight.proportion.has_value();
  for (std::size_t i = 0; i < streams.size(); ++i) {
    const StreamWeight& weight = streams[i].weight;
    const auto fail = [&](const std::string& what) {
      refuse(fmt::format("stream {}: {}", i, what));
    };
    if (weight.proportion.has_value() + weight.repeat.has_value() + weight.choose.has_value() > 1) {
      fail("more than one of proportion, repeat and choose");
    }
    if (weight.proportion.has_value() != relative) {
      fail("proportion does not go with streams that have another weight or none");
    }
    for (const double value : {weight.proportion.value_or(0), weight.repeat.value_or(0),
                               static_cast<double>(weight.choose.value_or(0))}) {
      if (!(value >= 0) || !std::isfinite(value)) fail(fmt::format("a weight of {}", value));
    }
    if (std::any_of(streams[i].shard_sizes.begin(), streams[i].shard_sizes.end(),
                    [](std::int64_t size) { return size < 0; })) {
      fail("a shard of negative size");
    }
    if (sum(streams[i].shard_sizes) == 0) fail("it holds no samples");
  }
  return relative;
}

// The epoch's samples over the streams by weight; what truncation leaves goes to random ones.
void share_by_proportion(StreamShares& shares, std::int64_t seed) {
  const double total = pairwise_sum(shares.proportion);
  if (!(total > 0)) refuse("the proportions of all streams are 0");
  for (double& proportion : shares.proportion) {
    proportion /= total;
    shares.choose.push_back(
        static_cast<std::int64_t>(static_cast<double>(shares.epoch_size) * proportion));
  }
  const std::int64_t shortfall = shares.epoch_size - sum(shares.choose);
  const std::int64_t count = static_cast<std::int64_t>(shares.choose.size());
  if (shortfall < 0 || shortfall > count) {
    refuse(fmt::format("an epoch of {} samples cannot be shared by these proportions",
                       shares.epoch_size));
  }
  NumpyRng rng(static_cast<std::uint64_t>(seed));
  for (const std::int64_t stream : rng.choice(count, shortfall)) {
    ++shares.choose[static_cast<std::size_t>(stream)];
  }
}

// ---- resampling ----

// The samples of one or more streams that are in an epoch.
struct Resampled {
  Ids units;  // sizes of what is shuffled as one: whole shards, and the rest of each
  Ids ids;    // sample ids, in the order of the units
};

// How many samples of each shard, for `choose` of the stream in all.
Ids choose_per_shard(const Ids& shard_sizes, std::int64_t choose, std::int64_t granularity,
                     std::uint64_t seed) {
  const std::int64_t total = sum(shard_sizes);
  Ids chosen(shard_sizes.size());
  for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i] = shard_sizes[i] * (choose / total);
  choose %= total;
  if (choose == 0) return chosen;
  Ids pick_shards, pick_sizes;
  std::vector<std::size_t> last_picks;
  for (std::size_t i = 0; i < shard_sizes.size(); ++i) {
    const std::int64_t picks = (shard_sizes[i] + granularity - 1) / granularity;
    pick_shards.insert(pick_shards.end(), static_cast<std::size_t>(picks),
                       static_cast<std::int64_t>(i));
    last_picks.push_back(pick_shards.size() - 1);
  }
  pick_sizes.assign(pick_shards.size(), granularity);
  for (std::size_t i = 0; i < shard_sizes.size(); ++i) {
    const std::int64_t picks = (shard_sizes[i] + granularity - 1) / granularity;
    // An empty shard has no last pick: the package then sets that of the shard before it (of the
    // last shard, if it is the first), and so must we.
    const std::size_t last =
        last_picks[i] < pick_sizes.size() ? last_picks[i] : pick_sizes.size() - 1;
    pick_sizes[last] = shard_sizes[i] - (picks - 1) * granularity;
  }
  NumpyRng rng(seed);
  for (const std::int64_t pick : rng.permutation(static_cast<std::int64_t>(pick_shards.size()))) {
    const std::int64_t size = std::min(choose, pick_sizes[static_cast<std::size_t>(pick)]);
    chosen[static_cast<std::size_t>(pick_shards[static_cast<std::size_t>(pick)])] += size;
    choose -= size;
    if (choose == 0) break;
  }
  return chosen;
}

class Planner {
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

  Partition plan(std::int64_t sample_in_epoch) const {
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

  void resample(std::size_t stream, NumpyRng& rng, Resampled& out) const {
    const Ids& sizes = streams_[stream].shard_sizes;
    const Ids chosen = choose_per_shard(sizes, shares_.choose[stream], config_.sampling_granularity,
                                        seed(seed_changes()));
    std::int64_t first = first_ids_[stream];
    for (std::size_t i = 0; i < sizes.size(); first += sizes[i], ++i) {
      if (sizes[i] == 0) continue;
      for (std::int64_t repeat = 0; repeat < chosen[i] / sizes[i]; ++repeat) {
        out.units.push_back(sizes[i]);
        for (std::int64_t id = 0; id < sizes[i]; ++id) out.ids.push_back(first + id);
      }
      const std::int64_t part = chosen[i] % sizes[i];
      if (part == 0) continue;
      out.units.push_back(part);
      Ids picked = rng.choice(sizes[i], part);
      std::sort(picked.begin(), picked.end());
      for (const std::int64_t id : picked) out.ids.push_back(first + id);
    }
  }

  NumpyRng resampling_rng() const {
    return NumpyRng(seed(config_.sampling == SamplingMethod::kBalanced));
  }

  // positions -> sample ids, through the shuffle and the resampling.
  void place(Ids& positions, const Resampled& resampled, std::int64_t block_size) const {
    Ids shuffled;
    if (shuffles_) {
      shuffled = shuffle_ids(config_.shuffle.algo, resampled.units, canonical_,
                             config_.shuffle.seed, epoch_, block_size);
    }
    for (std::int64_t& id : positions) {
      if (id < 0) continue;
      if (shuffles_) id = shuffled[static_cast<std::size_t>(id)];
      id = resampled.ids[static_cast<std::size_t>(id)];
    }
  }

  Partition random(std::int64_t sample_in_epoch) const {
    Resampled all;
    NumpyRng rng = resampling_rng();
    for (std::size_t i = 0; i < streams_.size(); ++i) resample(i, rng, all);
    if (all.ids.empty()) refuse("the streams give no samples");
    // Only where a part is taken of a stream with an empty shard; the package fails there too.
    if (static_cast<std::int64_t>(all.ids.size()) < shares_.epoch_size) {
      refuse(fmt::format("the streams give {} samples of an epoch of {}", all.ids.size(),
                         shares_.epoch_size),
             "write the set without empty shards: raise its size limit");
    }
    Partition out = partition_epoch(config_.partition, shares_.epoch_size, canonical_, world_,
                                    sample_in_epoch, config_.initial_nodes);
    place(out.ids_PRWNB, all, block_size_);
    return out;
  }

  // One stream alone, in the order of traversal over `world`.
  Ids stream_traversal(std::size_t stream, const World& world, bool needs_block) const {
    Resampled own;
    NumpyRng rng = resampling_rng();
    resample(stream, rng, own);
    if (own.ids.empty()) refuse(fmt::format("stream {} gives no samples", stream));
    Partition partition =
        partition_epoch(config_.partition, static_cast<std::int64_t>(own.ids.size()), canonical_,
                        world, 0, config_.initial_nodes);
    const std::int64_t block =
        static_cast<std::int64_t>(static_cast<double>(block_size_) * shares_.proportion[stream]);
    if (needs_block && shuffles_ && block == 0) {
      refuse(fmt::format("stream {} gets no part of a shuffle block of {}", stream, block_size_),
             "raise shuffle_block_size, or the stream's proportion");
    }
    place(partition.ids_PRWNB, own, block);
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
  Ids batch_portions() const {
    const std::int64_t batch = global_batch();
    Ids portions;
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
    const Ids portions = batch_portions();
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
    Ids origins;
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
  Partition finish(Ids batches, std::int64_t sample_in_epoch) const {
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
  Ids first_ids_;  // of each stream
};

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

std::int64_t parse_sample_count(const std::string& text) {
  constexpr std::string_view kUnits = "kmbt";
  std::string digits = text;
  double unit = 1;
  if (!digits.empty()) {
    const char last = static_cast<char>(std::tolower(static_cast<unsigned char>(digits.back())));
    if (const std::size_t which = kUnits.find(last); which != std::string_view::npos) {
      unit = std::pow(1000.0, static_cast<double>(which + 1));
      digits.pop_back();
    }
  }
  const std::size_t point = digits.find('.');
  std::string whole = digits;
  if (point != std::string::npos && unit > 1) whole.erase(point, 1);
  if (whole.empty() || whole.find_first_not_of("0123456789") != std::string::npos) {
    refuse(fmt::format("'{}' is not a number of samples", text), "write 1000, 10k, 1.5m or 2b");
  }
  const double value = std::strtod(digits.c_str(), nullptr) * unit;
  if (value >= 0x1p53) refuse(fmt::format("'{}' samples are too many", text));
  return static_cast<std::int64_t>(value);
}

StreamShares share_epoch(std::span<const EpochStream> streams,
                         std::optional<std::int64_t> epoch_size, std::int64_t seed) {
  if (seed < 0) refuse(fmt::format("a shuffle seed of {}", seed));
  if (epoch_size && *epoch_size < 0) refuse(fmt::format("an epoch of {} samples", *epoch_size));
  const bool relative = check_weights(streams);
  const bool wants_size = epoch_size.value_or(0) > 0;
  bool weighted = false;
  StreamShares shares;
  for (const EpochStream& stream : streams) {
    const StreamWeight& weight = stream.weight;
    weighted = weighted || weight.proportion || weight.repeat || weight.choose;
    shares.epoch_size += sum(stream.shard_sizes);
  }
  if (relative || (!weighted && wants_size)) {
    if (wants_size) shares.epoch_size = *epoch_size;
    for (const EpochStream& stream : streams) {
      shares.proportion.push_back(relative ? *stream.weight.proportion
                                           : static_cast<double>(sum(stream.shard_sizes)));
    }
    share_by_proportion(shares, seed);
    return shares;
  }
  if (wants_size) {
    refuse("epoch_size goes with proportions, or with streams without weights",
           "remove it, or weigh the streams by proportion");
  }
  for (const EpochStream& stream : streams) {
    const std::int64_t samples = sum(stream.shard_sizes);
    const double repeated = stream.weight.repeat.value_or(1) * static_cast<double>(samples);
    if (repeated >= 0x1p53) refuse("a stream is repeated too often");
    shares.choose.push_back(stream.weight.repeat ? static_cast<std::int64_t>(repeated)
                                                 : stream.weight.choose.value_or(samples));
  }
  shares.epoch_size = sum(shares.choose);
  if (shares.epoch_size <= 0) refuse("the streams give no samples");
  for (const std::int64_t choose : shares.choose) {
    shares.proportion.push_back(static_cast<double>(choose) /
                                static_cast<double>(shares.epoch_size));
  }
  return shares;
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
  EpochPlan out;
  out.world = config.replication ? replicate(world, *config.replication) : world;
  out.partition = Planner(config, streams, out.world, epoch).plan(sample_in_epoch);
  return out;
}

std::vector<std::int64_t> epoch_order(const EpochConfig& config,
                                      std::span<const EpochStream> streams, std::int64_t batch_size,
                                      std::int64_t epoch) {
  World world;
  world.batch_size = batch_size;
  EpochPlan plan = plan_epoch(config, streams, world, epoch, 0);
  std::erase(plan.partition.ids_PRWNB, -1);
  return std::move(plan.partition.ids_PRWNB);
}

}  // namespace dropless::train
