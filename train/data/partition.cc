#include "train/data/partition.h"

#include <fmt/format.h>

#include <algorithm>

#include "dropless/error.h"

namespace dropless::train {
namespace {

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Each canonical node's contiguous share of 0..N-1, made equally long by repeating a few positions;
// read sample 0 of every one, then sample 1 of every one, and so on.
class CanonicalRows {
 public:
  CanonicalRows(std::int64_t num_samples, std::int64_t num_canonical, std::int64_t num_nodes)
      : samples_(num_samples), rows_(num_canonical) {
    share_ = (samples_ + rows_ - 1) / rows_;
    const std::int64_t ratio = rows_ < num_nodes ? num_nodes / rows_ : 1;
    const std::int64_t pad = (ratio - share_ % ratio) % ratio;
    length_ = share_ + pad;
    tiled_ = samples_ < rows_ || (samples_ == rows_ && rows_ < num_nodes);
    if (tiled_) return;
    // The pad columns repeat columns from further left, so that each physical node repeats its own.
    repeated_ = std::max<std::int64_t>(0, share_ - pad - ratio + 1);
    const std::int64_t count = std::max<std::int64_t>(0, share_ - ratio + 1 - repeated_);
    if (pad > 0 && count != pad && count != 1) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{} samples are too few for {} nodes over {} canonical nodes",
                              samples_, num_nodes, rows_),
                  "use fewer nodes or more canonical nodes");
    }
    repeats_one_ = count == 1;
    // 128 bits: c * N passes 2^63 only for absurd sets, but an index may claim anything.
    for (std::int64_t c = 0; c <= rows_; ++c) {
      borders_.push_back(static_cast<std::int64_t>(static_cast<__int128>(c) * samples_ / rows_));
    }
  }

  std::int64_t size() const { return rows_ * length_; }

  std::int64_t at(std::int64_t row, std::int64_t column) const {
    if (tiled_) return (row * length_ + column) % samples_;
    if (column >= share_) column = repeated_ + (repeats_one_ ? 0 : column - share_);
    const auto c = static_cast<std::size_t>(row);
    const bool is_short = column == share_ - 1 && borders_[c + 1] - borders_[c] < share_;
    return borders_[c] + column - (is_short ? 1 : 0);
  }
  std::int64_t at(std::int64_t i) const { return at(i % rows_, i / rows_); }

  // Reads on from element i.
  class Cursor {
   public:
    Cursor(const CanonicalRows& rows, std::int64_t i)
        : rows_(rows), row_(i % rows.rows_), column_(i / rows.rows_) {}
    std::int64_t next() {
      const std::int64_t position = rows_.at(row_, column_);
      if (++row_ == rows_.rows_) {
        row_ = 0;
        ++column_;
      }
      return position;
    }

   private:
    const CanonicalRows& rows_;
    std::int64_t row_, column_;
  };

 private:
  std::int64_t samples_, rows_;
  std::int64_t share_ = 0, length_ = 0;
  std::int64_t repeated_ = 0;  // the first column that the pads repeat
  bool tiled_ = false, repeats_one_ = false;
  std::vector<std::int64_t> borders_;
};

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

template <class Id>
Partition<Id> partition_orig(std::int64_t num_samples, std::int64_t num_canonical_nodes,
                             const World& world, std::int64_t drop) {
  check_partition(num_samples, num_canonical_nodes, world, drop);
  const std::int64_t nodes = world.nodes, ranks = world.ranks_per_node;
  const std::int64_t workers = world.workers_per_rank, batch = world.batch_size;
  const CanonicalRows rows(num_samples, num_canonical_nodes, nodes);
  drop -= drop % nodes;
  // The elements are dealt out over the nodes, which get equally many; then a node's repeat a few of
  // its own so that its ranks do.
  const std::int64_t per_node = std::max<std::int64_t>(0, rows.size() - drop) / nodes;
  const std::int64_t per_rank = round_up(per_node, ranks) / ranks;
  const std::int64_t reach = ranks + per_rank * ranks - per_node - 1;
  const auto repeated = [&](std::int64_t i) {
    return reach <= per_node ? per_node - reach + i : i % per_node;
  };

  Partition<Id> out;
  out.batches = round_up(per_rank, workers * batch) / (workers * batch);
  out.ids_PRWNB.assign(static_cast<std::size_t>(nodes * ranks * workers * out.batches * batch), -1);
  CanonicalRows::Cursor cursor(rows, drop);
  for (std::int64_t i = 0; i < per_rank; ++i) {
    // A rank's workers take turns, a batch each.
    const std::int64_t worker = i / batch % workers, turn = i / (batch * workers);
    Id* ids = out.ids_PRWNB.data() + (worker * out.batches + turn) * batch + i % batch;
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      const std::int64_t element = i * ranks + rank;
      for (std::int64_t node = 0; node < nodes; ++node) {
        const std::int64_t position =
            element < per_node ? cursor.next()
                               : rows.at(drop + node + repeated(element - per_node) * nodes);
        ids[(node * ranks + rank) * workers * out.batches * batch] = static_cast<Id>(position);
      }
    }
  }
  return out;
}

template <class Id>
std::vector<Id> traversal(const Partition<Id>& partition, const World& world) {
  std::vector<Id> ids(partition.ids_PRWNB.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = partition.ids_PRWNB[partition_place(i, partition.batches, world)];
  }
  return ids;
}

template <class Id>
Partition<Id> from_traversal(const std::vector<Id>& ids, const World& world) {
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
  Partition<Id> out;
  out.batches = size / turn;
  out.ids_PRWNB.resize(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    out.ids_PRWNB[partition_place(i, out.batches, world)] = ids[i];
  }
  return out;
}

template <class Id>
Partition<Id> partition_epoch(PartitionAlgo algo, std::int64_t num_samples,
                              std::int64_t num_canonical_nodes, const World& world,
                              std::int64_t drop, std::optional<std::int64_t> initial_nodes) {
  const bool goes_together =
      num_canonical_nodes > 0 && world.nodes > 0 &&
      (num_canonical_nodes % world.nodes == 0 || world.nodes % num_canonical_nodes == 0);
  if (algo == PartitionAlgo::kOrig || !initial_nodes || goes_together || num_canonical_nodes <= 0) {
    return partition_orig<Id>(num_samples, num_canonical_nodes, world, drop);
  }
  const std::int64_t ranks = world.nodes * world.ranks_per_node;
  if (num_samples + (ranks - num_samples % ranks) < drop) {
    return partition_orig<Id>(num_samples, world.nodes, world, drop);  // says so
  }
  World initial = world;
  initial.nodes = *initial_nodes;
  const std::int64_t global_batch = ranks * world.batch_size;
  // More nodes than samples of a batch are refused before the product, which might not fit.
  const bool fits = *initial_nodes > 0 && *initial_nodes <= global_batch &&
                    global_batch % (*initial_nodes * world.ranks_per_node) == 0;
  if (!fits) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("a global batch of {} samples does not go over the {} nodes of {} "
                            "ranks that the run began with",
                            global_batch, *initial_nodes, world.ranks_per_node),
                "keep the global batch size while resuming");
  }
  initial.batch_size = global_batch / (*initial_nodes * world.ranks_per_node);
  return from_traversal(
      traversal(partition_orig<Id>(num_samples, num_canonical_nodes, initial, drop), initial),
      world);
}

#define DROPLESS_INSTANTIATE(Id)                                                                  \
  template Partition<Id> partition_orig(std::int64_t, std::int64_t, const World&, std::int64_t);  \
  template Partition<Id> partition_epoch(PartitionAlgo, std::int64_t, std::int64_t, const World&, \
                                         std::int64_t, std::optional<std::int64_t>);              \
  template std::vector<Id> traversal(const Partition<Id>&, const World&);                         \
  template Partition<Id> from_traversal(const std::vector<Id>&, const World&);
DROPLESS_INSTANTIATE(std::int32_t)
DROPLESS_INSTANTIATE(std::int64_t)
#undef DROPLESS_INSTANTIATE

}  // namespace dropless::train
