// Which sample comes when: the shuffles and the partition of MosaicML StreamingDataset, to the bit.
//
// An epoch's order has two parts. partition() deals positions 0..N-1 of the epoch over C canonical
// nodes and then over nodes, ranks, workers and batches; shuffle_ids() is a permutation that says
// which sample stands at each position. Both depend only on their arguments, so every rank computes
// its own.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace dropless::train {

// naive mixes the whole epoch. The others keep what a node reads together: py1s and py2s shuffle
// within shards, py1br within blocks of shards, py1e moves each sample by up to half a block.
enum class ShuffleAlgo { kNone, kNaive, kPy1s, kPy2s, kPy1br, kPy1e };

// "naive", "py1s", "py2s", "py1br", "py1e". Others: Error(kInvalidArgument).
ShuffleAlgo parse_shuffle_algo(const std::string& name);
const char* shuffle_algo_name(ShuffleAlgo algo);  // "none" for kNone

struct ShuffleConfig {
  ShuffleAlgo algo = ShuffleAlgo::kNone;
  std::int64_t seed = 9176;
  std::optional<std::int64_t> block_size;  // default max(4,000,000 / C, 2^18)
  std::optional<std::int64_t>
      num_canonical_nodes;  // C; default the nodes, of py1s and py2s 64 times
};

// The shape of the job, of which an epoch's samples are dealt out.
struct World {
  std::int64_t nodes = 1;             // P
  std::int64_t ranks_per_node = 1;    // R
  std::int64_t workers_per_rank = 1;  // W
  std::int64_t batch_size = 1;        // B, per rank
};

// Positions in the epoch, row-major (P, R, W, batches, B); -1 = none.
struct Partition {
  std::int64_t batches = 0;  // per worker
  std::vector<std::int64_t> ids_PRWNB;
};

// The `orig` algorithm for N samples over C canonical nodes, without the first `drop` samples of
// the epoch. Throws Error(kInvalidArgument): neither of C and P divides the other, or drop is
// beyond the epoch.
Partition partition_orig(std::int64_t num_samples, std::int64_t num_canonical_nodes,
                         const World& world, std::int64_t drop);

// `orig`, or `relaxed`: a job that resumes on a number of nodes that does not go with C deals the
// epoch over the nodes it began on, and cuts that order anew.
enum class PartitionAlgo { kOrig, kRelaxed };
Partition partition_epoch(PartitionAlgo algo, std::int64_t num_samples,
                          std::int64_t num_canonical_nodes, const World& world, std::int64_t drop,
                          std::optional<std::int64_t> initial_nodes);

// The same ids in the order in which they are trained on, shaped (batches, W, P, R, B); and back.
std::vector<std::int64_t> traversal(const Partition& partition, const World& world);
Partition from_traversal(const std::vector<std::int64_t>& ids, const World& world);

// Half-open ranges of sample ids, one per shard.
using Span = std::pair<std::int64_t, std::int64_t>;

// Splits spans, in order, into C parts that end at floor(N (p + 1) / C), cutting a span where a
// border falls inside it.
std::vector<std::vector<Span>> divide_spans(std::vector<Span> spans, std::int64_t num_samples,
                                            std::int64_t num_parts);

// result[position] = sample id, for shards of these sizes in order.
std::vector<std::int64_t> shuffle_ids(ShuffleAlgo algo, std::span<const std::int64_t> shard_sizes,
                                      std::int64_t num_canonical_nodes, std::int64_t seed,
                                      std::int64_t epoch, std::int64_t block_size);

// The canonical node count and block size that a config means for a job of so many nodes.
std::int64_t resolve_canonical_nodes(const ShuffleConfig& config, std::int64_t nodes);
std::int64_t resolve_block_size(const ShuffleConfig& config, std::int64_t num_canonical_nodes);

}  // namespace dropless::train
