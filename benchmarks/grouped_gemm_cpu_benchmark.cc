// Grouped products on the CPU, both transposes and the weight gradient, with rows spread evenly and by Zipf's law, in GFLOP/s.
//
//   grouped_gemm_cpu_benchmark [fp32|bf16|fp16|fp64] [seconds per case]
#include "dropless/grouped_gemm.h"

#include <cstdio>
#include <cstdlib>

#include "benchmarks/cpu_benchmark.h"

int main(int argc, char** argv) {
  using namespace dropless;
  using namespace dropless::benchmarks;
  const DType dtype = dtype_of(argc > 1 ? argv[1] : "fp32");
  const double budget = argc > 2 ? std::atof(argv[2]) : 1;
  for (const auto& [R, K, N, E] : {std::array<std::int64_t, 4>{4096, 256, 512, 8},
                                   {8192, 512, 1024, 16},
                                   {32768, 128, 256, 64}}) {
    for (const bool zipf : {false, true}) {
      Memory memory;
      const TensorView a = memory.tensor(dtype, {R, K}, 1),
                       b = memory.tensor(dtype, {E, K, N}, 0.1),
                       bt = memory.tensor(dtype, {E, N, K}, 0.1),
                       out = memory.tensor(dtype, {R, N}), d_b = memory.tensor(dtype, {E, K, N}),
                       offsets = memory.tensor(DType::kInt64, {E + 1});
      double all = 0, so_far = 0;
      for (std::int64_t e = 0; e < E; ++e) all += zipf ? 1.0 / static_cast<double>(e + 1) : 1;
      for (std::int64_t e = 0; e < E; ++e) {
        so_far += zipf ? 1.0 / static_cast<double>(e + 1) : 1;
        static_cast<std::int64_t*>(offsets.data)[e + 1] =
            e + 1 == E ? R : static_cast<std::int64_t>(static_cast<double>(R) * so_far / all);
      }
      const std::size_t bytes = grouped_gemm_workspace_bytes();
      void* const space = memory.bytes(bytes);
      const auto times =
          seconds_in_turn({[&] { grouped_gemm(a, b, false, offsets, out, space, bytes); },
                           [&] { grouped_gemm(a, bt, true, offsets, out, space, bytes); },
                           [&] { grouped_gemm_weight_grad(a, out, offsets, d_b, space, bytes); }},
                          budget);
      const double gflop = 2e-9 * static_cast<double>(R * K) * static_cast<double>(N);
      std::printf("R %lld K %lld N %lld E %lld %s%s\n", static_cast<long long>(R),
                  static_cast<long long>(K), static_cast<long long>(N), static_cast<long long>(E),
                  dtype_name(dtype), zipf ? ", Zipf" : "");
      print("a b", times[0], gflop);
      print("a b^T", times[1], gflop);
      print("weight gradient", times[2], gflop);
    }
  }
}
