// Which examples stand in front of which, as LLM Foundry draws them: with CPython's random.Random,
// and in the order in which CPython walks through a set of the drawn numbers.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace dropless::train {

// CPython's random.Random(seed): MT19937 (Matsumoto and Nishimura 1998), seeded by its
// init_by_array; the draws that few-shot prompts need.
class PythonRandom {
 public:
  explicit PythonRandom(std::uint64_t seed);
  std::uint32_t next32();
  // random.choice(range(n)): uniform in [0, n); n > 0.
  std::int64_t below(std::int64_t n);
  // random.sample(range(n), k); 0 <= k <= n.
  std::vector<std::int64_t> sample(std::int64_t n, std::int64_t k);

 private:
  void refill();

  std::array<std::uint32_t, 624> state_;
  std::size_t next_ = 0;
};

// CPython's set of small non-negative integers (3.10 and later), for the order of its elements.
class PythonSet {
 public:
  explicit PythonSet(const std::vector<std::int64_t>& values);
  void add(std::int64_t value);  // not in the set
  void remove(std::int64_t value);
  bool contains(std::int64_t value) const;
  std::vector<std::int64_t> values() const;  // in the order of iteration

 private:
  static constexpr std::int64_t kEmpty = -1, kRemoved = -2;
  // Where `value` is, or the empty place where a search for it ends; `or_removed`: or an earlier one
  // whose element was removed.
  std::size_t place_of(std::int64_t value, bool or_removed = false) const;

  std::vector<std::int64_t> table_;
  std::size_t used_ = 0;    // elements
  std::size_t filled_ = 0;  // and removed ones
};

// The examples in front of example `index` of `size`: at most size - 1, never itself.
std::vector<std::int64_t> few_shot_examples(std::int64_t size, std::int64_t num_fewshot,
                                            std::int64_t index, PythonRandom& random);

}  // namespace dropless::train
