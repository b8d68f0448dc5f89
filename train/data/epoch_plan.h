// The samples of an epoch of several streams: how many of each, which, and in which batches, as
// MosaicML StreamingDataset decides it, to the bit.
//
// Each stream gives a number of samples an epoch: by its proportion of the whole, or by repeat or
// choose. A stream asked for more than it has repeats its shards; for a part of one, random samples
// are picked. A batching method then mixes the streams:
//
// | random            | all streams are one long list                                            |
// | stratified        | every global batch holds the same number of each stream                  |
// | per_stream        | every global batch is of one stream                                      |
// | device_per_stream | every rank's batch is of one stream                                      |
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "train/data/order.h"
#include "train/data/partition.h"
#include "train/data/sample_ids.h"
#include "train/data/stream_shares.h"

namespace dropless::train {

enum class BatchingMethod { kRandom, kStratified, kPerStream, kDevicePerStream };
enum class SamplingMethod { kBalanced, kFixed };  // picked anew each epoch, or once

// Throw Error(kInvalidArgument) with the known names.
BatchingMethod parse_batching_method(const std::string& name);
SamplingMethod parse_sampling_method(const std::string& name);
PartitionAlgo parse_partition_algo(const std::string& name);
const char* batching_method_name(BatchingMethod method);
const char* sampling_method_name(SamplingMethod method);

struct EpochConfig {
  ShuffleConfig shuffle;
  PartitionAlgo partition = PartitionAlgo::kRelaxed;
  BatchingMethod batching = BatchingMethod::kRandom;
  SamplingMethod sampling = SamplingMethod::kBalanced;
  std::int64_t sampling_granularity = 1;      // samples picked of a shard at a time
  std::optional<std::int64_t> epoch_size;     // only with proportions, or without weights
  std::optional<std::int64_t> initial_nodes;  // of the run that is resumed
  std::optional<std::int64_t> replication;    // ranks in a row that get the same samples
};

struct EpochPlan {
  World world;               // with replication fewer ranks than the job's
  std::int64_t batches = 0;  // per worker
  // Counted through all streams in order; shaped as Partition's.
  SampleIds ids_PRWNB;
};

// Throws Error(kInvalidArgument) where the package raises ValueError, and as order_size.h says.
EpochPlan plan_epoch(const EpochConfig& config, std::span<const EpochStream> streams,
                     const World& world, std::int64_t epoch, std::int64_t sample_in_epoch);

// Sample ids in the order in which one process alone sees them, in batches of `batch_size`.
SampleIds epoch_order(const EpochConfig& config, std::span<const EpochStream> streams,
                      std::int64_t batch_size, std::int64_t epoch);

}  // namespace dropless::train
