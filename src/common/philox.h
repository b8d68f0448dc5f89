// Philox4x32-10, a counter-based random generator: four words as a function of a position and a
// key, with no state to hand from one to the next (Salmon, Moraes, Dror, Shaw: "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <array>
#include <cstdint>

namespace dropless {

// The counter is (position, stream), 64 bits each, low words first; so is the key.
inline std::array<std::uint32_t, 4> philox(std::uint64_t position, std::uint64_t stream,
                                           std::uint64_t key) {
  const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
  std::array<std::uint32_t, 4> word{low(position), high(position), low(stream), high(stream)};
  std::uint32_t key0 = low(key), key1 = high(key);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * word[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * word[2];
    word = {high(product1) ^ word[1] ^ key0, low(product1), high(product0) ^ word[3] ^ key1,
            low(product0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return word;
}

// 2 u - 1 for u = (word + 1/2) / 2^32: in (-1, 1), symmetric, exact.
inline double symmetric_unit(std::uint32_t word) {
  return (2.0 * static_cast<double>(word) + 1.0) * 0x1p-32 - 1.0;
}

}  // namespace dropless
