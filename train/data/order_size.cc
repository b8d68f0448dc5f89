#include "train/data/order_size.h"

#include <fmt/format.h>

#include <algorithm>

#include "dropless/error.h"
#include "train/base/host_memory.h"

namespace dropless::train {
namespace {

void check_count(const char* name, std::int64_t value) {
  if (value <= kMostCount) return;
  throw Error(ErrorKind::kInvalidArgument, fmt::format("{} is {}, above 2^53", name, value));
}

// Places beyond the samples, at most, as partition_orig() and the batching methods add them.
double most_fillers(const EpochConfig& config, std::size_t num_streams, const World& world) {
  const auto nodes = static_cast<double>(world.nodes);
  const auto canonical = static_cast<double>(resolve_canonical_nodes(config.shuffle, world.nodes));
  const double ranks = nodes * static_cast<double>(world.ranks_per_node);
  const double workers = static_cast<double>(world.workers_per_rank);
  const double turn = ranks * workers * static_cast<double>(world.batch_size);
  double each = 2 * canonical + nodes + ranks;
  if (config.batching == BatchingMethod::kDevicePerStream)
    each += canonical * static_cast<double>(world.ranks_per_node) * workers;
  if (config.batching == BatchingMethod::kPerStream) each += turn;
  return turn + each * static_cast<double>(num_streams);
}

}  // namespace

void check_counts(const EpochConfig& config, std::span<const EpochStream> streams,
                  const World& world, std::int64_t epoch, std::int64_t sample_in_epoch) {
  check_count("nodes", world.nodes);
  check_count("ranks_per_node", world.ranks_per_node);
  check_count("workers_per_rank", world.workers_per_rank);
  check_count("batch_size", world.batch_size);
  if (static_cast<double>(world.nodes) * static_cast<double>(world.ranks_per_node) >
      static_cast<double>(kMostCount)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} nodes of {} ranks are above 2^53 ranks", world.nodes,
                            world.ranks_per_node));
  }
  check_count("epoch", epoch);
  check_count("sample_in_epoch", sample_in_epoch);
  check_count("shuffle_seed", config.shuffle.seed);
  check_count("shuffle_block_size", config.shuffle.block_size.value_or(0));
  check_count("num_canonical_nodes", config.shuffle.num_canonical_nodes.value_or(0));
  check_count("sampling_granularity", config.sampling_granularity);
  check_count("epoch_size", config.epoch_size.value_or(0));
  check_count("initial_physical_nodes", config.initial_nodes.value_or(0));
  check_count("replication", config.replication.value_or(0));
  std::int64_t samples = 0, chosen = 0;
  for (const EpochStream& stream : streams) {
    for (const std::int64_t size : stream.shard_sizes) {
      check_count("a shard's size", size);
      check_count("the number of samples", samples += std::max<std::int64_t>(size, 0));
    }
    const std::int64_t choose = stream.weight.choose.value_or(0);
    check_count("choose", choose);
    check_count("the sum of choose", chosen += std::max<std::int64_t>(choose, 0));
  }
}

void check_order_size(const EpochConfig& config, std::size_t num_streams, const World& world,
                      std::int64_t samples, std::size_t bytes_per_id) {
  const auto count = static_cast<double>(samples);
  const double fillers = most_fillers(config, num_streams, world);
  if (fillers > static_cast<double>(kMostFillers) + kMostFillersPerSample * count) {
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("an order of {} samples is padded with up to {:.0f} more: nodes {}, ranks per "
                    "node {}, workers {}, batch size {}, num_canonical_nodes {}",
                    samples, fillers, world.nodes, world.ranks_per_node, world.workers_per_rank,
                    world.batch_size, resolve_canonical_nodes(config.shuffle, world.nodes)),
        "lower the one that is larger than meant");
  }
  // The ids, their shuffle and what it needs meanwhile: py1e was measured at 12 bytes for ids of 4.
  constexpr double kCopies = 3;
  const double bytes = kCopies * static_cast<double>(bytes_per_id) * (count + fillers);
  const std::optional<double> available = available_host_bytes();
  if (available && bytes > *available) {
    throw Error(ErrorKind::kResource,
                fmt::format("an order of {} samples needs about {:.0f} GB of memory, and "
                            "{:.0f} GB are free",
                            samples, bytes / 1e9, *available / 1e9),
                "lower epoch_size, repeat or choose");
  }
}

}  // namespace dropless::train
