// Climbs the ladder: checks every rung against the first and times all of them in turns.
//
//   ladder [--rows R] [--k K] [--n N] [--experts E] [--rounds N]      defaults: OLMoE's up projection
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "dropless/error.h"
#include "examples/ladder/ladder.h"
#include "src/cuda/check.h"
#include "src/cuda/kernels.h"

namespace dropless::ladder {
namespace {

struct Rung {
  const char* name;
  void (*launch)(const Problem&, cudaStream_t);
  bool slow;  // seconds: timed once
};
constexpr Rung kRungs[] = {
    {"1 naive", naive, true},
    {"2 shared memory", shared_memory, true},
    {"3 tensor cores", tensor_cores, false},
    {"4 async copies", async_copies, false},
    {"5 copy engine, wgmma", copy_engine, false},
    {"6 roles", roles, false},
    {"7 persistent", persistent, false},
    {"8 cluster (shipped)", cluster, false},
};

struct Options {
  long rows = 262144, k = 2048, n = 2048, experts = 64, rounds = 9;
};

class Memory {
 public:
  explicit Memory(std::size_t bytes) { DROPLESS_CUDA_CHECK(cudaMalloc(&data_, bytes)); }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// Uniform in [-1, 1), in chunks of one pattern: the values are random, their copies harmless.
void fill(__nv_bfloat16* data, std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> unit(-1.0f, 1.0f);
  std::vector<__nv_bfloat16> pattern(std::min<std::int64_t>(count, (1 << 20) - 3));
  for (auto& value : pattern) value = __float2bfloat16(unit(random));
  for (std::int64_t at = 0; at < count; at += static_cast<std::int64_t>(pattern.size())) {
    const auto length = std::min<std::int64_t>(pattern.size(), count - at);
    DROPLESS_CUDA_CHECK(cudaMemcpy(data + at, pattern.data(), length * 2, cudaMemcpyHostToDevice));
  }
}

// Where each expert's rows begin: every row's expert drawn at random, so that tiles end ragged.
std::vector<std::int64_t> draw_offsets(const Options& options) {
  std::mt19937 random(5);
  std::vector<std::int64_t> offsets(options.experts + 1, 0);
  for (long r = 0; r < options.rows; ++r) ++offsets[1 + random() % options.experts];
  for (long e = 0; e < options.experts; ++e) offsets[e + 1] += offsets[e];
  return offsets;
}

double relative_error(const std::vector<__nv_bfloat16>& actual,
                      const std::vector<__nv_bfloat16>& expected) {
  double difference = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double a = __bfloat162float(actual[i]), e = __bfloat162float(expected[i]);
    difference += (a - e) * (a - e);
    norm += e * e;
  }
  return std::sqrt(difference / norm);
}

float time_once(const Rung& rung, const Problem& problem, cudaEvent_t begin, cudaEvent_t end) {
  float ms = 0.0f;
  DROPLESS_CUDA_CHECK(cudaEventRecord(begin));
  rung.launch(problem, nullptr);
  DROPLESS_CUDA_CHECK(cudaEventRecord(end));
  DROPLESS_CUDA_CHECK(cudaEventSynchronize(end));
  DROPLESS_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
  return ms;
}

int climb(const Options& options) {
  const std::int64_t outputs = options.rows * options.n;
  Memory x(options.rows * options.k * 2), w(options.experts * options.n * options.k * 2);
  Memory out(outputs * 2), offsets((options.experts + 1) * 8);
  Memory tiles(cuda::row_tiles_bytes(options.rows, options.experts, 128));
  fill(x.as<__nv_bfloat16>(), options.rows * options.k, 1);
  fill(w.as<__nv_bfloat16>(), options.experts * options.n * options.k, 2);
  const std::vector<std::int64_t> host_offsets = draw_offsets(options);
  DROPLESS_CUDA_CHECK(cudaMemcpy(offsets.as<void>(), host_offsets.data(), host_offsets.size() * 8,
                                 cudaMemcpyHostToDevice));
  cuda::build_row_tiles(offsets.as<std::int64_t>(), options.experts, 128, tiles.as<void>(),
                        nullptr);
  const Problem problem{.x_RK = x.as<__nv_bfloat16>(),
                        .w_ENK = w.as<__nv_bfloat16>(),
                        .out_RN = out.as<__nv_bfloat16>(),
                        .row_tiles = tiles.as<void>(),
                        .most_tiles = static_cast<int>(options.rows / 128 + options.experts),
                        .rows = static_cast<int>(options.rows),
                        .n = static_cast<int>(options.n),
                        .k = static_cast<int>(options.k),
                        .experts = static_cast<int>(options.experts)};
  cudaEvent_t begin, end;
  DROPLESS_CUDA_CHECK(cudaEventCreate(&begin));
  DROPLESS_CUDA_CHECK(cudaEventCreate(&end));

  constexpr int kCount = static_cast<int>(std::size(kRungs));
  std::vector<float> ms[kCount];
  std::vector<__nv_bfloat16> expected(outputs), actual(outputs);
  double errors[kCount] = {};
  for (int i = 0; i < kCount; ++i) {
    DROPLESS_CUDA_CHECK(cudaMemset(out.as<void>(), 0xff, outputs * 2));  // NaN
    ms[i].push_back(time_once(kRungs[i], problem, begin, end));
    auto& copy = i == 0 ? expected : actual;
    DROPLESS_CUDA_CHECK(
        cudaMemcpy(copy.data(), out.as<void>(), outputs * 2, cudaMemcpyDeviceToHost));
    errors[i] = relative_error(copy, expected);
  }
  for (long round = 0; round < options.rounds; ++round) {
    for (int i = 0; i < kCount; ++i) {
      if (kRungs[i].slow) continue;
      if (round == 0) ms[i].clear();
      ms[i].push_back(time_once(kRungs[i], problem, begin, end));
    }
  }

  cudaDeviceProp device;
  DROPLESS_CUDA_CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("%s: rows %ld, k %ld, n %ld, experts %ld\n", device.name, options.rows, options.k,
              options.n, options.experts);
  std::printf("%-22s %10s %9s %7s %9s\n", "rung", "ms", "TFLOP/s", "x", "error");
  float last = 0.0f;
  bool right = true;
  for (int i = 0; i < kCount; ++i) {
    std::sort(ms[i].begin(), ms[i].end());
    const float median = ms[i][ms[i].size() / 2];
    std::printf("%-22s %10.3f %9.1f %7.2f %9.1e\n", kRungs[i].name, median,
                2.0 * outputs * options.k / median * 1e-9, last > 0.0f ? last / median : 1.0f,
                errors[i]);
    last = median;
    right = right && errors[i] < 5e-3;  // false for NaN
  }
  if (!right) std::fprintf(stderr, "a rung differs from the first by more than 5e-3\n");
  return right ? 0 : 1;
}

Options parse(int argc, char** argv) {
  Options options;
  const struct {
    const char* name;
    long* value;
    long multiple;
  } known[] = {{"--rows", &options.rows, 1},
               {"--k", &options.k, 64},
               {"--n", &options.n, 256},
               {"--experts", &options.experts, 1},
               {"--rounds", &options.rounds, 1}};
  for (int i = 1; i < argc; i += 2) {
    const auto* option = std::find_if(std::begin(known), std::end(known),
                                      [&](auto& o) { return std::strcmp(o.name, argv[i]) == 0; });
    char* rest = nullptr;
    if (option == std::end(known) || i + 1 == argc ||
        (*option->value = std::strtol(argv[i + 1], &rest, 10), *rest != '\0') ||
        *option->value < 1 || *option->value > (1L << 30) ||
        *option->value % option->multiple != 0) {
      throw Error(ErrorKind::kInvalidArgument, std::string("cannot take ") + argv[i],
                  "--rows, --experts, --rounds N; --k a multiple of 64, --n of 256", __FILE__,
                  __LINE__);
    }
  }
  return options;
}

}  // namespace
}  // namespace dropless::ladder

int main(int argc, char** argv) {
  try {
    const auto options = dropless::ladder::parse(argc, argv);
    const std::string problem = dropless::cuda::device_problem(0);
    if (!problem.empty()) {
      std::printf("nothing to climb: %s\n", problem.c_str());
      return 0;
    }
    return dropless::ladder::climb(options);
  } catch (const dropless::Error& error) {
    std::fprintf(stderr, "%s\nHINT: %s\n", error.what(), error.hint().c_str());
    return error.kind() == dropless::ErrorKind::kInvalidArgument ? 2 : 1;
  }
}
