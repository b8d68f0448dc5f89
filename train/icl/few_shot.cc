#include "train/icl/few_shot.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <set>
#include <utility>

namespace dropless::train {

// ---- random.Random ----

PythonRandom::PythonRandom(std::uint64_t seed) {
  constexpr std::size_t N = 624;
  std::vector<std::uint32_t> key{static_cast<std::uint32_t>(seed)};
  if (seed >> 32) key.push_back(static_cast<std::uint32_t>(seed >> 32));
  state_[0] = 19650218;
  for (std::uint32_t i = 1; i < N; ++i) {
    state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
  }
  std::size_t i = 1, j = 0;
  const auto step = [&](std::uint32_t factor) {
    state_[i] ^= (state_[i - 1] ^ (state_[i - 1] >> 30)) * factor;
  };
  const auto advance = [&] {
    if (++i < N) return;
    state_[0] = state_[N - 1];
    i = 1;
  };
  for (std::size_t k = std::max(N, key.size()); k > 0; --k) {
    step(1664525u);
    state_[i] += key[j] + static_cast<std::uint32_t>(j);
    if (++j == key.size()) j = 0;
    advance();
  }
  for (std::size_t k = N - 1; k > 0; --k) {
    step(1566083941u);
    state_[i] -= static_cast<std::uint32_t>(i);
    advance();
  }
  state_[0] = 0x80000000u;
  next_ = N;
}

void PythonRandom::refill() {
  constexpr std::size_t N = 624, M = 397;
  for (std::size_t i = 0; i < N; ++i) {
    const std::uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % N] & 0x7fffffffu);
    state_[i] = state_[(i + M) % N] ^ (y >> 1) ^ ((y & 1) ? 0x9908b0dfu : 0u);
  }
  next_ = 0;
}

std::uint32_t PythonRandom::next32() {
  if (next_ == state_.size()) refill();
  std::uint32_t y = state_[next_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

std::int64_t PythonRandom::below(std::int64_t n) {
  const int bits = std::bit_width(static_cast<std::uint64_t>(n));
  const auto draw = [&] {
    if (bits <= 32) return static_cast<std::int64_t>(next32() >> (32 - bits));
    const std::uint64_t low = next32();
    return static_cast<std::int64_t>(low | std::uint64_t{next32() >> (64 - bits)} << 32);
  };
  std::int64_t value = draw();
  while (value >= n) value = draw();
  return value;
}

std::vector<std::int64_t> PythonRandom::sample(std::int64_t n, std::int64_t k) {
  std::vector<std::int64_t> drawn;
  // From a list where a set of the drawn would be larger than that.
  double set_size = 21;
  if (k > 5)
    set_size += std::pow(4, std::ceil(std::log(3.0 * static_cast<double>(k)) / std::log(4)));
  if (static_cast<double>(n) <= set_size) {
    std::vector<std::int64_t> pool(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) pool[static_cast<std::size_t>(i)] = i;
    for (std::int64_t i = 0; i < k; ++i) {
      const auto j = static_cast<std::size_t>(below(n - i));
      drawn.push_back(pool[j]);
      pool[j] = pool[static_cast<std::size_t>(n - i - 1)];
    }
    return drawn;
  }
  std::set<std::int64_t> selected;
  for (std::int64_t i = 0; i < k; ++i) {
    std::int64_t j = below(n);
    while (!selected.insert(j).second) j = below(n);
    drawn.push_back(j);
  }
  return drawn;
}

// ---- set ----

PythonSet::PythonSet(const std::vector<std::int64_t>& values) : table_(8, kEmpty) {
  for (const std::int64_t value : values) add(value);
}

std::size_t PythonSet::place_of(std::int64_t value, bool or_removed) const {
  constexpr std::size_t kLinearProbes = 9;
  const std::size_t mask = table_.size() - 1;
  auto perturb = static_cast<std::uint64_t>(value);  // the hash of a small integer is itself
  std::size_t i = perturb & mask;
  for (;;) {
    const std::size_t last = i + kLinearProbes <= mask ? i + kLinearProbes : i;
    for (std::size_t at = i; at <= last; ++at) {
      if (table_[at] == kEmpty || table_[at] == value) return at;
      if (or_removed && table_[at] == kRemoved) return at;
    }
    perturb >>= 5;
    i = (i * 5 + 1 + perturb) & mask;
  }
}

void PythonSet::add(std::int64_t value) {
  std::int64_t& place = table_[place_of(value, /*or_removed=*/true)];
  const bool reused = std::exchange(place, value) == kRemoved;
  ++used_;
  if (reused) return;
  ++filled_;
  const std::size_t mask = table_.size() - 1;
  if (filled_ * 5 < mask * 3) return;
  const std::vector<std::int64_t> old = values();
  std::size_t size = 8;
  while (size <= used_ * (used_ > 50000 ? 2 : 4)) size *= 2;
  table_.assign(size, kEmpty);
  filled_ = used_;
  for (const std::int64_t one : old) table_[place_of(one)] = one;
}

void PythonSet::remove(std::int64_t value) {
  table_[place_of(value)] = kRemoved;
  --used_;
}

bool PythonSet::contains(std::int64_t value) const { return table_[place_of(value)] == value; }

std::vector<std::int64_t> PythonSet::values() const {
  std::vector<std::int64_t> all;
  std::copy_if(table_.begin(), table_.end(), std::back_inserter(all),
               [](std::int64_t value) { return value >= 0; });
  return all;
}

std::vector<std::int64_t> few_shot_examples(std::int64_t size, std::int64_t num_fewshot,
                                            std::int64_t index, PythonRandom& random) {
  const std::int64_t wanted = std::min(size - 1, num_fewshot);
  PythonSet chosen(random.sample(size, wanted));
  if (!chosen.contains(index)) return chosen.values();
  chosen.remove(index);
  std::int64_t other = random.below(size);
  while (chosen.contains(other) || other == index) other = random.below(size);
  chosen.add(other);
  return chosen.values();
}

}  // namespace dropless::train
