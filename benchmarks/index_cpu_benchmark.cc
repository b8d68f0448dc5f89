// Histogram, sort and cumulative sums on the CPU: milliseconds and GB/s beside a copy of 64 MB.
//
//   index_cpu_benchmark [seconds per case]
#include "dropless/index.h"

#include <cstdio>
#include <cstdlib>

#include "benchmarks/cpu_benchmark.h"

int main(int argc, char** argv) {
  using namespace dropless;
  using namespace dropless::benchmarks;
  const double budget = argc > 1 ? std::atof(argv[1]) : 1;
  constexpr std::int64_t N = 1 << 18;
  for (const std::int64_t E : {8, 64, 1024}) {
    Memory memory;
    const DType type = DType::kInt32;
    const TensorView keys = memory.tensor(type, {N}), counts = memory.tensor(type, {E}),
                     sorted = memory.tensor(type, {N}), order = memory.tensor(type, {N}),
                     x = memory.tensor(type, {64, N / 64}),
                     sums = memory.tensor(type, {64, N / 64});
    std::mt19937 random(1);
    for (std::int64_t i = 0; i < N; ++i) {
      static_cast<std::int32_t*>(keys.data)[i] =
          static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(E));
    }
    const std::size_t bytes = sort_workspace_bytes(N, E);
    void* const space = memory.bytes(bytes);
    const auto times = seconds_in_turn(
        {[&] { histogram(keys, counts); }, [&] { sort(keys, E, sorted, order, space, bytes); },
         [&] { inclusive_cumsum(x, sums); }, [&] { exclusive_cumsum(x, sums); }, memory.copy()},
        budget);
    const double copied = memory.copied_bytes() / times.back().wall;
    constexpr double kVector = 4.0 * N;
    std::printf("N %lld E %lld\n", static_cast<long long>(N), static_cast<long long>(E));
    print_moved("histogram", times[0], kVector, copied);
    print_moved("sort", times[1], 3 * kVector, copied);
    print_moved("inclusive_cumsum", times[2], 2 * kVector, copied);
    print_moved("exclusive_cumsum", times[3], 2 * kVector, copied);
  }
}
