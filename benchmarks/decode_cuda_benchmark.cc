// Products of a few rows on one GPU, as a pass over one token has them: microseconds of one of a row of them, each
// with weights of its own behind a norm, as one CUDA graph; beside cuBLAS in the same place, and the rate at which the
// weights are read over a copy's (bytes read and written).
//
//   decode_cuda_benchmark [--rounds N]
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <vector>

#include "benchmarks/cublas.h"
#include "benchmarks/cuda_benchmark.h"
#include "dropless/decode.h"
#include "dropless/error.h"
#include "src/cuda/check.h"
#include "tests/cuda/gpu_support.h"

namespace dropless::benchmarks {
namespace {

using testing::DeviceBuffer;
const Device kGpu{DeviceType::kCuda, 0};

struct ProductShape {
  const char* name;
  std::int64_t n, k;
};
constexpr ProductShape kProducts[] = {
    {"olmoe qkv", 6144, 2048},   {"olmoe out", 2048, 2048}, {"olmoe head", 50304, 2048},
    {"mixtral qkv", 6144, 4096}, {"dbrx qkv", 8192, 6144},
};

// What one graph launch of `queue` takes, in turns with the others.
class Graph {
 public:
  explicit Graph(const std::function<void(cudaStream_t)>& queue) {
    DROPLESS_CUDA_CHECK(cudaStreamCreate(&stream_));
    queue(stream_);
    DROPLESS_CUDA_CHECK(cudaStreamSynchronize(stream_));
    cudaGraph_t graph;
    DROPLESS_CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    queue(stream_);
    DROPLESS_CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
    DROPLESS_CUDA_CHECK(cudaGraphInstantiate(&graph_, graph, 0));
    cudaGraphDestroy(graph);
  }
  ~Graph() {
    cudaGraphExecDestroy(graph_);
    cudaStreamDestroy(stream_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch() const { DROPLESS_CUDA_CHECK(cudaGraphLaunch(graph_, nullptr)); }

 private:
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

double copy_gb_per_s(int rounds) {
  constexpr std::size_t kBytes = 1 << 30;
  DeviceBuffer from(kBytes), to(kBytes);
  std::vector<Candidate> copy{{"copy",
                               [&] {
                                 DROPLESS_CUDA_CHECK(cudaMemcpyAsync(to.get(), from.get(), kBytes,
                                                                     cudaMemcpyDeviceToDevice,
                                                                     nullptr));
                               },
                               {}}};
  time_interleaved(copy, rounds);
  return 2e-6 * static_cast<double>(kBytes) / copy[0].ms[copy[0].ms.size() / 2];
}

void run_shape(const ProductShape& shape, std::int64_t rows, int rounds, double copy,
               const Cublas& cublas) {
  const std::int64_t N = shape.n, K = shape.k, bytes = 2 * N * K;
  const std::int64_t layers = std::clamp<std::int64_t>((400LL << 20) / bytes, 2, 16);
  DeviceBuffer w(layers * bytes), x(rows * K * 4), normed(rows * K * 2), weight(K * 4),
      out(rows * N * 2);
  testing::fill_random_bf16(w.get(), layers * N * K, 1, 0.02f);
  testing::fill_random_fp32(x.get(), rows * K, 2, 1.0f);
  testing::fill_random_fp32(weight.get(), K, 3, 1.0f);
  const auto pass = [&](cudaStream_t stream, bool ours, bool products) {
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      decode_add_norm({x.get(), DType::kFloat32, {rows, K}, kGpu}, {},
                      {true, 1e-5, {weight.get(), DType::kFloat32, {K}, kGpu}, {}},
                      {normed.get(), DType::kBFloat16, {rows, K}, kGpu}, stream);
      void* matrix = static_cast<char*>(w.get()) + layer * bytes;
      if (!products) continue;
      if (ours) {
        decode_product({normed.get(), DType::kBFloat16, {rows, K}, kGpu},
                       {matrix, DType::kBFloat16, {N, K}, kGpu}, {},
                       {out.get(), DType::kBFloat16, {rows, N}, kGpu}, stream);
      } else {
        cublas.set_stream(stream);
        cublas.gemm(false, true, rows, N, K, normed.get(), matrix, out.get());
      }
    }
  };
  const Graph ours([&](cudaStream_t stream) { pass(stream, true, true); });
  const Graph norms([&](cudaStream_t stream) { pass(stream, true, false); });
  std::vector<Candidate> candidates{{"ours", [&] { ours.launch(); }, {}},
                                    {"norms", [&] { norms.launch(); }, {}}};
  std::unique_ptr<Graph> theirs;
  if (cublas.available()) {
    theirs = std::make_unique<Graph>([&](cudaStream_t stream) { pass(stream, false, true); });
    candidates.push_back({"cublas", [&] { theirs->launch(); }, {}});
  }
  time_interleaved(candidates, rounds);
  const auto microseconds = [&](std::size_t i) {
    return 1e3 * candidates[i].ms[candidates[i].ms.size() / 2] / static_cast<double>(layers);
  };
  std::printf("%-12s rows %lld  norm + product %6.2f us (%.2f of copy)  norm alone %5.2f us",
              shape.name, static_cast<long long>(rows), microseconds(0),
              static_cast<double>(bytes) * 1e-3 / microseconds(0) / copy, microseconds(1));
  if (theirs)
    std::printf("  with cuBLAS %6.2f us, ratio %.2f", microseconds(2),
                microseconds(2) / microseconds(0));
  std::printf("\n");
}

}  // namespace
}  // namespace dropless::benchmarks

int main(int argc, char** argv) {
  using namespace dropless::benchmarks;
  return run_program([&] {
    int rounds = 31;
    read_options(argc, argv, {{"--rounds", positive(rounds)}});
    if (!dropless::testing::gpu_available()) {
      std::printf("no GPU: nothing to measure\n");
      return;
    }
    const double copy = copy_gb_per_s(rounds);
    std::printf("card: %s, copy %.0f GB/s\n", dropless::testing::gpu_name(), copy);
    const Cublas cublas;
    for (const ProductShape& shape : kProducts) {
      for (const std::int64_t rows : {1, 2, 4, 8}) run_shape(shape, rows, rounds, copy, cublas);
    }
  });
}
