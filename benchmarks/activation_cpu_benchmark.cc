// Activations on the CPU, forward and backward, plain and gated: milliseconds and GB/s beside a copy of 64 MB.
//
//   activation_cpu_benchmark [fp32|bf16|fp16|fp64] [seconds per case]
#include "dropless/activation.h"

#include <cstdio>
#include <cstdlib>

#include "benchmarks/cpu_benchmark.h"

int main(int argc, char** argv) {
  using namespace dropless;
  using namespace dropless::benchmarks;
  const DType dtype = dtype_of(argc > 1 ? argv[1] : "fp32");
  const double budget = argc > 2 ? std::atof(argv[2]) : 1;
  constexpr std::int64_t R = 8192, F = 1024;
  Memory memory;
  const auto rows = [&](double scale) { return memory.tensor(dtype, {R, F}, scale); };
  const TensorView gate = rows(1), up = rows(1), d_a = rows(1), a = rows(0), d_gate = rows(0),
                   d_up = rows(0);
  const double tensor = static_cast<double>(R * F) * static_cast<double>(dtype_bytes(dtype));
  std::printf("R %lld F %lld %s\n", static_cast<long long>(R), static_cast<long long>(F),
              dtype_name(dtype));
  const char* const names[] = {"silu", "gelu_tanh", "gelu", "relu", "quick_gelu"};
  for (int i = 0; i < 5; ++i) {
    const auto activation = static_cast<Activation>(i);
    const auto times = seconds_in_turn(
        {[&] { activation_forward(activation, gate, {}, a); },
         [&] { activation_forward(activation, gate, up, a); },
         [&] { activation_backward(activation, gate, {}, d_a, d_gate, {}); },
         [&] { activation_backward(activation, gate, up, d_a, d_gate, d_up); }, memory.copy()},
        budget);
    const double copied = memory.copied_bytes() / times.back().wall;
    std::printf(" %s\n", names[i]);
    print_moved("forward", times[0], 2 * tensor, copied);
    print_moved("forward, gated", times[1], 3 * tensor, copied);
    print_moved("backward", times[2], 3 * tensor, copied);
    print_moved("backward, gated", times[3], 5 * tensor, copied);
  }
}
