// The matrix products of a dropless MoE layer on one GPU, every compiled variant, against dense
// cuBLAS of equal FLOPs and against one cuBLAS call per expert.
//
// Everything of a product is timed in one loop, one launch of each in turn, an event pair around
// each launch, nothing waiting between: clocks and power are the same for all. Prints the median
// and TFLOP/s of useful work (2 R N K, R = T K rows; tiles' padding does not count).
//
//   grouped_gemm_cuda_benchmark [--json FILE] [--rounds N] [--routing uniform|random|zipf]
//                               [--shape NAME] [--op NAME] [--widths 4,8,16]
//
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "benchmarks/cublas.h"
#include "benchmarks/cuda_benchmark.h"
#include "dropless/activation.h"
#include "dropless/error.h"
#include "src/cuda/kernels.h"
#include "tests/cuda/gpu_support.h"

namespace dropless::benchmarks {
namespace {

using cuda::GemmConfig;
using testing::DeviceBuffer;
const Device kGpu{DeviceType::kCuda, 0};

struct Settings : Selection {
  Settings() : Selection{.routing = "random", .rounds = 11} {}
  std::string json;
  std::vector<int> widths{8};
};

std::string name_of(const GemmConfig& c) {
  return std::to_string(c.block_m) + "x" + std::to_string(c.block_n) + " s" +
         std::to_string(c.stages) + " e" + std::to_string(c.slots) + " c" +
         std::to_string(c.cluster_m) + "x" + std::to_string(c.cluster_n) + " r" +
         std::to_string(c.raster_width);
}

class Runner {
 public:
  explicit Runner(Settings settings) : settings_(std::move(settings)) {}

  void run() {
    if (!settings_.json.empty()) json_ = std::fopen(settings_.json.c_str(), "w");
    if (json_ != nullptr)
      std::fprintf(json_, "{\"card\": \"%s\", \"results\": [", testing::gpu_name());
    std::printf("card: %s; routing: %s; rounds: %d\n", testing::gpu_name(),
                settings_.routing.c_str(), settings_.rounds);
    for (const Shape& shape : kShapes) {
      if (settings_.wants(shape)) run_shape(shape);
    }
    if (json_ != nullptr) {
      std::fprintf(json_, "\n]}\n");
      std::fclose(json_);
    }
  }

 private:
  void run_shape(const Shape& shape) {
    const std::int64_t rows = shape.rows(), experts = shape.experts, d = shape.d, f = shape.f;
    rows_ = route(shape, settings_.routing);
    offsets_.assign(1, 0);
    for (auto r : rows_) offsets_.push_back(offsets_.back() + r);
    DeviceBuffer offsets_E1(offsets_.size() * 8);
    offsets_E1.upload(offsets_);
    DeviceBuffer tiles_128(cuda::row_tiles_bytes(rows, experts, 128));
    DeviceBuffer tiles_256(cuda::row_tiles_bytes(rows, experts, 256));
    cuda::build_row_tiles(offsets_E1.as<std::int64_t>(), experts, 128, tiles_128.get(), nullptr);
    cuda::build_row_tiles(offsets_E1.as<std::int64_t>(), experts, 256, tiles_256.get(), nullptr);
    offsets_E1_ = offsets_E1.as<std::int64_t>();
    tiles_128_ = tiles_128.get();
    tiles_256_ = tiles_256.get();
    DeviceBuffer tokens_R(rows * 4);
    tokens_R.upload(tokens_of(shape));
    tokens_R_ = tokens_R.as<std::int32_t>();

    DeviceBuffer wide(rows * 2 * f * 2), narrow(rows * d * 2), weights(experts * 2 * f * d * 2);
    testing::fill_random_bf16(wide.get(), rows * 2 * f, 1, 1.0f);
    testing::fill_random_bf16(narrow.get(), rows * d, 2, 1.0f);
    testing::fill_random_bf16(weights.get(), experts * 2 * f * d, 3, 0.05f);
    {
      DeviceBuffer out(rows * std::max(2 * f, d) * 2);
      forward(shape, "up", narrow.get(), weights.get(), false, d, 2 * f, out.get());
      up_activation(shape, narrow.get(), weights.get(), wide.get(), out.get());
      forward(shape, "down", wide.get(), weights.get(), true, f, d, out.get());
      forward(shape, "d_act", narrow.get(), weights.get(), false, d, f, out.get());
      activation_grad(shape, narrow.get(), weights.get(), wide.get(), out.get());
      forward(shape, "d_x", wide.get(), weights.get(), true, 2 * f, d, out.get());
    }
    DeviceBuffer out(experts * 2 * f * d * 2);
    weight_grad(shape, "d_w1", wide.get(), narrow.get(), 2 * f, d, out.get());
    weight_grad(shape, "d_w2", wide.get(), narrow.get(), f, d, out.get());
  }

  bool wanted(const char* op) const { return settings_.wants(op); }

  // The config at every asked-for raster width.
  std::vector<GemmConfig> expand(GemmConfig config) const {
    std::vector<GemmConfig> all;
    for (int width : settings_.widths) {
      config.raster_width = width;
      all.push_back(config);
    }
    return all;
  }

  void forward(const Shape& shape, const char* op, const void* a, const void* b, bool b_is_EKN,
               std::int64_t k, std::int64_t n, void* out) {
    if (!wanted(op)) return;
    const std::int64_t rows = shape.rows(), experts = shape.experts;
    std::vector<Candidate> candidates;
    if (cublas_.available()) {
      candidates.push_back(
          {"dense", [=, this] { cublas_.gemm(false, !b_is_EKN, rows, n, k, a, b, out); }, {}});
      candidates.push_back({"loop",
                            [=, this] {
                              for (std::int64_t e = 0; e < experts; ++e) {
                                if (rows_[e] == 0) continue;
                                cublas_.gemm(false, !b_is_EKN, rows_[e], n, k,
                                             at(a, offsets_[e] * k), at(b, e * n * k),
                                             at(out, offsets_[e] * n));
                              }
                            },
                            {}});
    }
    const ConstTensorView weights =
        b_is_EKN ? ConstTensorView(b, DType::kBFloat16, {experts, k, n}, kGpu)
                 : ConstTensorView(b, DType::kBFloat16, {experts, n, k}, kGpu);
    for (const GemmConfig& base : cuda::kGroupedGemmVariants) {
      for (const GemmConfig& config : expand(base)) {
        candidates.push_back({name_of(config),
                              [=, this] {
                                cuda::grouped_gemm(
                                    {a, DType::kBFloat16, {rows, k}, kGpu}, weights, b_is_EKN,
                                    config.block_m == 128 ? tiles_128_ : tiles_256_,
                                    {out, DType::kBFloat16, {rows, n}, kGpu}, config, nullptr);
                              },
                              {}});
      }
    }
    report(shape, op, candidates, 2.0 * rows * n * k);
  }

  // Of each expert's rows ascending tokens, as dispatch orders them.
  std::vector<std::int32_t> tokens_of(const Shape& shape) const {
    std::vector<std::int32_t> tokens;
    std::mt19937_64 random(5);
    for (const std::int64_t count : rows_) {
      std::uniform_real_distribution<double> unit(0.0, 1.0);
      for (std::int64_t i = 0; i < count; ++i) {
        tokens.push_back(static_cast<std::int32_t>((i + unit(random)) / count * shape.tokens));
      }
    }
    return tokens;
  }

  TensorView routed(void* data, std::int64_t width) const {
    return {data, DType::kBFloat16, {rows(), width}, kGpu};
  }
  std::int64_t rows() const { return offsets_.back(); }

  // The up projection alone, then with SwiGLU: pre-activations and activations stored, or the
  // activations alone.
  void up_activation(const Shape& shape, const void* x, const void* w, void* planes, void* act) {
    if (!wanted("up_swiglu")) return;
    const std::int64_t d = shape.d, f = shape.f, experts = shape.experts;
    const ConstTensorView x_RD(x, DType::kBFloat16, {rows(), d}, kGpu);
    const ConstTensorView x_TD(x, DType::kBFloat16, {shape.tokens, d}, kGpu);
    ConstTensorView w1(w, DType::kBFloat16, {experts, f, d}, kGpu);
    w1.stride[0] = 2 * f * d;
    ConstTensorView v1 = w1;
    v1.data = at(w, f * d);
    const TensorView gate = routed(planes, f), up = routed(at(planes, rows() * f), f);
    std::vector<Candidate> candidates;
    if (cublas_.available()) {
      candidates.push_back(
          {"dense", [=, this] { cublas_.gemm(false, true, rows(), 2 * f, d, x, w, planes); }, {}});
    }
    for (const std::int32_t* tokens : {static_cast<const std::int32_t*>(nullptr), tokens_R_}) {
      const std::string suffix = tokens == nullptr ? "" : " gather";
      candidates.push_back({"save" + suffix,
                            [=, this] {
                              cuda::grouped_gemm_activation(
                                  Activation::kSilu, tokens == nullptr ? x_RD : x_TD, tokens, w1,
                                  v1, tiles_128_, gate, up, routed(act, f), nullptr);
                            },
                            {}});
    }
    report(shape, "up_swiglu", candidates, 2.0 * rows() * 2 * f * d);
  }

  void activation_grad(const Shape& shape, const void* d_out, const void* w2, void* planes,
                       void* act) {
    if (!wanted("d_swiglu")) return;
    const std::int64_t d = shape.d, f = shape.f, experts = shape.experts;
    DeviceBuffer scores(rows() * 4);
    DeviceBuffer d_scores((f / cuda::kActivationGradColumns + 1) * rows() * 4);
    testing::fill_random_fp32(scores.get(), rows(), 9, 1.0f);
    // Made afresh: the up projection may have left other values.
    testing::fill_random_bf16(planes, rows() * 2 * f, 1, 1.0f);
    const TensorView gate = routed(planes, f), up = routed(at(planes, rows() * f), f);
    std::vector<Candidate> candidates;
    if (cublas_.available()) {
      candidates.push_back(
          {"dense", [=, this] { cublas_.gemm(false, true, rows(), f, d, d_out, w2, act); }, {}});
    }
    candidates.push_back(
        {"grad",
         [&, this] {
           cuda::grouped_gemm_activation_grad(
               Activation::kSilu, {d_out, DType::kBFloat16, {shape.tokens, d}, kGpu}, tokens_R_,
               {w2, DType::kBFloat16, {experts, f, d}, kGpu}, scores.as<float>(), tiles_128_, gate,
               up, routed(act, f), d_scores.as<float>(), nullptr);
         },
         {}});
    report(shape, "d_swiglu", candidates, 2.0 * rows() * f * d);
    testing::fill_random_bf16(planes, rows() * 2 * f, 1, 1.0f);
  }

  void weight_grad(const Shape& shape, const char* op, const void* a, const void* b, std::int64_t m,
                   std::int64_t n, void* out) {
    if (!wanted(op)) return;
    const std::int64_t rows = shape.rows(), experts = shape.experts;
    std::vector<Candidate> candidates;
    if (cublas_.available()) {
      candidates.push_back(
          {"dense", [=, this] { cublas_.gemm(true, false, m, n, rows, a, b, out); }, {}});
      candidates.push_back({"loop",
                            [=, this] {
                              for (std::int64_t e = 0; e < experts; ++e) {
                                if (rows_[e] == 0) continue;
                                cublas_.gemm(true, false, m, n, rows_[e], at(a, offsets_[e] * m),
                                             at(b, offsets_[e] * n), at(out, e * m * n));
                              }
                            },
                            {}});
    }
    for (const GemmConfig& base : cuda::kWeightGradVariants) {
      for (const GemmConfig& config : expand(base)) {
        candidates.push_back({name_of(config),
                              [=, this] {
                                cuda::grouped_gemm_weight_grad(
                                    {a, DType::kBFloat16, {rows, m}, kGpu},
                                    {b, DType::kBFloat16, {rows, n}, kGpu}, offsets_E1_,
                                    {out, DType::kBFloat16, {experts, m, n}, kGpu}, false, config,
                                    nullptr);
                              },
                              {}});
      }
    }
    report(shape, op, candidates, 2.0 * rows * m * n);
  }

  void report(const Shape& shape, const char* op, std::vector<Candidate>& candidates,
              double flops) {
    time_interleaved(candidates, settings_.rounds);
    double dense = 0.0;
    std::printf("%s %s\n", shape.name, op);
    for (const Candidate& candidate : candidates) {
      const double ms = candidate.ms[candidate.ms.size() / 2];
      const double tflops = flops / ms * 1e-9;
      if (candidate.name == "dense") dense = tflops;
      std::printf("  %-28s %8.3f ms (%.3f .. %.3f) %6.0f TFLOP/s  %5.1f %% of dense\n",
                  candidate.name.c_str(), ms, candidate.ms.front(), candidate.ms.back(), tflops,
                  dense > 0.0 ? 100.0 * tflops / dense : 0.0);
      if (json_ != nullptr) {
        std::fprintf(
            json_,
            "%s\n{\"shape\": \"%s\", \"op\": \"%s\", \"routing\": \"%s\", \"kernel\": \"%s\", "
            "\"ms\": %.5f, \"min_ms\": %.5f, \"max_ms\": %.5f, \"tflops\": %.2f}",
            first_ ? "" : ",", shape.name, op, settings_.routing.c_str(), candidate.name.c_str(),
            ms, candidate.ms.front(), candidate.ms.back(), tflops);
        first_ = false;
      }
    }
    std::fflush(stdout);
  }

  static const void* at(const void* base, std::int64_t elements) {
    return static_cast<const char*>(base) + elements * 2;
  }
  static void* at(void* base, std::int64_t elements) {
    return static_cast<char*>(base) + elements * 2;
  }

  Settings settings_;
  Cublas cublas_;
  std::FILE* json_ = nullptr;
  bool first_ = true;
  std::vector<std::int64_t> rows_;
  std::vector<std::int64_t> offsets_;
  const std::int64_t* offsets_E1_ = nullptr;
  const void* tiles_128_ = nullptr;
  const void* tiles_256_ = nullptr;
  const std::int32_t* tokens_R_ = nullptr;
};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::stringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

Settings parse(int argc, char** argv) {
  Settings settings;
  Options options = settings.options();
  options["--json"] = text(settings.json);
  options["--widths"] = [&](const std::string& list) {
    settings.widths.clear();
    for (const std::string& part : split(list)) positive(settings.widths.emplace_back())(part);
  };
  read_options(argc, argv, options);
  return settings;
}

}  // namespace
}  // namespace dropless::benchmarks

int main(int argc, char** argv) {
  return dropless::benchmarks::run_program([&] {
    const auto settings = dropless::benchmarks::parse(argc, argv);
    if (!dropless::testing::gpu_supported()) {
      std::printf("no GPU of compute capability 8.0 or later: nothing to measure\n");
      return;
    }
    dropless::benchmarks::Runner(settings).run();
  });
}
