// Block-sparse products on one GPU against the grouped GEMM on the same rows and FLOPs.
//
// For each layer of docs/benchmarks.md, R = T k rows in E experts of F columns: `diagonal` is the
// experts' own topology, `random` one of R x F / density elements whose blocks are drawn with that
// density, so that it has about as many. Everything of a product is timed in one loop, one launch of
// each in turn. Block-sparse launches include what they make of their topology. Prints medians and
// TFLOP/s of the blocks that are there.
//
//   block_sparse_cuda_benchmark [--rounds N] [--shape NAME] [--op NAME] [--density 0.25]
//                               [--routing uniform|random|zipf]
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/cuda_benchmark.h"
#include "dropless/block_sparse.h"
#include "dropless/error.h"
#include "src/cuda/kernels.h"
#include "tests/cuda/gpu_support.h"

namespace dropless::benchmarks {
namespace {

using testing::DeviceBuffer;
const Device kGpu{DeviceType::kCuda, 0};
constexpr std::int64_t kBlock = 128;

struct Settings : Selection {
  Settings() : Selection{.routing = "uniform", .rounds = 9} {}
  double density = 0.25;
};

// A topology on the GPU, with a workspace for dense sides of `dense_size`.
class GpuTopology {
 public:
  GpuTopology(std::int64_t dense_size, std::int64_t block_rows, std::int64_t block_columns,
              const std::vector<std::int32_t>& row_indices,
              const std::vector<std::int32_t>& column_indices,
              const std::vector<std::int32_t>& offsets)
      : rows_(block_rows), columns_(block_columns), blocks_(row_indices.size()) {
    arrays_.reserve(6);
    for (const auto* values : {&row_indices, &column_indices, &offsets}) {
      arrays_.emplace_back(values->size() * 4).upload(*values);
    }
    for (const std::int64_t size : {blocks_, columns_ + 1, blocks_}) arrays_.emplace_back(size * 4);
    transpose_topology(view());
    workspace_ = std::make_unique<DeviceBuffer>(block_sparse_workspace_bytes(view(), dense_size));
  }

  BlockTopology view() const {
    const auto array = [&](int i, std::int64_t size) {
      return TensorView(arrays_[i].get(), DType::kInt32, {size}, kGpu);
    };
    return {rows_ * kBlock,    columns_ * kBlock,      kBlock,
            array(0, blocks_), array(1, blocks_),      array(2, rows_ + 1),
            array(3, blocks_), array(4, columns_ + 1), array(5, blocks_)};
  }
  std::int64_t blocks() const { return blocks_; }
  std::int64_t columns() const { return columns_ * kBlock; }
  void* workspace() const { return workspace_->get(); }
  std::size_t workspace_bytes() const { return workspace_->bytes(); }

 private:
  std::int64_t rows_, columns_, blocks_;
  std::vector<DeviceBuffer> arrays_;
  std::unique_ptr<DeviceBuffer> workspace_;
};

// Blocks where present(row, column).
template <class Present>
GpuTopology make_topology(std::int64_t dense_size, std::int64_t rows, std::int64_t columns,
                          Present present) {
  std::vector<std::int32_t> row_indices, column_indices, offsets{0};
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      if (!present(i, j)) continue;
      row_indices.push_back(static_cast<std::int32_t>(i));
      column_indices.push_back(static_cast<std::int32_t>(j));
    }
    offsets.push_back(static_cast<std::int32_t>(row_indices.size()));
  }
  return {dense_size, rows, columns, row_indices, column_indices, offsets};
}

class Runner {
 public:
  explicit Runner(Settings settings) : settings_(std::move(settings)) {}

  void run() {
    std::printf("card: %s; routing: %s; density: %g; rounds: %d\n", testing::gpu_name(),
                settings_.routing.c_str(), settings_.density, settings_.rounds);
    for (const Shape& shape : kShapes) {
      if (settings_.wants(shape)) run_shape(shape);
    }
  }

 private:
  struct Layer {
    std::int64_t R, d, F, E;
    GpuTopology diagonal, random;
    DeviceBuffer offsets_E1, row_tiles, x_RD, data, weights, out;
  };

  // Each expert's rows are whole blocks: as many for all products.
  void run_shape(const Shape& shape) {
    std::vector<std::int64_t> offsets{0};
    std::vector<int> experts;  // of each block row
    for (const std::int64_t rows : route(shape, settings_.routing)) {
      const std::int64_t blocks = (rows + kBlock - 1) / kBlock;
      experts.insert(experts.end(), blocks, static_cast<int>(offsets.size()) - 1);
      offsets.push_back(offsets.back() + blocks * kBlock);
    }
    const std::int64_t R = offsets.back(), d = shape.d, F = shape.f, E = shape.experts;
    const std::int64_t per_expert = F / kBlock;
    const auto columns = static_cast<std::int64_t>(F / settings_.density) / kBlock;
    std::mt19937_64 rng(3);
    std::bernoulli_distribution drawn(settings_.density);
    Layer x{
        R,
        d,
        F,
        E,
        make_topology(d, R / kBlock, E * per_expert,
                      [&](std::int64_t i, std::int64_t j) { return j / per_expert == experts[i]; }),
        make_topology(d, R / kBlock, columns,
                      [&](std::int64_t, std::int64_t) { return drawn(rng); }),
        DeviceBuffer(offsets.size() * 8),
        DeviceBuffer(cuda::row_tiles_bytes(R, E, 128)),
        DeviceBuffer(R * d * 2),
        DeviceBuffer((R * F + R * F / 4) * 2),  // room for more blocks than expected
        DeviceBuffer(std::max(E * F, columns * kBlock) * d * 2),
        DeviceBuffer(std::max({R * d, R * F + R * F / 4, E * F * d, columns * kBlock * d}) * 2)};
    if (x.random.blocks() * kBlock * kBlock > R * F + R * F / 4) {
      throw Error(ErrorKind::kInternal, "the random topology has more blocks than expected");
    }
    x.offsets_E1.upload(offsets);
    cuda::build_row_tiles(x.offsets_E1.as<std::int64_t>(), E, 128, x.row_tiles.get(), nullptr);
    testing::fill_random_bf16(x.x_RD.get(), R * d, 1, 1.0f);
    testing::fill_random_bf16(x.data.get(), R * F + R * F / 4, 2, 1.0f);
    testing::fill_random_bf16(x.weights.get(), std::max(E * F, columns * kBlock) * d, 3, 0.05f);
    products(shape.name, x);
  }

  static ConstTensorView view(const DeviceBuffer& buffer,
                              std::initializer_list<std::int64_t> dims) {
    return {buffer.get(), DType::kBFloat16, dims, kGpu};
  }
  static TensorView output(const DeviceBuffer& buffer, std::initializer_list<std::int64_t> dims) {
    return {buffer.get(), DType::kBFloat16, dims, kGpu};
  }

  void products(const char* shape, const Layer& x) {
    const std::int64_t R = x.R, d = x.d, F = x.F, E = x.E;
    const auto grouped = [&](bool b_is_EKN, std::int64_t k, std::int64_t n) {
      return [&x, b_is_EKN, R, E, k, n] {
        cuda::grouped_gemm(view(k == x.d ? x.x_RD : x.data, {R, k}),
                           b_is_EKN ? view(x.weights, {E, k, n}) : view(x.weights, {E, n, k}),
                           b_is_EKN, x.row_tiles.get(), output(x.out, {R, n}),
                           cuda::choose_grouped_gemm(n), nullptr);
      };
    };
    const auto weight_grad = [&](const DeviceBuffer& a, std::int64_t m, const DeviceBuffer& b,
                                 std::int64_t n) {
      return [&x, &a, &b, R, E, m, n] {
        cuda::grouped_gemm_weight_grad(view(a, {R, m}), view(b, {R, n}),
                                       x.offsets_E1.as<std::int64_t>(), output(x.out, {E, m, n}),
                                       false, cuda::choose_weight_grad(n), nullptr);
      };
    };
    const auto data = [&](const GpuTopology& t) { return view(x.data, {t.blocks(), 128, 128}); };

    compare(shape, "sdd", "x w^T", x, grouped(false, d, F), [&](const GpuTopology& t) {
      sdd(view(x.x_RD, {R, d}), false, view(x.weights, {t.columns(), d}), true, t.view(),
          output(x.out, {t.blocks(), 128, 128}), t.workspace(), t.workspace_bytes());
    });
    compare(shape, "dsd", "s w", x, grouped(true, F, d), [&](const GpuTopology& t) {
      dsd(data(t), false, t.view(), view(x.weights, {t.columns(), d}), false, output(x.out, {R, d}),
          t.workspace(), t.workspace_bytes());
    });
    compare(shape, "dsd_t", "s^T x", x, weight_grad(x.data, F, x.x_RD, d),
            [&](const GpuTopology& t) {
              dsd(data(t), true, t.view(), view(x.x_RD, {R, d}), false,
                  output(x.out, {t.columns(), d}), t.workspace(), t.workspace_bytes());
            });
    compare(shape, "dds", "x^T s", x, weight_grad(x.x_RD, d, x.data, F), [&](const GpuTopology& t) {
      dds(view(x.x_RD, {R, d}), true, data(t), false, t.view(), output(x.out, {d, t.columns()}),
          t.workspace(), t.workspace_bytes());
    });
    compare(shape, "dds_t", "w^T s^T", x, grouped(true, F, d), [&](const GpuTopology& t) {
      dds(view(x.weights, {t.columns(), d}), true, data(t), true, t.view(), output(x.out, {d, R}),
          t.workspace(), t.workspace_bytes());
    });
  }

  template <class Product>
  void compare(const char* shape, const char* op, const char* formula, const Layer& x,
               std::function<void()> grouped, Product product) {
    if (!settings_.wants(op)) return;
    std::vector<Candidate> candidates{{"grouped", std::move(grouped), {}},
                                      {"diagonal", [&] { product(x.diagonal); }, {}},
                                      {"random", [&] { product(x.random); }, {}}};
    time_interleaved(candidates, settings_.rounds);
    double base = 0;
    std::printf("%s %s: %s\n", shape, op, formula);
    for (const Candidate& c : candidates) {
      const std::int64_t blocks = c.name == "random" ? x.random.blocks() : x.diagonal.blocks();
      const double ms = c.ms[c.ms.size() / 2];
      const double tflops = 2e-9 * static_cast<double>(blocks * kBlock * kBlock) * x.d / ms;
      if (c.name == "grouped") base = tflops;
      std::printf("  %-10s %8.3f ms (%.3f .. %.3f) %6.0f TFLOP/s  %5.1f %% of grouped\n",
                  c.name.c_str(), ms, c.ms.front(), c.ms.back(), tflops, 100.0 * tflops / base);
    }
    std::fflush(stdout);
  }

  Settings settings_;
};

Settings parse(int argc, char** argv) {
  Settings settings;
  Options options = settings.options();
  options["--density"] = [&](const std::string& value) {
    settings.density = std::atof(value.c_str());
    if (settings.density > 0 && settings.density <= 1) return;
    throw Error(ErrorKind::kInvalidArgument, "--density " + value, "above 0, at most 1");
  };
  read_options(argc, argv, options);
  return settings;
}

}  // namespace
}  // namespace dropless::benchmarks

int main(int argc, char** argv) {
  return dropless::benchmarks::run_program([&] {
    const auto settings = dropless::benchmarks::parse(argc, argv);
    if (!dropless::testing::gpu_is_hopper()) {
      std::printf("no Hopper GPU: nothing to measure\n");
      return;
    }
    dropless::benchmarks::Runner(settings).run();
  });
}
