#include "train/data/stream_shares.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string_view>

#include "dropless/error.h"
#include "train/data/rng.h"

namespace dropless::train {
namespace {

[[noreturn]] void refuse(const std::string& what, const std::string& hint = {}) {
  throw Error(ErrorKind::kInvalidArgument, what, hint);
}

std::int64_t sum(std::span<const std::int64_t> values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

// numpy's sum of doubles: in pairs of halves, each by eight running sums.
double pairwise_sum(std::span<const double> values) {
  const std::size_t n = values.size();
  if (n < 8) return std::accumulate(values.begin(), values.end(), 0.0);
  if (n > 128) {
    const std::size_t half = n / 2 - n / 2 % 8;
    return pairwise_sum(values.first(half)) + pairwise_sum(values.subspan(half));
  }
  std::array<double, 8> r;
  std::copy_n(values.begin(), 8, r.begin());
  std::size_t i = 8;
  for (; i < n - n % 8; i += 8) {
    for (std::size_t k = 0; k < 8; ++k) r[k] += values[i + k];
  }
  double total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
  for (; i < n; ++i) total += values[i];
  return total;
}

bool check_weights(std::span<const EpochStream> streams) {
  if (streams.empty()) refuse("no streams");
  const bool relative = streams[0].weight.proportion.has_value();
  for (std::size_t i = 0; i < streams.size(); ++i) {
    const StreamWeight& weight = streams[i].weight;
    const auto fail = [&](const std::string& what) {
      refuse(fmt::format("stream {}: {}", i, what));
    };
    if (weight.proportion.has_value() + weight.repeat.has_value() + weight.choose.has_value() > 1) {
      fail("more than one of proportion, repeat and choose");
    }
    if (weight.proportion.has_value() != relative) {
      fail("proportion does not go with streams that have another weight or none");
    }
    for (const auto& [name, value] : {std::pair("proportion", weight.proportion.value_or(0)),
                                      {"repeat", weight.repeat.value_or(0)},
                                      {"choose", static_cast<double>(weight.choose.value_or(0))}}) {
      if (!(value >= 0) || !std::isfinite(value))
        fail(fmt::format("{} is {}, not a number from 0 on", name, value));
    }
    if (std::any_of(streams[i].shard_sizes.begin(), streams[i].shard_sizes.end(),
                    [](std::int64_t size) { return size < 0; })) {
      fail("a shard of negative size");
    }
    if (sum(streams[i].shard_sizes) == 0) fail("it holds no samples");
  }
  return relative;
}

// The epoch's samples over the streams by weight; what truncation leaves goes to random ones.
void share_by_proportion(StreamShares& shares, std::int64_t seed) {
  const double total = pairwise_sum(shares.proportion);
  if (!(total > 0)) refuse("the proportions of all streams are 0");
  if (!std::isfinite(total)) refuse("the proportions of all streams are too large together");
  for (double& proportion : shares.proportion) {
    proportion /= total;
    shares.choose.push_back(
        static_cast<std::int64_t>(static_cast<double>(shares.epoch_size) * proportion));
  }
  const std::int64_t shortfall = shares.epoch_size - sum(shares.choose);
  const std::int64_t count = static_cast<std::int64_t>(shares.choose.size());
  if (shortfall < 0 || shortfall > count) {
    refuse(fmt::format("an epoch of {} samples cannot be shared by these proportions",
                       shares.epoch_size));
  }
  NumpyRng rng(static_cast<std::uint64_t>(seed));
  for (const std::int64_t stream : rng.choice(count, shortfall)) {
    ++shares.choose[static_cast<std::size_t>(stream)];
  }
}

}  // namespace

std::int64_t parse_sample_count(const std::string& text) {
  constexpr std::string_view kUnits = "kmbt";
  std::string digits = text;
  double unit = 1;
  if (!digits.empty()) {
    const char last = static_cast<char>(std::tolower(static_cast<unsigned char>(digits.back())));
    if (const std::size_t which = kUnits.find(last); which != std::string_view::npos) {
      unit = std::pow(1000.0, static_cast<double>(which + 1));
      digits.pop_back();
    }
  }
  const std::size_t point = digits.find('.');
  std::string whole = digits;
  if (point != std::string::npos && unit > 1) whole.erase(point, 1);
  if (whole.empty() || whole.find_first_not_of("0123456789") != std::string::npos) {
    refuse(fmt::format("'{}' is not a number of samples", text), "write 1000, 10k, 1.5m or 2b");
  }
  const double value = std::strtod(digits.c_str(), nullptr) * unit;
  if (value >= 0x1p53) refuse(fmt::format("'{}' samples are too many", text));
  return static_cast<std::int64_t>(value);
}

StreamShares share_epoch(std::span<const EpochStream> streams,
                         std::optional<std::int64_t> epoch_size, std::int64_t seed) {
  if (seed < 0) refuse(fmt::format("a shuffle seed of {}", seed));
  if (epoch_size && *epoch_size < 0) refuse(fmt::format("an epoch of {} samples", *epoch_size));
  const bool relative = check_weights(streams);
  const bool wants_size = epoch_size.value_or(0) > 0;
  bool weighted = false;
  StreamShares shares;
  for (const EpochStream& stream : streams) {
    const StreamWeight& weight = stream.weight;
    weighted = weighted || weight.proportion || weight.repeat || weight.choose;
    shares.epoch_size += sum(stream.shard_sizes);
  }
  if (relative || (!weighted && wants_size)) {
    if (wants_size) shares.epoch_size = *epoch_size;
    for (const EpochStream& stream : streams) {
      shares.proportion.push_back(relative ? *stream.weight.proportion
                                           : static_cast<double>(sum(stream.shard_sizes)));
    }
    share_by_proportion(shares, seed);
    return shares;
  }
  if (wants_size) {
    refuse("epoch_size goes with proportions, or with streams without weights",
           "remove it, or weigh the streams by proportion");
  }
  double total = 0;
  for (const EpochStream& stream : streams) {
    const std::int64_t samples = sum(stream.shard_sizes);
    const double repeated = stream.weight.repeat.value_or(1) * static_cast<double>(samples);
    total += repeated;
    if (total >= 0x1p53) {
      refuse(fmt::format("stream {}: repeat is {}: more than 2^53 samples an epoch",
                         shares.choose.size(), stream.weight.repeat.value_or(1)));
    }
    shares.choose.push_back(stream.weight.repeat ? static_cast<std::int64_t>(repeated)
                                                 : stream.weight.choose.value_or(samples));
  }
  shares.epoch_size = sum(shares.choose);
  if (shares.epoch_size <= 0) refuse("the streams give no samples");
  for (const std::int64_t choose : shares.choose) {
    shares.proportion.push_back(static_cast<double>(choose) /
                                static_cast<double>(shares.epoch_size));
  }
  return shares;
}

}  // namespace dropless::train
