#include "train/data/order.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dropless/error.h"
#include "train/data/rng.h"

namespace dropless::train {
namespace {

constexpr std::pair<const char*, ShuffleAlgo> kShuffles[] = {
    {"naive", ShuffleAlgo::kNaive}, {"py1s", ShuffleAlgo::kPy1s}, {"py2s", ShuffleAlgo::kPy2s},
    {"py1br", ShuffleAlgo::kPy1br}, {"py1e", ShuffleAlgo::kPy1e},
};

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// ---- partition ----

struct Rows {
  std::int64_t length = 0;        // positions per canonical node, repeats included
  std::vector<std::int64_t> ids;  // (C, length) row-major
};

// Each canonical node's contiguous share of 0..N-1, made equally long by repeating a few positions.
Rows canonical_rows(std::int64_t num_samples, std::int64_t num_canonical, std::int64_t num_nodes) {
  const std::int64_t n = num_samples, c_count = num_canonical;
  const std::int64_t share = (n + c_count - 1) / c_count;
  const std::int64_t ratio = c_count < num_nodes ? num_nodes / c_count : 1;
  const std::int64_t pad = (ratio - share % ratio) % ratio;
  Rows rows;
  rows.length = share + pad;
  rows.ids.resize(static_cast<std::size_t>(c_count * rows.length));
  if (n < c_count || (n == c_count && c_count < num_nodes)) {
    for (std::size_t i = 0; i < rows.ids.size(); ++i)
      rows.ids[i] = static_cast<std::int64_t>(i) % n;
    return rows;
  }
  for (std::int64_t c = 0; c < c_count; ++c) {
    std::int64_t* row = rows.ids.data() + c * rows.length;
    // 128 bits: c * N passes 2^63 only for absurd sets, but an index may claim anything.
    const auto border = [&](std::int64_t k) {
      return static_cast<std::int64_t>(static_cast<__int128>(k) * n / c_count);
    };
    std::iota(row, row + rows.length, border(c));
    if (border(c + 1) - border(c) < share) --row[share - 1];
    // The pad columns repeat columns from further left, so that each physical node repeats its own.
    const std::int64_t from = std::max<std::int64_t>(0, share - pad - ratio + 1);
    const std::int64_t count = std::max<std::int64_t>(0, share - ratio + 1 - from);
    if (pad > 0 && count != pad && count != 1) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{} samples are too few for {} nodes over {} canonical nodes", n,
                              num_nodes, c_count),
                  "use fewer nodes or more canonical nodes");
    }
    for (std::int64_t i = 0; i < pad; ++i) row[share + i] = row[from + (count == 1 ? 0 : i)];
  }
  return rows;
}

// Repeats a few of the node's positions so that its ranks get equally many.
void pad_to_ranks(std::vector<std::int64_t>& ids, std::int64_t ranks) {
  const std::int64_t size = static_cast<std::int64_t>(ids.size());
  const std::int64_t missing = round_up(size, ranks) - size;
  if (missing == 0 || size == 0) return;
  const std::int64_t reach = ranks + missing - 1;
  for (std::int64_t i = 0; i < missing; ++i) {
    const std::int64_t from = reach <= size ? size - reach + i : i % size;
    ids.push_back(ids[static_cast<std::size_t>(from)]);
  }
}

void check_partition(std::int64_t num_samples, std::int64_t num_canonical, const World& world,
                     std::int64_t drop) {
  if (num_samples <= 0) throw Error(ErrorKind::kInvalidArgument, "the data set holds no samples");
  if (num_canonical <= 0 || world.nodes <= 0 || world.ranks_per_node <= 0 ||
      world.workers_per_rank <= 0 || world.batch_size <= 0) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("nodes {}, ranks per node {}, workers {}, batch size {} and "
                            "num_canonical_nodes {} must all be positive",
                            world.nodes, world.ranks_per_node, world.workers_per_rank,
                            world.batch_size, num_canonical));
  }
  if (num_canonical % world.nodes != 0 && world.nodes % num_canonical != 0) {
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("num_canonical_nodes {} and the {} nodes of the job: neither divides the other",
                    num_canonical, world.nodes),
        "choose num_canonical_nodes so that one is a multiple of the other");
  }
  const std::int64_t ranks = world.nodes * world.ranks_per_node;
  const std::int64_t epoch_size = num_samples + (ranks - num_samples % ranks);
  if (drop < 0 || drop > epoch_size) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("cannot resume at sample {} of an epoch of {}", drop, epoch_size));
  }
}

// ---- shuffles ----

// Appends the ids of a span.
std::span<std::int64_t> append_span(const Span& span, std::vector<std::int64_t>& ids) {
  const std::size_t at = ids.size();
  ids.resize(at + static_cast<std::size_t>(span.second - span.first));
  std::iota(ids.begin() + static_cast<std::ptrdiff_t>(at), ids.end(), span.first);
  return std::span(ids).subspan(at);
}

// Block sizes are drawn from three to five quarters of the configured one.
std::int64_t draw_block(std::int64_t block_size, NumpyRng& rng) {
  const std::int64_t low = static_cast<std::int64_t>(0.75 * static_cast<double>(block_size));
  const std::int64_t high = static_cast<std::int64_t>(1.25 * static_cast<double>(block_size));
  if (low >= high) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("a shuffle block of {} samples", block_size),
                "raise shuffle_block_size: each stream gets its share of it");
  }
  return rng.integers(low, high);
}

std::vector<std::int64_t> shuffle_py1s(const std::vector<std::vector<Span>>& parts,
                                       NumpyRng& epoch_rng) {
  std::vector<std::int64_t> ids;
  for (const auto& part : parts) {
    for (const Span& span : part) epoch_rng.shuffle(append_span(span, ids));
  }
  return ids;
}

// The shards' samples are shuffled once for the run and again for the epoch.
std::vector<std::int64_t> shuffle_py2s(std::span<const Span> spans, std::int64_t num_samples,
                                       std::int64_t num_parts, NumpyRng& run_rng,
                                       NumpyRng& epoch_rng) {
  std::vector<std::int64_t> run_ids;
  run_ids.reserve(static_cast<std::size_t>(num_samples));
  std::vector<Span> placed;  // the spans as ranges of run_ids
  for (const Span& span : spans) {
    const std::int64_t at = static_cast<std::int64_t>(run_ids.size());
    run_rng.shuffle(append_span(span, run_ids));
    placed.emplace_back(at, static_cast<std::int64_t>(run_ids.size()));
  }
  std::vector<std::int64_t> ids;
  ids.reserve(run_ids.size());
  for (auto& part : divide_spans(std::move(placed), num_samples, num_parts)) {
    epoch_rng.shuffle(std::span(part));
    for (const auto& [begin, end] : part) {
      const std::size_t at = ids.size();
      ids.insert(ids.end(), run_ids.begin() + begin, run_ids.begin() + end);
      epoch_rng.shuffle(std::span(ids).subspan(at));
    }
  }
  return ids;
}

// Blocks overlap by the part's stagger, and the end of a part may lie in none: as in the package.
std::vector<std::int64_t> shuffle_py1br(const std::vector<std::vector<Span>>& parts,
                                        std::int64_t block_size, NumpyRng& epoch_rng) {
  const std::int64_t reach = static_cast<std::int64_t>(0.75 * static_cast<double>(block_size));
  if (reach <= 0) draw_block(0, epoch_rng);
  std::vector<std::int64_t> staggers;
  for (std::size_t i = 0; i < parts.size(); ++i) staggers.push_back(epoch_rng.integers(0, reach));
  std::vector<std::int64_t> ids;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    const std::int64_t begin = static_cast<std::int64_t>(ids.size());
    for (const Span& span : parts[part]) append_span(span, ids);
    const std::int64_t end = static_cast<std::int64_t>(ids.size());
    std::vector<Span> blocks;
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t size = draw_block(block_size, epoch_rng);
      const std::int64_t first = std::max(at - staggers[part], begin);
      const std::int64_t last = std::min(at + size - staggers[part], end);
      blocks.emplace_back(first, last);
      at += last - first;
    }
    for (const auto& [first, last] : blocks) {
      epoch_rng.shuffle(std::span(ids).subspan(static_cast<std::size_t>(first),
                                               static_cast<std::size_t>(last - first)));
    }
  }
  return ids;
}

// Appends the ids in the order of their positions, which lie in [0, ids.size()); of equal ones in
// their own order. Positions are spread evenly: of a bucket of 32 of them about 32 ids come, and
// sorting those is one pass over memory where sorting all would be many.
void append_by_position(const std::vector<std::int64_t>& ids, const std::vector<double>& positions,
                        std::vector<std::int64_t>& out) {
  constexpr double kBucket = 32;
  const auto bucket_of = [&](double position) {
    return static_cast<std::size_t>(std::max(position, 0.0) / kBucket);
  };
  const std::size_t buckets = ids.size() / static_cast<std::size_t>(kBucket) + 2;
  std::vector<std::size_t> ends(buckets + 1);  // of each bucket, shifted by one until filled
  for (const double position : positions) ++ends[std::min(bucket_of(position), buckets - 1) + 1];
  std::partial_sum(ends.begin(), ends.end(), ends.begin());
  struct Placed {
    double position;
    std::int64_t id;
  };
  std::vector<Placed> placed(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::size_t& next = ends[std::min(bucket_of(positions[i]), buckets - 1)];
    placed[next++] = {positions[i], ids[i]};
  }
  std::size_t begin = 0;
  for (std::size_t b = 0; b < buckets; ++b) {
    std::stable_sort(placed.begin() + static_cast<std::ptrdiff_t>(begin),
                     placed.begin() + static_cast<std::ptrdiff_t>(ends[b]),
                     [](const Placed& x, const Placed& y) { return x.position < y.position; });
    begin = ends[b];
  }
  for (const Placed& entry : placed) out.push_back(entry.id);
}

// One canonical node's ids: each shard's samples in random order, then every sample moved by a
// random distance, so that a sample stays within about block_size of its shard.
void shuffle_part_py1e(const std::vector<Span>& spans, std::int64_t block_size, NumpyRng& rng,
                       std::vector<std::int64_t>& out) {
  std::vector<std::int64_t> ids;
  for (const Span& span : spans) rng.shuffle(append_span(span, ids));
  if (ids.empty()) {
    throw Error(ErrorKind::kInvalidArgument, "a canonical node of the shuffle gets no samples",
                "lower num_canonical_nodes to at most the number of samples");
  }
  const std::int64_t part_size = static_cast<std::int64_t>(ids.size());
  std::vector<double> positions;
  positions.reserve(ids.size());
  std::int64_t offset = 0;
  for (const auto& [begin, end] : spans) {
    const std::int64_t size = end - begin;
    const std::int64_t range = draw_block(block_size, rng);
    const double cut = std::max(0.0, static_cast<double>(range - size) / 2.0);
    const double left = std::max(-cut, -static_cast<double>(offset));
    const double right = std::min(cut, static_cast<double>(part_size - offset - size));
    for (std::int64_t i = 0; i < size; ++i, ++offset)
      positions.push_back(static_cast<double>(offset) + rng.uniform(left, right));
  }
  append_by_position(ids, positions, out);
}

}  // namespace

ShuffleAlgo parse_shuffle_algo(const std::string& name) {
  for (const auto& [known, algo] : kShuffles) {
    if (name == known) return algo;
  }
  throw Error(ErrorKind::kInvalidArgument, fmt::format("unknown shuffle_algo '{}'", name),
              "one of: naive, py1s, py2s, py1br, py1e");
}

const char* shuffle_algo_name(ShuffleAlgo algo) {
  for (const auto& [name, known] : kShuffles) {
    if (algo == known) return name;
  }
  return "none";
}

Partition partition_orig(std::int64_t num_samples, std::int64_t num_canonical_nodes,
                         const World& world, std::int64_t drop) {
  check_partition(num_samples, num_canonical_nodes, world, drop);
  const std::int64_t nodes = world.nodes, ranks = world.ranks_per_node;
  const Rows rows = canonical_rows(num_samples, num_canonical_nodes, nodes);
  drop -= drop % nodes;

  // Sample 0 of every canonical node, then sample 1 of every one, ..., dealt out over the nodes.
  const std::int64_t total = num_canonical_nodes * rows.length;
  std::vector<std::vector<std::int64_t>> node_ids(static_cast<std::size_t>(nodes));
  for (std::int64_t i = drop; i < total; ++i) {
    const std::int64_t row = i % num_canonical_nodes, column = i / num_canonical_nodes;
    node_ids[static_cast<std::size_t>((i - drop) % nodes)].push_back(
        rows.ids[static_cast<std::size_t>(row * rows.length + column)]);
  }
  for (auto& ids : node_ids) pad_to_ranks(ids, ranks);

  const std::int64_t workers = world.workers_per_rank, batch = world.batch_size;
  const std::int64_t per_rank = static_cast<std::int64_t>(node_ids[0].size()) / ranks;
  Partition out;
  out.batches = round_up(per_rank, workers * batch) / (workers * batch);
  out.ids_PRWNB.assign(static_cast<std::size_t>(nodes * ranks * workers * out.batches * batch), -1);
  for (std::int64_t node = 0; node < nodes; ++node) {
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      std::int64_t* ids =
          out.ids_PRWNB.data() + (node * ranks + rank) * workers * out.batches * batch;
      for (std::int64_t i = 0; i < per_rank; ++i) {
        // A rank's workers take turns, a batch each.
        const std::int64_t worker = i / batch % workers, turn = i / (batch * workers);
        ids[(worker * out.batches + turn) * batch + i % batch] =
            node_ids[static_cast<std::size_t>(node)][static_cast<std::size_t>(i * ranks + rank)];
      }
    }
  }
  return out;
}

namespace {

// The place in a partition of element i of its traversal.
std::size_t partition_place(std::size_t i, std::int64_t batches, const World& world) {
  const auto take = [&](std::int64_t count) {
    const std::size_t digit = i % static_cast<std::size_t>(count);
    i /= static_cast<std::size_t>(count);
    return static_cast<std::int64_t>(digit);
  };
  const std::int64_t sample = take(world.batch_size), rank = take(world.ranks_per_node),
                     node = take(world.nodes), worker = take(world.workers_per_rank);
  const std::int64_t batch = static_cast<std::int64_t>(i);
  return static_cast<std::size_t>(
      (((node * world.ranks_per_node + rank) * world.workers_per_rank + worker) * batches + batch) *
          world.batch_size +
      sample);
}

}  // namespace

std::vector<std::int64_t> traversal(const Partition& partition, const World& world) {
  std::vector<std::int64_t> ids(partition.ids_PRWNB.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = partition.ids_PRWNB[partition_place(i, partition.batches, world)];
  }
  return ids;
}

Partition from_traversal(const std::vector<std::int64_t>& ids, const World& world) {
  const std::int64_t turn =
      world.nodes * world.ranks_per_node * world.workers_per_rank * world.batch_size;
  const std::int64_t size = static_cast<std::int64_t>(ids.size());
  if (size % turn != 0) {
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("an epoch of {} samples, with its repeats, does not go into turns of {}", size,
                    turn),
        "keep the number of nodes, ranks and workers, and the global batch size");
  }
  Partition out;
  out.batches = size / turn;
  out.ids_PRWNB.resize(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    out.ids_PRWNB[partition_place(i, out.batches, world)] = ids[i];
  }
  return out;
}

Partition partition_epoch(PartitionAlgo algo, std::int64_t num_samples,
                          std::int64_t num_canonical_nodes, const World& world, std::int64_t drop,
                          std::optional<std::int64_t> initial_nodes) {
  const bool goes_together =
      num_canonical_nodes > 0 && world.nodes > 0 &&
      (num_canonical_nodes % world.nodes == 0 || world.nodes % num_canonical_nodes == 0);
  if (algo == PartitionAlgo::kOrig || !initial_nodes || goes_together || num_canonical_nodes <= 0) {
    return partition_orig(num_samples, num_canonical_nodes, world, drop);
  }
  const std::int64_t ranks = world.nodes * world.ranks_per_node;
  if (num_samples + (ranks - num_samples % ranks) < drop) {
    return partition_orig(num_samples, world.nodes, world, drop);  // says so
  }
  World initial = world;
  initial.nodes = *initial_nodes;
  const std::int64_t global_batch = ranks * world.batch_size;
  const std::int64_t initial_ranks = *initial_nodes * world.ranks_per_node;
  if (*initial_nodes <= 0 || global_batch % initial_ranks != 0) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("a global batch of {} samples does not go over the {} ranks that the "
                            "run began with",
                            global_batch, initial_ranks),
                "keep the global batch size while resuming");
  }
  initial.batch_size = global_batch / initial_ranks;
  return from_traversal(
      traversal(partition_orig(num_samples, num_canonical_nodes, initial, drop), initial), world);
}

std::vector<std::vector<Span>> divide_spans(std::vector<Span> spans, std::int64_t num_samples,
                                            std::int64_t num_parts) {
  std::vector<std::vector<Span>> parts(static_cast<std::size_t>(num_parts));
  std::size_t next = 0;
  std::int64_t taken = 0;
  for (std::int64_t p = 0; p < num_parts; ++p) {
    const std::int64_t end =
        static_cast<std::int64_t>(static_cast<__int128>(num_samples) * (p + 1) / num_parts);
    auto& part = parts[static_cast<std::size_t>(p)];
    // A span that ends exactly at the border, an empty one too, belongs to the left part.
    for (; next < spans.size() && taken + spans[next].second - spans[next].first <= end; ++next) {
      part.push_back(spans[next]);
      taken += spans[next].second - spans[next].first;
    }
    if (next < spans.size() && taken < end) {
      auto& [first, last] = spans[next];
      part.emplace_back(first, first + end - taken);
      first += end - taken;
      taken = end;
    }
  }
  return parts;
}

std::vector<std::int64_t> shuffle_ids(ShuffleAlgo algo, std::span<const std::int64_t> shard_sizes,
                                      std::int64_t num_canonical_nodes, std::int64_t seed,
                                      std::int64_t epoch, std::int64_t block_size) {
  std::vector<Span> spans;
  std::int64_t total = 0;
  for (const std::int64_t size : shard_sizes) {
    spans.emplace_back(total, total + size);
    total += size;
  }
  std::vector<std::int64_t> ids;
  if (algo == ShuffleAlgo::kNone) {
    ids.resize(static_cast<std::size_t>(total));
    std::iota(ids.begin(), ids.end(), std::int64_t{0});
    return ids;
  }
  NumpyRng run_rng(static_cast<std::uint64_t>(seed));
  NumpyRng epoch_rng(static_cast<std::uint64_t>(seed + epoch));
  if (algo == ShuffleAlgo::kNaive) return epoch_rng.permutation(total);
  run_rng.shuffle(std::span(spans));
  if (algo == ShuffleAlgo::kPy2s) {
    return shuffle_py2s(spans, total, num_canonical_nodes, run_rng, epoch_rng);
  }
  auto parts = divide_spans(std::move(spans), total, num_canonical_nodes);
  for (auto& part : parts) epoch_rng.shuffle(std::span(part));
  if (algo == ShuffleAlgo::kPy1s) return shuffle_py1s(parts, epoch_rng);
  if (algo == ShuffleAlgo::kPy1br) return shuffle_py1br(parts, block_size, epoch_rng);
  ids.reserve(static_cast<std::size_t>(total));
  for (const auto& part : parts) shuffle_part_py1e(part, block_size, epoch_rng, ids);
  return ids;
}

std::int64_t resolve_canonical_nodes(const ShuffleConfig& config, std::int64_t nodes) {
  const bool many = config.algo == ShuffleAlgo::kPy1s || config.algo == ShuffleAlgo::kPy2s;
  return config.num_canonical_nodes.value_or(many ? 64 * nodes : nodes);
}

std::int64_t resolve_block_size(const ShuffleConfig& config, std::int64_t num_canonical_nodes) {
  return config.block_size.value_or(
      std::max<std::int64_t>(4'000'000 / num_canonical_nodes, std::int64_t{1} << 18));
}

}  // namespace dropless::train
