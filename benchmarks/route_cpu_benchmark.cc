// The router on the CPU, forward and backward: milliseconds, and the logits' GB/s beside a copy of 64 MB.
//
//   route_cpu_benchmark [seconds per case]
#include "dropless/route.h"

#include <cstdio>
#include <cstdlib>

#include "benchmarks/cpu_benchmark.h"

int main(int argc, char** argv) {
  using namespace dropless;
  using namespace dropless::benchmarks;
  const double budget = argc > 1 ? std::atof(argv[1]) : 1;
  for (const auto& [T, E, K] :
       {std::array<std::int64_t, 3>{16384, 8, 2}, {16384, 64, 8}, {4096, 256, 8}}) {
    Memory memory;
    const DType type = DType::kFloat32;
    const TensorView logits = memory.tensor(type, {T, E}, 1), weights = memory.tensor(type, {T, K}),
                     indices = memory.tensor(DType::kInt32, {T, K}),
                     losses = memory.tensor(type, {2}), counts = memory.tensor(DType::kInt32, {E}),
                     d_weights = memory.tensor(type, {T, K}, 1),
                     d_losses = memory.tensor(type, {2}, 1), d_logits = memory.tensor(type, {T, E});
    const std::size_t bytes = route_workspace_bytes(T, E, type);
    void* const space = memory.bytes(bytes);
    std::printf("T %lld E %lld K %lld\n", static_cast<long long>(T), static_cast<long long>(E),
                static_cast<long long>(K));
    for (const bool sigmoid : {false, true}) {
      const RouteConfig config{.score = sigmoid ? RouteScore::kSigmoid : RouteScore::kSoftmax,
                               .normalize_p = 1};
      const auto times = seconds_in_turn(
          {[&] {
             route_forward(config, logits, {}, weights, indices, losses, counts, space, bytes);
           },
           [&] { route_backward(config, logits, indices, counts, d_weights, d_losses, d_logits); },
           memory.copy()},
          budget);
      const double copied = memory.copied_bytes() / times.back().wall;
      const double read = 4.0 * static_cast<double>(T * E);
      print_moved(sigmoid ? "sigmoid" : "softmax", times[0], read, copied);
      print_moved("  backward", times[1], 2 * read, copied);
    }
  }
}
