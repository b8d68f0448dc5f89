// numpy's default_rng(seed), to the bit: PCG64 (XSL-RR 128/64) seeded by SeedSequence, with the
// draws that the sample order needs. Checked against numpy 1.23 to 2.4, whose streams agree.
//
// Two bounded draws exist side by side in numpy and are not interchangeable: shuffle and
// permutation reject by a bit mask, integers and choice multiply and shift (Lemire).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace dropless::train {

class NumpyRng {
 public:
  explicit NumpyRng(std::uint64_t seed);

  std::uint64_t next64() {
    step();
    const std::uint64_t folded =
        static_cast<std::uint64_t>(state_ >> 64) ^ static_cast<std::uint64_t>(state_);
    return std::rotr(folded, static_cast<int>(state_ >> 122));
  }
  // Half a 64-bit draw, low half first. The other half waits for the next next32, whatever is drawn
  // from next64 in between.
  std::uint32_t next32() {
    if (has_half_) {
      has_half_ = false;
      return half_;
    }
    const std::uint64_t draw = next64();
    has_half_ = true;
    half_ = static_cast<std::uint32_t>(draw >> 32);
    return static_cast<std::uint32_t>(draw);
  }
  // [0, 1), 53 bits
  double next_double() { return static_cast<double>(next64() >> 11) * 0x1.0p-53; }

  // Uniform in [0, max], by masked rejection. max = 0 draws nothing.
  std::uint64_t masked(std::uint64_t max);
  // Uniform in [0, max], by Lemire's method. max = 0 draws nothing.
  std::uint64_t lemire(std::uint64_t max);

  // numpy: rng.integers(low, high), high excluded; low < high.
  std::int64_t integers(std::int64_t low, std::int64_t high);
  // numpy: rng.uniform(low, high).
  double uniform(double low, double high) { return low + (high - low) * next_double(); }
  // numpy: rng.permutation(n).
  std::vector<std::int64_t> permutation(std::int64_t n);
  // numpy: rng.choice(n, k, replace=False), 0 <= k <= n.
  std::vector<std::int64_t> choice(std::int64_t n, std::int64_t k);

  // numpy: rng.shuffle(items), for a list or a one-dimensional array.
  template <class T>
  void shuffle(std::span<T> items) {
    // What is drawn does not depend on the items: drawn some ahead, theirs are fetched meanwhile.
    std::array<std::size_t, 64> picks;
    for (std::size_t left = items.size(); left > 1;) {
      const std::size_t count = std::min(picks.size(), left - 1);
      draw_picks(left - 1, std::span(picks).first(count));
      for (std::size_t k = 0; k < count; ++k) __builtin_prefetch(&items[picks[k]], 1);
      for (std::size_t k = 0; k < count; ++k) std::swap(items[--left], items[picks[k]]);
    }
  }

 private:
  __extension__ using Uint128 = unsigned __int128;
  static constexpr std::uint64_t kMax32 = 0xffffffff;

  void step() {
    constexpr Uint128 kMultiplier =
        (static_cast<Uint128>(2549297995355413924ULL) << 64) | 4865540595714422341ULL;
    state_ = state_ * kMultiplier + increment_;
  }
  static std::uint64_t mask_of(std::uint64_t max) {
    return ~std::uint64_t{0} >> std::countl_zero(max);
  }
  // masked(max), masked(max - 1), ... of max > picks.size().
  void draw_picks(std::size_t max, std::span<std::size_t> picks) {
    if (max > kMax32) {
      for (std::size_t& pick : picks) pick = masked(max--);
      return;
    }
    // Without a branch on whether a draw is taken: that cannot be foreseen.
    for (std::size_t k = 0; k < picks.size();) {
      picks[k] = next32() & mask_of(max - k);
      k += picks[k] <= max - k ? 1 : 0;
    }
  }

  Uint128 state_ = 0;
  Uint128 increment_ = 0;
  bool has_half_ = false;
  std::uint32_t half_ = 0;
};

}  // namespace dropless::train
