// How large an order gets, known before memory is taken for it: a typing error in a batch size, or in an
// epoch's samples, is an error, and takes no machine down.
#pragma once

#include <cstdint>
#include <span>

#include "train/data/epoch_plan.h"

namespace dropless::train {

// Numbers of specs above it are refused; below it, sums and products of two do not lose digits as doubles.
inline constexpr std::int64_t kMostCount = std::int64_t{1} << 53;
// Places that no sample or a repeated one fills, as a batch larger than the set has: so many, and so many
// for each sample. Real jobs stay far below: 100 streams over 2,048 ranks of 8 workers and 32 samples are 2^26.
inline constexpr std::int64_t kMostFillers = std::int64_t{1} << 26;
inline constexpr std::int64_t kMostFillersPerSample = 16;

// Throws Error(kInvalidArgument) naming the number that is too large.
void check_counts(const EpochConfig& config, std::span<const EpochStream> streams,
                  const World& world, std::int64_t epoch, std::int64_t sample_in_epoch);
// Of an epoch of `samples`, `bytes_per_id` each. Throws Error: kInvalidArgument where the job pads it beyond
// the above, kResource where it does not fit this machine's memory.
void check_order_size(const EpochConfig& config, std::size_t num_streams, const World& world,
                      std::int64_t samples, std::size_t bytes_per_id);

}  // namespace dropless::train
