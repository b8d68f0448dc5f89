// PCG64: M. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms
// for Random Number Generation", 2014. SeedSequence: her "randutils" seeder as numpy uses it.
#include "train/data/rng.h"

#include <array>
#include <numeric>
#include <unordered_set>

namespace dropless::train {
namespace {

constexpr std::uint32_t kInitA = 0x43b0d7e5, kMultA = 0x931e8875;
constexpr std::uint32_t kInitB = 0x8b51f9dd, kMultB = 0x58f38ded;
constexpr std::uint32_t kMixLeft = 0xca01f9dd, kMixRight = 0x4973f715;
constexpr int kShift = 16;
constexpr std::size_t kPoolWords = 4;

class SeedSequence {
 public:
  explicit SeedSequence(std::uint64_t seed) {
    // A 64-bit seed is at most two words, so the pool always takes all of the entropy.
    const std::array<std::uint32_t, kPoolWords> entropy = {
        static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32), 0, 0};
    for (std::size_t i = 0; i < kPoolWords; ++i) pool_[i] = hash(entropy[i]);
    for (std::size_t source = 0; source < kPoolWords; ++source) {
      for (std::size_t target = 0; target < kPoolWords; ++target) {
        if (source != target) pool_[target] = mix(pool_[target], hash(pool_[source]));
      }
    }
  }

  std::array<std::uint64_t, 4> generate() const {
    std::array<std::uint64_t, 4> out{};
    std::uint32_t constant = kInitB;
    for (std::size_t i = 0; i < 8; ++i) {
      std::uint32_t word = pool_[i % kPoolWords] ^ constant;
      constant *= kMultB;
      word *= constant;
      word ^= word >> kShift;
      out[i / 2] |= static_cast<std::uint64_t>(word) << (32 * (i % 2));
    }
    return out;
  }

 private:
  std::uint32_t hash(std::uint32_t word) {
    word ^= constant_;
    constant_ *= kMultA;
    word *= constant_;
    return word ^ (word >> kShift);
  }
  static std::uint32_t mix(std::uint32_t x, std::uint32_t y) {
    const std::uint32_t word = kMixLeft * x - kMixRight * y;
    return word ^ (word >> kShift);
  }

  std::uint32_t constant_ = kInitA;
  std::array<std::uint32_t, kPoolWords> pool_{};
};

}  // namespace

NumpyRng::NumpyRng(std::uint64_t seed) {
  const auto words = SeedSequence(seed).generate();
  const Uint128 start = (static_cast<Uint128>(words[0]) << 64) | words[1];
  increment_ = (((static_cast<Uint128>(words[2]) << 64) | words[3]) << 1) | 1;
  step();
  state_ += start;
  step();
}

std::uint64_t NumpyRng::masked(std::uint64_t max) {
  if (max == 0) return 0;
  const std::uint64_t mask = mask_of(max);
  for (;;) {
    const std::uint64_t draw = (max <= kMax32 ? next32() : next64()) & mask;
    if (draw <= max) return draw;
  }
}

std::uint64_t NumpyRng::lemire(std::uint64_t max) {
  if (max == 0) return 0;
  if (max == ~std::uint64_t{0}) return next64();
  if (max == kMax32) return next32();
  const std::uint64_t range = max + 1;
  if (max < kMax32) {
    std::uint64_t product = next32() * range;
    if ((product & kMax32) < range) {
      const std::uint64_t threshold = (kMax32 - max) % range;
      while ((product & kMax32) < threshold) product = next32() * range;
    }
    return product >> 32;
  }
  Uint128 product = static_cast<Uint128>(next64()) * range;
  if (static_cast<std::uint64_t>(product) < range) {
    const std::uint64_t threshold = (~std::uint64_t{0} - max) % range;
    while (static_cast<std::uint64_t>(product) < threshold) {
      product = static_cast<Uint128>(next64()) * range;
    }
  }
  return static_cast<std::uint64_t>(product >> 64);
}

std::int64_t NumpyRng::integers(std::int64_t low, std::int64_t high) {
  // Unsigned arithmetic: the range may span more than int64 holds.
  const std::uint64_t offset = static_cast<std::uint64_t>(low);
  return static_cast<std::int64_t>(offset + lemire(static_cast<std::uint64_t>(high) - 1 - offset));
}

std::vector<std::int64_t> NumpyRng::permutation(std::int64_t n) {
  std::vector<std::int64_t> items(static_cast<std::size_t>(n));
  std::iota(items.begin(), items.end(), std::int64_t{0});
  shuffle(std::span(items));
  return items;
}

std::vector<std::int64_t> NumpyRng::choice(std::int64_t n, std::int64_t k) {
  constexpr std::int64_t kTailShuffleFrom = 10000, kTailShuffleShare = 50;
  if (k == 0) return {};
  if (n > kTailShuffleFrom && k > n / kTailShuffleShare) {
    std::vector<std::int64_t> items(static_cast<std::size_t>(n));
    std::iota(items.begin(), items.end(), std::int64_t{0});
    const std::int64_t first = n - k > 1 ? n - k : 1;
    for (std::int64_t i = n - 1; i >= first; --i) {
      std::swap(items[static_cast<std::size_t>(i)], items[lemire(static_cast<std::uint64_t>(i))]);
    }
    return {items.end() - k, items.end()};
  }
  // Floyd's sampling, then a shuffle of the result.
  std::vector<std::int64_t> picked;
  std::unordered_set<std::int64_t> seen;
  picked.reserve(static_cast<std::size_t>(k));
  for (std::int64_t j = n - k; j < n; ++j) {
    std::int64_t pick = static_cast<std::int64_t>(lemire(static_cast<std::uint64_t>(j)));
    if (!seen.insert(pick).second) {
      pick = j;
      seen.insert(j);
    }
    picked.push_back(pick);
  }
  for (std::size_t i = picked.size(); i-- > 1;) std::swap(picked[i], picked[lemire(i)]);
  return picked;
}

}  // namespace dropless::train
