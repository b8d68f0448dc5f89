// What the CPU benchmarks share: memory filled with random numbers, and medians of times.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "dropless/view.h"

namespace dropless::benchmarks {

// Zero-initialised, aligned memory that outlives the views of it.
class Memory {
 public:
  TensorView tensor(DType dtype, std::initializer_list<std::int64_t> dims, double scale = 0) {
    TensorView view(nullptr, dtype, dims);
    view.data = bytes(view.numel() * dtype_bytes(dtype));
    for (std::int64_t i = 0; scale != 0 && i < view.numel(); ++i)
      set(view, i, scale * normal_(rng_));
    return view;
  }
  void* bytes(std::size_t count) {
    const std::size_t rounded = (count + 63) / 64 * 64 + 64;
    blocks_.emplace_back(std::aligned_alloc(64, rounded), &std::free);
    std::memset(blocks_.back().get(), 0, rounded);
    return blocks_.back().get();
  }
  // 64 MB from one place to another, and the bytes that moves.
  std::function<void()> copy() {
    constexpr std::size_t kBytes = std::size_t{64} << 20;
    return [from = bytes(kBytes), to = bytes(kBytes)] { std::memcpy(to, from, kBytes); };
  }
  static double copied_bytes() { return 2.0 * (64 << 20); }

 private:
  static void set(TensorView& view, std::int64_t i, double value) {
    const float single = static_cast<float>(value);
    std::uint32_t bits;
    std::memcpy(&bits, &single, 4);
    if (view.dtype == DType::kFloat64) {
      static_cast<double*>(view.data)[i] = value;
    } else if (view.dtype == DType::kFloat32) {
      static_cast<float*>(view.data)[i] = single;
    } else if (view.dtype == DType::kBFloat16) {
      static_cast<std::uint16_t*>(view.data)[i] = static_cast<std::uint16_t>(bits >> 16);
    } else {  // binary16 for normal values of moderate size, truncated
      const std::uint32_t magnitude = bits & 0x7fffffffu;
      const std::uint32_t half = magnitude < 0x38800000u ? 0 : (magnitude - 0x38000000u) >> 13;
      static_cast<std::uint16_t*>(view.data)[i] =
          static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | half);
    }
  }

  std::mt19937_64 rng_{1};
  std::normal_distribution<double> normal_;
  std::vector<std::unique_ptr<void, decltype(&std::free)>> blocks_;
};

// Medians over calls of the time that passed and of the processor time of all threads.
struct Seconds {
  double wall, cpu;
};

inline double median(std::vector<double>& values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Of each call, all in turn within a round: what slows the machine for a while meets them all.
inline std::vector<Seconds> seconds_in_turn(const std::vector<std::function<void()>>& calls,
                                            double budget) {
  using Clock = std::chrono::steady_clock;
  std::vector<std::vector<double>> wall(calls.size()), cpu(calls.size());
  const auto start = Clock::now();
  for (const auto& call : calls) call();
  for (int round = 0;
       round < 5 || std::chrono::duration<double>(Clock::now() - start).count() < budget; ++round) {
    for (std::size_t i = 0; i < calls.size(); ++i) {
      const std::clock_t cpu_begin = std::clock();
      const auto begin = Clock::now();
      calls[i]();
      wall[i].push_back(std::chrono::duration<double>(Clock::now() - begin).count());
      cpu[i].push_back(static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC);
    }
  }
  std::vector<Seconds> seconds;
  for (std::size_t i = 0; i < calls.size(); ++i) {
    seconds.push_back({median(wall[i]), median(cpu[i])});
  }
  return seconds;
}

inline Seconds seconds_of(const std::function<void()>& call, double budget) {
  return seconds_in_turn({call}, budget)[0];
}

inline void print(const char* what, Seconds seconds, double gflop) {
  std::printf("  %-18s %9.3f ms %7.1f GFLOP/s, %6.1f per processor second\n", what,
              seconds.wall * 1e3, gflop / seconds.wall, gflop / seconds.cpu);
}

// `copied`: bytes per second of a copy.
inline void print_moved(const char* what, Seconds seconds, double bytes, double copied) {
  std::printf("  %-18s %9.3f ms %7.1f GB/s, %4.2f of copy\n", what, seconds.wall * 1e3,
              1e-9 * bytes / seconds.wall, bytes / seconds.wall / copied);
}

// fp32, bf16, fp16 or fp64, as programs take it for an argument.
inline DType dtype_of(const char* name) {
  const std::pair<const char*, DType> types[] = {{"fp32", DType::kFloat32},
                                                 {"bf16", DType::kBFloat16},
                                                 {"fp16", DType::kFloat16},
                                                 {"fp64", DType::kFloat64}};
  for (const auto& [known, type] : types) {
    if (std::strcmp(name, known) == 0) return type;
  }
  std::fprintf(stderr, "error: unknown type %s\nhint: one of: fp32, bf16, fp16, fp64\n", name);
  std::exit(2);
}

}  // namespace dropless::benchmarks
