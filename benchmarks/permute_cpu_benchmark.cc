// Dispatch order, gather and combine on the CPU, with their backwards: milliseconds and GB/s beside a copy of 64 MB. Bytes are the
// fewest that must move: gather reads T rows and writes R, combine reads R and writes T.
//
//   permute_cpu_benchmark [fp32|bf16|fp16|fp64] [seconds per case]
#include "dropless/permute.h"

#include <cstdio>
#include <cstdlib>

#include "benchmarks/cpu_benchmark.h"

int main(int argc, char** argv) {
  using namespace dropless;
  using namespace dropless::benchmarks;
  const DType dtype = dtype_of(argc > 1 ? argv[1] : "fp32");
  const DType sums = dtype == DType::kFloat64 ? dtype : DType::kFloat32;
  const double budget = argc > 2 ? std::atof(argv[2]) : 1;
  for (const auto& [T, D, E, K] :
       {std::array<std::int64_t, 4>{4096, 512, 8, 2}, {2048, 1024, 64, 8}}) {
    Memory memory;
    const std::int64_t R = T * K;
    const TensorView indices = memory.tensor(DType::kInt32, {T, K}),
                     rows = memory.tensor(DType::kInt32, {T, K}),
                     offsets = memory.tensor(DType::kInt64, {E + 1}),
                     tokens = memory.tensor(DType::kInt32, {R}),
                     weights = memory.tensor(sums, {T, K}, 1),
                     d_weights = memory.tensor(sums, {T, K}), x = memory.tensor(dtype, {T, D}, 1),
                     routed = memory.tensor(dtype, {R, D}, 1), out = memory.tensor(dtype, {T, D}),
                     d_routed = memory.tensor(dtype, {R, D});
    std::mt19937 random(1);
    for (std::int64_t i = 0; i < R; ++i) {
      // k experts in a row from a random one on: distinct.
      auto* at = static_cast<std::int32_t*>(indices.data) + i;
      *at = i % K == 0 ? static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(E))
                       : (at[-1] + 1) % static_cast<std::int32_t>(E);
    }
    const std::size_t bytes = dispatch_order_workspace_bytes(T, E);
    void* const space = memory.bytes(bytes);
    std::printf("T %lld D %lld E %lld K %lld %s\n", static_cast<long long>(T),
                static_cast<long long>(D), static_cast<long long>(E), static_cast<long long>(K),
                dtype_name(dtype));
    const auto times = seconds_in_turn(
        {[&] { dispatch_order(indices, rows, offsets, tokens, space, bytes); },
         [&] { gather(x, rows, d_routed); }, [&] { gather_backward(routed, rows, out); },
         [&] { combine(routed, weights, rows, out); },
         [&] { combine_backward(routed, weights, rows, x, d_routed, d_weights); }, memory.copy()},
        budget);
    const double copied = memory.copied_bytes() / times.back().wall;
    const double row = static_cast<double>(D) * static_cast<double>(dtype_bytes(dtype));
    const auto t = static_cast<double>(T), r = static_cast<double>(R);
    print_moved("dispatch_order", times[0], 12 * r, copied);
    print_moved("gather", times[1], (t + r) * row, copied);
    print_moved("gather_backward", times[2], (t + r) * row, copied);
    print_moved("combine", times[3], (t + r) * row, copied);
    print_moved("combine_backward", times[4], (t + 2 * r) * row, copied);
  }
}
