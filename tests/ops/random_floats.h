// Normal random numbers, a function of the seed alone.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

namespace dropless::testing {

inline std::vector<float> random_floats(std::size_t count, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(rng);
  return values;
}

}  // namespace dropless::testing
