// The Hopper grouped GEMM and weight gradient against plain loops: every compiled variant, both
// weight layouts, ragged, skewed and empty experts, tails in every dimension, poisoned outputs.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "dropless/error.h"
#include "src/cuda/kernels.h"
#include "tests/cuda/gpu_support.h"

namespace dropless::cuda {
namespace {

using dropless::testing::DeviceBuffer;

constexpr double kTolerance = 5e-3;      // bf16 output
constexpr double kToleranceFp32 = 1e-3;  // fp32 output
const Device kGpu{DeviceType::kCuda, 0};

struct Problem {
  std::string name;
  std::vector<std::int64_t> rows;  // of each expert
  int k;
  int n;
};

std::vector<std::int64_t> offsets_of(const Problem& problem) {
  std::vector<std::int64_t> offsets{0};
  for (std::int64_t rows : problem.rows) offsets.push_back(offsets.back() + rows);
  return offsets;
}

std::vector<Problem> problems() {
  std::mt19937 random(7);
  std::vector<std::int64_t> ragged, skewed;
  for (int e = 0; e < 16; ++e) ragged.push_back(random() % 400);
  for (int e = 0; e < 32; ++e) skewed.push_back(2000 / (e + 1) / (e % 5 == 4 ? 1000 : 1));
  return {
      {"full tiles", {256, 512, 256}, 256, 512},
      {"one row", {1}, 64, 64},
      {"one expert takes all", {0, 0, 1000, 0}, 192, 320},
      {"ragged", ragged, 520, 328},
      {"skewed with empty experts", skewed, 136, 776},
      {"small widths", {5, 0, 130, 64, 65}, 8, 8},
      {"rows around a tile", {127, 128, 129, 255, 256, 257, 63, 64, 65, 15, 16, 17}, 128, 256},
  };
}

std::string describe(const GemmConfig& c) {
  return std::to_string(c.block_m) + "x" + std::to_string(c.block_n) + " stages " +
         std::to_string(c.stages) + " cluster " + std::to_string(c.cluster_m) + "x" +
         std::to_string(c.cluster_n) + " width " + std::to_string(c.raster_width);
}

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!dropless::testing::gpu_supported())
      GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  }
};

using GroupedGemmCuda = GpuTest;
using GroupedWgradCuda = GpuTest;

class GroupedGemmOfType : public GpuTest, public ::testing::WithParamInterface<DType> {};
INSTANTIATE_TEST_SUITE_P(, GroupedGemmOfType, ::testing::Values(DType::kBFloat16, DType::kFloat16),
                         [](const auto& info) { return dtype_name(info.param); });

TEST_P(GroupedGemmOfType, MatchesPlainLoops) {
  const DType dtype = GetParam();
  for (const Problem& problem : problems()) {
    const auto offsets = offsets_of(problem);
    const auto experts = static_cast<std::int64_t>(problem.rows.size());
    const std::int64_t rows = offsets.back(), k = problem.k, n = problem.n;
    DeviceBuffer offsets_E1(offsets.size() * 8), a(rows * k * 2), b(experts * k * n * 2);
    // Rows past the last expert must stay as they are.
    DeviceBuffer out((rows + 40) * n * 2), expected(rows * n * 4);
    offsets_E1.upload(offsets);
    dropless::testing::fill_random(a.get(), dtype, rows * k, 1, 1.0f);
    dropless::testing::fill_random(b.get(), dtype, experts * k * n, 2, 1.0f);
    for (const bool b_is_EKN : {false, true}) {
      dropless::testing::reference_grouped_gemm(a.get(), b.get(), b_is_EKN,
                                                offsets_E1.as<std::int64_t>(), experts, k, n,
                                                expected.as<float>(), dtype);
      for (GemmConfig config : kGroupedGemmVariants) {
        for (const int width : {1, 8}) {
          config.raster_width = width;
          DeviceBuffer tiles(row_tiles_bytes(rows, experts, config.block_m));
          build_row_tiles(offsets_E1.as<std::int64_t>(), experts, config.block_m, tiles.get(),
                          nullptr);
          out.poison();
          const ConstTensorView weights =
              b_is_EKN ? ConstTensorView(b.get(), dtype, {experts, k, n}, kGpu)
                       : ConstTensorView(b.get(), dtype, {experts, n, k}, kGpu);
          grouped_gemm({a.get(), dtype, {rows, k}, kGpu}, weights, b_is_EKN, tiles.get(),
                       {out.get(), dtype, {rows, n}, kGpu}, config, nullptr);
          dropless::testing::synchronize();
          const double error = dropless::testing::relative_error(out, dtype, expected, rows * n);
          EXPECT_LE(error, kTolerance)
              << problem.name << ", " << (b_is_EKN ? "EKN" : "ENK") << ", " << describe(config);
          const auto all = out.download<std::uint16_t>((rows + 40) * n);
          for (std::size_t i = rows * n; i < all.size(); ++i) {
            ASSERT_EQ(all[i], 0xffff) << "wrote past the last row: " << problem.name;
          }
        }
      }
    }
  }
}

// The bias is added before rounding: against the product in fp32, of another kernel.
TEST_P(GroupedGemmOfType, AddsTheExpertsBias) {
  const DType dtype = GetParam();
  for (const Problem& problem : problems()) {
    const auto offsets = offsets_of(problem);
    const auto experts = static_cast<std::int64_t>(problem.rows.size());
    const std::int64_t rows = offsets.back(), k = problem.k, n = problem.n;
    // The bias lies in wider rows, as columns of a slab do.
    const std::int64_t pitch = n + 24;
    DeviceBuffer offsets_E1(offsets.size() * 8), a(rows * k * 2), b(experts * k * n * 2);
    DeviceBuffer bias(experts * pitch * 2), out((rows + 40) * n * 2), product(rows * n * 4);
    offsets_E1.upload(offsets);
    dropless::testing::fill_random(a.get(), dtype, rows * k, 1, 1.0f);
    dropless::testing::fill_random(b.get(), dtype, experts * k * n, 2, 1.0f);
    dropless::testing::fill_random(bias.get(), dtype, experts * pitch, 3, 20.0f);
    dropless::testing::reference_grouped_gemm(a.get(), b.get(), true, offsets_E1.as<std::int64_t>(),
                                              experts, k, n, product.as<float>(), dtype);
    auto expected = dropless::testing::values_of(product, DType::kFloat32, rows * n);
    const auto bias_EN = dropless::testing::values_of(bias, dtype, experts * pitch);
    for (std::int64_t e = 0; e < experts; ++e) {
      for (std::int64_t i = offsets[e] * n; i < offsets[e + 1] * n; ++i) {
        expected[i] += bias_EN[e * pitch + i % n];
      }
    }
    for (const GemmConfig& config : kGroupedGemmVariants) {
      DeviceBuffer tiles(row_tiles_bytes(rows, experts, config.block_m));
      build_row_tiles(offsets_E1.as<std::int64_t>(), experts, config.block_m, tiles.get(), nullptr);
      ConstTensorView bias_view(bias.get(), dtype, {experts, n}, kGpu);
      bias_view.stride[0] = pitch;
      out.poison();
      grouped_gemm({a.get(), dtype, {rows, k}, kGpu}, {b.get(), dtype, {experts, k, n}, kGpu}, true,
                   tiles.get(), {out.get(), dtype, {rows, n}, kGpu}, config, nullptr, bias_view);
      EXPECT_LE(dropless::testing::relative_error(
                    dropless::testing::values_of(out, dtype, rows * n), expected),
                kTolerance)
          << problem.name << ", " << describe(config);
      const auto all = out.download<std::uint16_t>((rows + 40) * n);
      for (std::size_t i = rows * n; i < all.size(); ++i) {
        ASSERT_EQ(all[i], 0xffff) << "wrote past the last row: " << problem.name;
      }
    }
  }
}

TEST_F(GroupedGemmCuda, IsBitEqualFromRunToRun) {
  const std::int64_t rows = 3000, k = 512, n = 1024, experts = 4;
  DeviceBuffer offsets_E1(5 * 8), a(rows * k * 2), b(experts * k * n * 2), first(rows * n * 2),
      second(rows * n * 2);
  offsets_E1.upload<std::int64_t>({0, 700, 700, 2901, 3000});
  dropless::testing::fill_random_bf16(a.get(), rows * k, 3, 1.0f);
  dropless::testing::fill_random_bf16(b.get(), experts * k * n, 4, 1.0f);
  for (const GemmConfig& config : kGroupedGemmVariants) {
    DeviceBuffer tiles(row_tiles_bytes(rows, experts, config.block_m));
    build_row_tiles(offsets_E1.as<std::int64_t>(), experts, config.block_m, tiles.get(), nullptr);
    for (DeviceBuffer* out : {&first, &second}) {
      out->poison();
      grouped_gemm({a.get(), DType::kBFloat16, {rows, k}, kGpu},
                   {b.get(), DType::kBFloat16, {experts, n, k}, kGpu}, false, tiles.get(),
                   {out->get(), DType::kBFloat16, {rows, n}, kGpu}, config, nullptr);
    }
    EXPECT_EQ(first.download<std::uint16_t>(rows * n), second.download<std::uint16_t>(rows * n))
        << describe(config);
  }
}

TEST_P(GroupedGemmOfType, WeightGradientMatchesPlainLoops) {
  const DType dtype = GetParam();
  for (const Problem& problem : problems()) {
    const auto offsets = offsets_of(problem);
    const auto experts = static_cast<std::int64_t>(problem.rows.size());
    const std::int64_t rows = offsets.back(), m = problem.k, n = problem.n;
    const std::int64_t count = experts * m * n;
    DeviceBuffer offsets_E1(offsets.size() * 8);
    // Memory after the last row is poison: a k tail that reads it gives NaN.
    DeviceBuffer a((rows + 64) * m * 2), b((rows + 64) * n * 2);
    DeviceBuffer out(count * 4), expected(count * 4);
    offsets_E1.upload(offsets);
    dropless::testing::fill_random(a.get(), dtype, rows * m, 5, 1.0f);
    dropless::testing::fill_random(b.get(), dtype, rows * n, 6, 1.0f);
    for (const GemmConfig& config : kWeightGradVariants) {
      for (const char* mode : {"16 bits", "fp32", "add"}) {
        const DType out_type = mode == std::string("16 bits") ? dtype : DType::kFloat32;
        const bool add = mode == std::string("add");
        out.poison();
        if (add) {
          dropless::testing::fill_random_fp32(out.get(), count, 9, 10.0f);
          dropless::testing::fill_random_fp32(expected.get(), count, 9, 10.0f);
        }
        dropless::testing::reference_grouped_wgrad(a.get(), b.get(), offsets_E1.as<std::int64_t>(),
                                                   experts, m, n, add, expected.as<float>(), dtype);
        grouped_gemm_weight_grad({a.get(), dtype, {rows, m}, kGpu},
                                 {b.get(), dtype, {rows, n}, kGpu}, offsets_E1.as<std::int64_t>(),
                                 {out.get(), out_type, {experts, m, n}, kGpu}, add, config,
                                 nullptr);
        dropless::testing::synchronize();
        const double error = dropless::testing::relative_error(out, out_type, expected, count);
        EXPECT_LE(error, out_type == dtype ? kTolerance : kToleranceFp32)
            << problem.name << ", " << mode << ", " << describe(config);
      }
    }
  }
}

TEST_F(GroupedWgradCuda, NoRowsAtAllGiveZeros) {
  DeviceBuffer offsets_E1(3 * 8), out(2 * 16 * 24 * 4);
  offsets_E1.upload<std::int64_t>({0, 0, 0});
  const auto weight_grad = [&](bool accumulate) {
    grouped_gemm_weight_grad(
        {nullptr, DType::kBFloat16, {0, 16}, kGpu}, {nullptr, DType::kBFloat16, {0, 24}, kGpu},
        offsets_E1.as<std::int64_t>(), {out.get(), DType::kFloat32, {2, 16, 24}, kGpu}, accumulate,
        choose_weight_grad(24), nullptr);
  };
  weight_grad(false);
  EXPECT_EQ(out.download<float>(2 * 16 * 24), std::vector<float>(2 * 16 * 24, 0.0f));
  out.upload(std::vector<float>(2 * 16 * 24, 3.0f));
  weight_grad(true);
  EXPECT_EQ(out.download<float>(2 * 16 * 24), std::vector<float>(2 * 16 * 24, 3.0f));
}

// Rows that a product gathers beside itself are those of a gather alone, and its own result is what it is without.
TEST_F(GroupedGemmCuda, GathersBeside) {
  struct Job {
    std::int64_t tokens, top_k, width, pitch;
  };
  const std::int64_t m = 136, n = 328;
  const std::vector<std::int64_t> offsets{0, 130, 130, 500, 701};
  const std::int64_t rows = offsets.back(), experts = 4;
  DeviceBuffer offsets_E1(offsets.size() * 8), a(rows * m * 2), a2(rows * m * 2), b(rows * n * 2),
      w(experts * m * n * 2), w2(experts * m * n * 2), tiles(row_tiles_bytes(rows, experts, 128));
  offsets_E1.upload(offsets);
  build_row_tiles(offsets_E1.as<std::int64_t>(), experts, 128, tiles.get(), nullptr);
  const DType bf16 = DType::kBFloat16;
  int seed = 0;
  for (const DeviceBuffer* buffer : {&a, &a2, &b, &w, &w2}) {
    dropless::testing::fill_random_bf16(buffer->get(),
                                        static_cast<std::int64_t>(buffer->bytes() / 2), ++seed, 1);
  }
  const ConstTensorView a_v(a.get(), bf16, {rows, m}, kGpu), a2_v(a2.get(), bf16, {rows, m}, kGpu),
      b_v(b.get(), bf16, {rows, n}, kGpu), w_v(w.get(), bf16, {experts, m, n}, kGpu),
      w2_v(w2.get(), bf16, {experts, m, n}, kGpu);
  const auto product = [&](int which, const DeviceBuffer& out, const GatherBeside& beside) {
    const TensorView out_RN(out.get(), bf16, {rows, n}, kGpu);
    if (which == 0) {
      grouped_gemm(a_v, w_v, true, tiles.get(), out_RN, choose_grouped_gemm(n), nullptr, {},
                   beside);
    } else if (which == 1) {
      grouped_gemm_two_terms(a_v, w_v, a2_v, w2_v, tiles.get(), out_RN, choose_grouped_gemm(n),
                             nullptr, beside);
    } else {
      grouped_gemm_weight_grad(a_v, b_v, offsets_E1.as<std::int64_t>(),
                               {out.get(), bf16, {experts, m, n}, kGpu}, false,
                               choose_weight_grad(n), nullptr, beside);
    }
    dropless::testing::synchronize();
  };
  std::mt19937 random(3);
  for (const Job& job : {Job{1, 1, 8, 8},
                         {1000, 8, 768, 2048},
                         {333, 3, 320, 328},
                         {77, 32, 328, 336},
                         {50, 40, 16, 24},
                         {5000, 2, 1000, 1000},
                         {0, 2, 64, 64}}) {
    const std::int64_t R = job.tokens * job.top_k;
    std::vector<std::int32_t> places(R);
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), random);
    for (std::size_t i = 0; i < places.size(); i += 7) places[i] = -1;  // and without a row
    DeviceBuffer rows_TK(R * 4 + 16), x(job.tokens * job.pitch * 2 + 16);
    rows_TK.upload(places);
    dropless::testing::fill_random_bf16(x.get(), job.tokens * job.pitch, 9, 1);
    ConstTensorView x_TD(x.get(), bf16, {job.tokens, job.pitch}, kGpu);
    x_TD.shape[1] = job.width;
    for (int which = 0; which < 3; ++which) {
      const std::size_t count = static_cast<std::size_t>(std::max(rows, experts * m) * n);
      DeviceBuffer out(count * 2), with(count * 2);
      DeviceBuffer expected(R * job.width * 2 + 16), got(R * job.width * 2 + 16);
      const TensorView expected_RD(expected.get(), bf16, {R, job.width}, kGpu);
      const TensorView got_RD(got.get(), bf16, {R, job.width}, kGpu);
      gather(x_TD, rows_TK.as<std::int32_t>(), job.top_k, expected_RD, nullptr);
      product(which, out, {});
      product(which, with, {x_TD, rows_TK.as<std::int32_t>(), job.top_k, got_RD});
      const auto all = [](const DeviceBuffer& buffer) {
        return buffer.download<std::uint16_t>(buffer.bytes() / 2);
      };
      EXPECT_EQ(all(got), all(expected)) << which << ", " << job.tokens << " x " << job.width;
      EXPECT_EQ(all(with), all(out)) << which << ", " << job.tokens << " x " << job.width;
    }
  }
}

// Nothing inside waits or allocates, so the calls can be captured; the graph follows new offsets.
TEST_F(GroupedGemmCuda, RunsInAGraphWithOtherOffsets) {
  const std::int64_t rows = 500, k = 128, n = 264, experts = 3;
  DeviceBuffer offsets_E1(4 * 8), a(rows * k * 2), b(experts * k * n * 2), out(rows * n * 2),
      expected(rows * n * 4), tiles(row_tiles_bytes(rows, experts, 128));
  dropless::testing::fill_random_bf16(a.get(), rows * k, 3, 1.0f);
  dropless::testing::fill_random_bf16(b.get(), experts * k * n, 4, 1.0f);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  build_row_tiles(offsets_E1.as<std::int64_t>(), experts, 128, tiles.get(), stream);
  grouped_gemm({a.get(), DType::kBFloat16, {rows, k}, kGpu},
               {b.get(), DType::kBFloat16, {experts, n, k}, kGpu}, false, tiles.get(),
               {out.get(), DType::kBFloat16, {rows, n}, kGpu}, choose_grouped_gemm(n), stream);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (const std::vector<std::int64_t>& offsets :
       {std::vector<std::int64_t>{0, 100, 101, 500}, std::vector<std::int64_t>{0, 0, 500, 500}}) {
    offsets_E1.upload(offsets);
    out.poison();
    dropless::testing::reference_grouped_gemm(a.get(), b.get(), false,
                                              offsets_E1.as<std::int64_t>(), experts, k, n,
                                              expected.as<float>());
    dropless::testing::synchronize();
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    dropless::testing::synchronize();
    EXPECT_LE(dropless::testing::relative_error_bf16(out, expected, rows * n), kTolerance);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(GroupedGemmCuda, RefusesWidthsThatTheCopyEngineCannotRead) {
  DeviceBuffer memory(1 << 16);
  EXPECT_THROW(grouped_gemm({memory.get(), DType::kBFloat16, {16, 12}, kGpu},
                            {memory.get(), DType::kBFloat16, {1, 16, 12}, kGpu}, false,
                            memory.get(), {memory.get(), DType::kBFloat16, {16, 16}, kGpu},
                            kGroupedGemmVariants[0], nullptr),
               Error);
}

}  // namespace
}  // namespace dropless::cuda
