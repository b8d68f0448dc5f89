// Router, dispatch order, gather and combine on one GPU: milliseconds and GB/s beside a plain copy.
//
// Bytes are the fewest that must move: gather reads T rows and writes R, combine reads R and writes
// T.
//
//   permute_cuda_benchmark [--rounds N]
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

#include "benchmarks/cuda_benchmark.h"
#include "src/cuda/check.h"
#include "src/cuda/kernels.h"
#include "tests/cuda/gpu_support.h"

namespace dropless::benchmarks {
namespace {

using testing::DeviceBuffer;
const Device kGpu{DeviceType::kCuda, 0};

double median_ms(const std::function<void()>& launch, int rounds) {
  cudaEvent_t begin, end;
  DROPLESS_CUDA_CHECK(cudaEventCreate(&begin));
  DROPLESS_CUDA_CHECK(cudaEventCreate(&end));
  std::vector<float> times(rounds);
  for (int i = -3; i < rounds; ++i) {
    DROPLESS_CUDA_CHECK(cudaEventRecord(begin, nullptr));
    launch();
    DROPLESS_CUDA_CHECK(cudaEventRecord(end, nullptr));
    DROPLESS_CUDA_CHECK(cudaEventSynchronize(end));
    if (i >= 0) DROPLESS_CUDA_CHECK(cudaEventElapsedTime(&times[i], begin, end));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[rounds / 2];
}

void run_shape(const Shape& shape, int rounds) {
  const std::int64_t T = shape.tokens, E = shape.experts, K = shape.k, D = shape.d, R = T * K;
  DeviceBuffer logits(T * E * 4), weights(R * 4), indices(R * 4), losses(8), counts(E * 4),
      rows(R * 4), offsets((E + 1) * 8), weights_R(R * 4), x(T * D * 2), routed(R * D * 2);
  DeviceBuffer route_space(cuda::route_workspace_bytes(T, E));
  DeviceBuffer order_space(cuda::dispatch_order_workspace_bytes(T, K, E));
  DeviceBuffer tiles(cuda::row_tiles_bytes(R, E, 128));
  testing::fill_random_fp32(logits.get(), T * E, 1, 2.0f);
  testing::fill_random_bf16(x.get(), T * D, 2, 1.0f);

  const double route_ms = median_ms(
      [&] {
        cuda::route_forward({}, nullptr, logits.as<float>(), E, T, E, K, weights.as<float>(),
                            indices.as<std::int32_t>(), losses.as<float>(),
                            counts.as<std::int32_t>(), route_space.get(), nullptr);
      },
      rounds);
  const double order_ms = median_ms(
      [&] {
        cuda::dispatch_order(indices.as<std::int32_t>(), weights.as<float>(), T, K, E,
                             rows.as<std::int32_t>(), offsets.as<std::int64_t>(), nullptr,
                             weights_R.as<float>(), order_space.get(), nullptr);
        cuda::build_row_tiles(offsets.as<std::int64_t>(), E, 128, tiles.get(), nullptr);
      },
      rounds);
  const double gather_ms = median_ms(
      [&] {
        cuda::gather({x.get(), DType::kBFloat16, {T, D}, kGpu}, rows.as<std::int32_t>(), K,
                     {routed.get(), DType::kBFloat16, {R, D}, kGpu}, nullptr);
      },
      rounds);
  const double combine_ms = median_ms(
      [&] {
        cuda::combine({routed.get(), DType::kBFloat16, {R, D}, kGpu}, weights.as<float>(),
                      rows.as<std::int32_t>(), K, false, {x.get(), DType::kBFloat16, {T, D}, kGpu},
                      nullptr);
      },
      rounds);
  const double gigabytes = 1e-9 * 2 * D * (T + R);
  // Of as many bytes in all.
  const auto half = static_cast<std::size_t>(D * (T + R));
  DeviceBuffer from(half), to(half);
  const double copy_ms = median_ms(
      [&] { cudaMemcpyAsync(to.get(), from.get(), half, cudaMemcpyDeviceToDevice, nullptr); },
      rounds);
  std::printf(
      "%-10s route %.4f ms  order+tiles %.4f ms  gather %.4f ms %5.0f GB/s  combine %.4f ms %5.0f "
      "GB/s  copy %5.0f GB/s\n",
      shape.name, route_ms, order_ms, gather_ms, gigabytes / gather_ms * 1e3, combine_ms,
      gigabytes / combine_ms * 1e3, gigabytes / copy_ms * 1e3);
}

}  // namespace
}  // namespace dropless::benchmarks

int main(int argc, char** argv) {
  return dropless::benchmarks::run_program([&] {
    int rounds = 21;
    dropless::benchmarks::read_options(argc, argv,
                                       {{"--rounds", dropless::benchmarks::positive(rounds)}});
    if (!dropless::testing::gpu_available()) {
      std::printf("no GPU: nothing to measure\n");
      return;
    }
    std::printf("card: %s\n", dropless::testing::gpu_name());
    for (const auto& shape : dropless::benchmarks::kShapes) {
      dropless::benchmarks::run_shape(shape, rounds);
    }
  });
}
