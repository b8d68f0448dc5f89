// Speed of the whole layer on the CPU: forward, and forward + backward, in GFLOP/s of its matrix
// products.
//
//   moe_cpu_benchmark [fp32|bf16|fp16|fp64] [seconds per case]
//
// Flops counted: 2 T K D F per matrix product of the experts (3 forward, 9 forward + backward for
// GLU).
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "benchmarks/cpu_benchmark.h"
#include "dropless/moe.h"

namespace {

using dropless::DType;
using dropless::TensorView;
using dropless::benchmarks::Memory;
using dropless::benchmarks::print;
using dropless::benchmarks::Seconds;
using dropless::benchmarks::seconds_of;

void run(std::int64_t T, std::int64_t D, std::int64_t F, std::int64_t E, std::int64_t K,
         DType dtype, double budget) {
  Memory memory;
  const dropless::MoEConfig config{
      .num_experts = E, .top_k = K, .d_model = D, .d_ffn = F, .route = {.normalize_p = 1}};
  const DType sums = dtype == DType::kFloat64 ? dtype : DType::kFloat32;
  const auto tensor = [&](std::initializer_list<std::int64_t> dims, double scale = 0) {
    return memory.tensor(dtype, dims, scale);
  };
  const TensorView x = tensor({T, D}, 1), out = tensor({T, D}), d_out = tensor({T, D}, 1);
  const dropless::MoEWeights weights{tensor({E, D}, 0.02), tensor({E, F, D}, 0.02),
                                     tensor({E, F, D}, 0.02), tensor({E, F, D}, 0.02)};
  const dropless::MoESaved saved{tensor({T * K, F}),
                                 tensor({T * K, F}),
                                 memory.tensor(sums, {T, K}),
                                 memory.tensor(DType::kInt32, {T, K}),
                                 memory.tensor(DType::kInt32, {T, K}),
                                 memory.tensor(DType::kInt64, {E + 1})};
  const dropless::MoEGradients grads{tensor({T, D}), tensor({E, D}), tensor({E, F, D}),
                                     tensor({E, F, D}), tensor({E, F, D})};
  const TensorView losses = memory.tensor(sums, {2}), d_losses = memory.tensor(sums, {2}, 1);
  const std::size_t forward_bytes = moe_forward_workspace_bytes(config, T, dtype);
  const std::size_t backward_bytes = moe_backward_workspace_bytes(config, T, dtype);
  void* workspace = memory.bytes(std::max(forward_bytes, backward_bytes));

  const auto forward = [&] {
    moe_forward(config, x, weights, out, losses, {}, saved, workspace, forward_bytes);
  };
  const Seconds forward_time = seconds_of(forward, budget);
  const Seconds both_time = seconds_of(
      [&] {
        forward();
        moe_backward(config, x, weights, saved, d_out, d_losses, grads, workspace, backward_bytes);
      },
      budget);
  const double product = 2e-9 * static_cast<double>(T * K * D * F);
  std::printf("T %lld D %lld F %lld E %lld K %lld %s\n", static_cast<long long>(T),
              static_cast<long long>(D), static_cast<long long>(F), static_cast<long long>(E),
              static_cast<long long>(K), dropless::dtype_name(dtype));
  print("forward", forward_time, 3 * product);
  print("forward + backward", both_time, 9 * product);
}

}  // namespace

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "fp32";
  const double budget = argc > 2 ? std::atof(argv[2]) : 2;
  const DType dtype = dropless::benchmarks::dtype_of(name);
  run(2048, 256, 512, 8, 2, dtype, budget);
  run(4096, 128, 256, 8, 2, dtype, budget);
  run(2048, 512, 1024, 16, 4, dtype, budget);
  run(1024, 1024, 2048, 8, 2, dtype, budget);
  return 0;
}
