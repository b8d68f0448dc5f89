// Speed of the whole layer on the CPU: forward, and forward + backward, in GFLOP/s of its matrix
// products.
//
//   moe_cpu_benchmark [fp32|bf16|fp16|fp64] [seconds per case]
//
// Flops counted: 2 T K D F per matrix product of the experts (3 forward, 9 forward + backward for
// GLU).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <random>
#include <vector>

#include "dropless/moe.h"

namespace {

using dropless::DType;
using dropless::TensorView;

// Zero-initialised, aligned memory that outlives the views of it.
class Memory {
 public:
  TensorView tensor(DType dtype, std::initializer_list<std::int64_t> dims, double scale = 0) {
    TensorView view(nullptr, dtype, dims);
    view.data = bytes(view.numel() * dropless::dtype_bytes(dtype));
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

double median(std::vector<double>& values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

template <class Call>
Seconds seconds_of(Call&& call, double budget) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> wall, cpu;
  const auto start = Clock::now();
  call();
  while (wall.size() < 5 || std::chrono::duration<double>(Clock::now() - start).count() < budget) {
    const std::clock_t cpu_begin = std::clock();
    const auto begin = Clock::now();
    call();
    wall.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    cpu.push_back(static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC);
  }
  return {median(wall), median(cpu)};
}

void print(const char* what, Seconds seconds, double gflop) {
  std::printf("  %-18s %9.3f ms %7.1f GFLOP/s, %6.1f per processor second\n", what,
              seconds.wall * 1e3, gflop / seconds.wall, gflop / seconds.cpu);
}

void run(std::int64_t T, std::int64_t D, std::int64_t F, std::int64_t E, std::int64_t K,
         DType dtype, double budget) {
  Memory memory;
  const dropless::MoEConfig config{
      .num_experts = E, .top_k = K, .d_model = D, .d_ffn = F, .normalize_p = 1};
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
  const DType dtype = !std::strcmp(name, "bf16")   ? DType::kBFloat16
                      : !std::strcmp(name, "fp16") ? DType::kFloat16
                      : !std::strcmp(name, "fp64") ? DType::kFloat64
                                                   : DType::kFloat32;
  run(2048, 256, 512, 8, 2, dtype, budget);
  run(4096, 128, 256, 8, 2, dtype, budget);
  run(2048, 512, 1024, 16, 4, dtype, budget);
  run(1024, 1024, 2048, 8, 2, dtype, budget);
  return 0;
}
