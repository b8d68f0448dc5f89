// Damaged copies of a file's bytes: flips, cuts, doubled and swapped parts, odd numbers. With
// DROPLESS_NIGHTLY far more of them; a failure names its seed.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>

namespace dropless::train {

inline std::string mutated(const std::string& bytes, std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&](std::size_t n) { return n == 0 ? 0 : random() % n; };
  std::string out = bytes;
  for (std::size_t times = 1 + below(3); times > 0 && !out.empty(); --times) {
    const std::size_t at = below(out.size()), length = std::min(below(40), out.size() - at);
    switch (below(6)) {
      case 0:
        out[at] = static_cast<char>(out[at] ^ (1 << below(8)));
        break;
      case 1:
        out.resize(at);
        break;
      case 2:
        out.erase(at, length);
        break;
      case 3:
        out.insert(at, out.substr(below(out.size()), length));
        break;
      case 4:
        out[at] = static_cast<char>(below(256));
        break;
      default:
        out.replace(at, length, below(2) == 0 ? "99999999999" : "-1");
        break;
    }
  }
  return out;
}

inline std::uint32_t mutations(std::uint32_t usual) {
  return std::getenv("DROPLESS_NIGHTLY") != nullptr ? 100 * usual : usual;
}

}  // namespace dropless::train
