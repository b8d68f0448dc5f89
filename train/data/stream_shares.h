// How many samples of each stream are in an epoch: by its proportion of the whole, or by repeat or
// choose, as MosaicML StreamingDataset counts them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace dropless::train {

// "1000", "1.5k", "10m", "2b", "1t": powers of 1000.
std::int64_t parse_sample_count(const std::string& text);

// At most one of them.
struct StreamWeight {
  std::optional<double> proportion;    // of the epoch, relative to the other streams
  std::optional<double> repeat;        // times all samples of the stream
  std::optional<std::int64_t> choose;  // samples
};

struct EpochStream {
  std::vector<std::int64_t> shard_sizes;
  StreamWeight weight;
};

// What the weights come to.
struct StreamShares {
  std::vector<std::int64_t> choose;  // samples an epoch
  std::vector<double> proportion;
  std::int64_t epoch_size = 0;
};

// Throws Error(kInvalidArgument): no streams, an empty one, weights that do not go together.
StreamShares share_epoch(std::span<const EpochStream> streams,
                         std::optional<std::int64_t> epoch_size, std::int64_t seed);

}  // namespace dropless::train
