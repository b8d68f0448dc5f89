#include "train/data/order.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dropless/error.h"
#include "train/data/py1e.h"
#include "train/data/rng.h"

namespace dropless::train {
namespace {

constexpr std::pair<const char*, ShuffleAlgo> kShuffles[] = {
    {"naive", ShuffleAlgo::kNaive}, {"py1s", ShuffleAlgo::kPy1s}, {"py2s", ShuffleAlgo::kPy2s},
    {"py1br", ShuffleAlgo::kPy1br}, {"py1e", ShuffleAlgo::kPy1e},
};

template <class Id>
void shuffle_py1s(const std::vector<std::vector<Span>>& parts, NumpyRng& epoch_rng,
                  std::vector<Id>& ids) {
  for (const auto& part : parts) {
    for (const Span& span : part) epoch_rng.shuffle(append_span(span, ids));
  }
}

// The shards' samples are shuffled once for the run and again for the epoch.
template <class Id>
void shuffle_py2s(std::span<const Span> spans, std::int64_t num_samples, std::int64_t num_parts,
                  NumpyRng& run_rng, NumpyRng& epoch_rng, std::vector<Id>& ids) {
  std::vector<Id> run_ids;
  run_ids.reserve(static_cast<std::size_t>(num_samples));
  std::vector<Span> placed;  // the spans as ranges of run_ids
  for (const Span& span : spans) {
    const std::int64_t at = std::ssize(run_ids);
    run_rng.shuffle(append_span(span, run_ids));
    placed.emplace_back(at, std::ssize(run_ids));
  }
  for (auto& part : divide_spans(std::move(placed), num_samples, num_parts)) {
    epoch_rng.shuffle(std::span(part));
    for (const auto& [begin, end] : part) {
      const std::size_t at = ids.size();
      ids.insert(ids.end(), run_ids.begin() + begin, run_ids.begin() + end);
      epoch_rng.shuffle(std::span(ids).subspan(at));
    }
  }
}

// Blocks overlap by the part's stagger, and the end of a part may lie in none: as in the package.
template <class Id>
void shuffle_py1br(const std::vector<std::vector<Span>>& parts, std::int64_t block_size,
                   NumpyRng& epoch_rng, std::vector<Id>& ids) {
  const std::int64_t reach = static_cast<std::int64_t>(0.75 * static_cast<double>(block_size));
  if (reach <= 0) draw_block(0, epoch_rng);
  std::vector<std::int64_t> staggers;
  for (std::size_t i = 0; i < parts.size(); ++i) staggers.push_back(epoch_rng.integers(0, reach));
  for (std::size_t part = 0; part < parts.size(); ++part) {
    const std::int64_t begin = std::ssize(ids);
    for (const Span& span : parts[part]) append_span(span, ids);
    const std::int64_t end = std::ssize(ids);
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

template <class Id>
std::vector<Id> shuffle_ids(ShuffleAlgo algo, std::span<const std::int64_t> shard_sizes,
                            std::int64_t num_canonical_nodes, std::int64_t seed, std::int64_t epoch,
                            std::int64_t block_size) {
  std::vector<Span> spans;
  std::int64_t total = 0;
  for (const std::int64_t size : shard_sizes) {
    spans.emplace_back(total, total + size);
    total += size;
  }
  std::vector<Id> ids;
  ids.reserve(static_cast<std::size_t>(total));
  NumpyRng run_rng(static_cast<std::uint64_t>(seed));
  NumpyRng epoch_rng(static_cast<std::uint64_t>(seed + epoch));
  if (algo == ShuffleAlgo::kNone || algo == ShuffleAlgo::kNaive) {
    const std::span<Id> all = append_span({0, total}, ids);
    if (algo == ShuffleAlgo::kNaive) epoch_rng.shuffle(all);
    return ids;
  }
  run_rng.shuffle(std::span(spans));
  if (algo == ShuffleAlgo::kPy2s) {
    shuffle_py2s(spans, total, num_canonical_nodes, run_rng, epoch_rng, ids);
    return ids;
  }
  auto parts = divide_spans(std::move(spans), total, num_canonical_nodes);
  for (auto& part : parts) epoch_rng.shuffle(std::span(part));
  if (algo == ShuffleAlgo::kPy1s) {
    shuffle_py1s(parts, epoch_rng, ids);
  } else if (algo == ShuffleAlgo::kPy1br) {
    shuffle_py1br(parts, block_size, epoch_rng, ids);
  } else {
    std::vector<Id> scratch;
    scratch.reserve(static_cast<std::size_t>(total / num_canonical_nodes + 1));
    for (const auto& part : parts) shuffle_part_py1e(part, block_size, epoch_rng, scratch, ids);
  }
  return ids;
}

template std::vector<std::int32_t> shuffle_ids(ShuffleAlgo, std::span<const std::int64_t>,
                                               std::int64_t, std::int64_t, std::int64_t,
                                               std::int64_t);
template std::vector<std::int64_t> shuffle_ids(ShuffleAlgo, std::span<const std::int64_t>,
                                               std::int64_t, std::int64_t, std::int64_t,
                                               std::int64_t);

std::int64_t resolve_canonical_nodes(const ShuffleConfig& config, std::int64_t nodes) {
  const bool many = config.algo == ShuffleAlgo::kPy1s || config.algo == ShuffleAlgo::kPy2s;
  return config.num_canonical_nodes.value_or(many ? 64 * nodes : nodes);
}

std::int64_t resolve_block_size(const ShuffleConfig& config, std::int64_t num_canonical_nodes) {
  return config.block_size.value_or(
      std::max<std::int64_t>(4'000'000 / num_canonical_nodes, std::int64_t{1} << 18));
}

}  // namespace dropless::train
