// How the positions of an epoch are dealt over the job: MosaicML StreamingDataset's partition, to
// the bit.
//
// partition_orig() deals positions 0..N-1 over C canonical nodes and then over nodes, ranks, workers
// and batches; which sample stands at a position, a shuffle says (order.h). Ids are 32-bit where
// they fit, so that an epoch of 10 million samples takes 40 MB: `Id` is std::int32_t or std::int64_t.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace dropless::train {

// The shape of the job, of which an epoch's samples are dealt out.
struct World {
  std::int64_t nodes = 1;             // P
  std::int64_t ranks_per_node = 1;    // R
  std::int64_t workers_per_rank = 1;  // W
  std::int64_t batch_size = 1;        // B, per rank
};

// Positions in the epoch, row-major (P, R, W, batches, B); -1 = none.
template <class Id = std::int64_t>
struct Partition {
  std::int64_t batches = 0;  // per worker
  std::vector<Id> ids_PRWNB;
};

// The `orig` algorithm for N samples over C canonical nodes, without the first `drop` samples of
// the epoch. Throws Error(kInvalidArgument): neither of C and P divides the other, or drop is
// beyond the epoch.
template <class Id = std::int64_t>
Partition<Id> partition_orig(std::int64_t num_samples, std::int64_t num_canonical_nodes,
                             const World& world, std::int64_t drop);

// `orig`, or `relaxed`: a job that resumes on a number of nodes that does not go with C deals the
// epoch over the nodes it began on, and cuts that order anew.
enum class PartitionAlgo { kOrig, kRelaxed };
template <class Id = std::int64_t>
Partition<Id> partition_epoch(PartitionAlgo algo, std::int64_t num_samples,
                              std::int64_t num_canonical_nodes, const World& world,
                              std::int64_t drop, std::optional<std::int64_t> initial_nodes);

// The same ids in the order in which they are trained on, shaped (batches, W, P, R, B); and back.
template <class Id>
std::vector<Id> traversal(const Partition<Id>& partition, const World& world);
template <class Id>
Partition<Id> from_traversal(const std::vector<Id>& ids, const World& world);

}  // namespace dropless::train
