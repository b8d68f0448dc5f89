#include "train/data/order.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dropless/error.h"
#include "train/data/rng.h"

namespace dropless::train {
namespace {

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

// ---- py1e ----

// One canonical node's ids: each shard's samples in random order, then every sample moved by a
// random distance, so that a sample stays within about block_size of its shard.
void shuffle_part_py1e(const std::vector<Span>& spans, std::int64_t block_size, NumpyRng& rng,
                       std::vector<std::int64_t>& out) {
  std::vector<std::int64_t> ids;
  for (const auto& [begin, end] : spans) {
    const std::size_t at = ids.size();
    ids.resize(at + static_cast<std::size_t>(end - begin));
    std::iota(ids.begin() + static_cast<std::ptrdiff_t>(at), ids.end(), begin);
    rng.shuffle(std::span(ids).subspan(at));
  }
  if (ids.empty()) {
    throw Error(ErrorKind::kInvalidArgument, "a canonical node of the shuffle gets no samples",
                "lower num_canonical_nodes to at most the number of samples");
  }
  const std::int64_t part_size = static_cast<std::int64_t>(ids.size());
  const std::int64_t low = static_cast<std::int64_t>(0.75 * static_cast<double>(block_size));
  const std::int64_t high = static_cast<std::int64_t>(1.25 * static_cast<double>(block_size));
  std::vector<std::pair<double, std::int64_t>> placed;
  placed.reserve(ids.size());
  std::int64_t offset = 0;
  for (const auto& [begin, end] : spans) {
    const std::int64_t size = end - begin;
    const std::int64_t range = rng.integers(low, high);
    const double cut = std::max(0.0, static_cast<double>(range - size) / 2.0);
    const double left = std::max(-cut, -static_cast<double>(offset));
    const double right = std::min(cut, static_cast<double>(part_size - offset - size));
    for (std::int64_t i = 0; i < size; ++i, ++offset) {
      const double position = static_cast<double>(offset) + rng.uniform(left, right);
      placed.emplace_back(position, ids[static_cast<std::size_t>(offset)]);
    }
  }
  std::stable_sort(placed.begin(), placed.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [position, id] : placed) out.push_back(id);
}

}  // namespace

ShuffleAlgo parse_shuffle_algo(const std::string& name) {
  if (name == "py1e") return ShuffleAlgo::kPy1e;
  if (name == "naive" || name == "py1s" || name == "py2s" || name == "py1br") {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("shuffle_algo {} is not supported by this version", name), "use py1e");
  }
  throw Error(ErrorKind::kInvalidArgument, fmt::format("unknown shuffle_algo '{}'", name),
              "use py1e");
}

const char* shuffle_algo_name(ShuffleAlgo algo) {
  return algo == ShuffleAlgo::kPy1e ? "py1e" : "none";
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
  run_rng.shuffle(std::span(spans));
  auto parts = divide_spans(std::move(spans), total, num_canonical_nodes);
  NumpyRng epoch_rng(static_cast<std::uint64_t>(seed + epoch));
  for (auto& part : parts) epoch_rng.shuffle(std::span(part));
  ids.reserve(static_cast<std::size_t>(total));
  for (const auto& part : parts) shuffle_part_py1e(part, block_size, epoch_rng, ids);
  return ids;
}

std::int64_t resolve_canonical_nodes(const ShuffleConfig& config, std::int64_t nodes) {
  return config.num_canonical_nodes.value_or(nodes);
}

std::int64_t resolve_block_size(const ShuffleConfig& config, std::int64_t num_canonical_nodes) {
  return config.block_size.value_or(
      std::max<std::int64_t>(4'000'000 / num_canonical_nodes, std::int64_t{1} << 18));
}

std::vector<std::int64_t> epoch_order(const ShuffleConfig& config,
                                      std::span<const std::int64_t> shard_sizes, std::int64_t epoch,
                                      std::int64_t drop) {
  const std::int64_t canonical = resolve_canonical_nodes(config, 1);
  std::vector<std::int64_t> units;  // an empty shard takes no part in the shuffle
  for (const std::int64_t size : shard_sizes) {
    if (size > 0) units.push_back(size);
  }
  const std::int64_t total = std::accumulate(units.begin(), units.end(), std::int64_t{0});
  // One process: dropping samples is leaving out the front. The partition's own drop refuses to go
  // beyond N + 1, though an epoch with repeats is longer.
  Partition partition = partition_orig(total, canonical, World{}, 0);
  std::vector<std::int64_t>& ids = partition.ids_PRWNB;
  if (drop < 0 || drop > static_cast<std::int64_t>(ids.size())) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("cannot resume at sample {} of an epoch of {}", drop, ids.size()));
  }
  ids.erase(ids.begin(), ids.begin() + drop);
  const std::vector<std::int64_t> shuffled = shuffle_ids(
      config.algo, units, canonical, config.seed, epoch, resolve_block_size(config, canonical));
  for (std::int64_t& id : ids) id = shuffled[static_cast<std::size_t>(id)];
  return std::move(ids);
}

}  // namespace dropless::train
