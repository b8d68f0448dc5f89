// Which sample comes when: the shuffles of MosaicML StreamingDataset, to the bit.
//
// shuffle_ids() is a permutation of an epoch's samples: which one stands at each position of
// partition.h. Both depend only on their arguments, so every rank computes its own. Ids are 32-bit
// where they fit.
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

// Half-open ranges of sample ids, one per shard.
using Span = std::pair<std::int64_t, std::int64_t>;

// Splits spans, in order, into C parts that end at floor(N (p + 1) / C), cutting a span where a
// border falls inside it.
std::vector<std::vector<Span>> divide_spans(std::vector<Span> spans, std::int64_t num_samples,
                                            std::int64_t num_parts);

// result[position] = sample id, for shards of these sizes in order. Id: std::int32_t (fewer than
// 2^31 samples) or std::int64_t.
template <class Id = std::int64_t>
std::vector<Id> shuffle_ids(ShuffleAlgo algo, std::span<const std::int64_t> shard_sizes,
                            std::int64_t num_canonical_nodes, std::int64_t seed, std::int64_t epoch,
                            std::int64_t block_size);

// The canonical node count and block size that a config means for a job of so many nodes.
std::int64_t resolve_canonical_nodes(const ShuffleConfig& config, std::int64_t nodes);
std::int64_t resolve_block_size(const ShuffleConfig& config, std::int64_t num_canonical_nodes);

}  // namespace dropless::train
