// numpy's default_rng(seed), to the bit: PCG64 (XSL-RR 128/64) seeded by SeedSequence, with the
// draws that the sample order needs. Checked against numpy 1.23 to 2.4, whose streams agree.
//
// Two bounded draws exist side by side in numpy and are not interchangeable: shuffle and
// permutation reject by a bit mask, integers and choice multiply and shift (Lemire).
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace dropless::train {

class NumpyRng {
 public:
  explicit NumpyRng(std::uint64_t seed);

  std::uint64_t next64();
  // Half a 64-bit draw, low half first. The other half waits for the next next32, whatever is drawn
  // from next64 in between.
  std::uint32_t next32();
  double next_double();  // [0, 1), 53 bits

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
    for (std::size_t i = items.size(); i-- > 1;) {
      std::swap(items[i], items[static_cast<std::size_t>(masked(i))]);
    }
  }

 private:
  __extension__ using Uint128 = unsigned __int128;
  void step();

  Uint128 state_ = 0;
  Uint128 increment_ = 0;
  bool has_half_ = false;
  std::uint32_t half_ = 0;
};

}  // namespace dropless::train
