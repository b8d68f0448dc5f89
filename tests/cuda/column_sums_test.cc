// Sums of the experts' rows against double on the host: ragged and empty experts, one expert with
// most rows, widths around a CTA's 256 columns, weighed or not; the same bits on every run.
#include <gtest/gtest.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "src/cuda/kernels.h"
#include "tests/cuda/gpu_support.h"

namespace dropless::cuda {
namespace {

using dropless::testing::DeviceBuffer;
using dropless::testing::values_of;
const Device kGpu{DeviceType::kCuda, 0};

class ColumnSumsCuda : public ::testing::TestWithParam<std::tuple<DType, std::int64_t>> {
 protected:
  void SetUp() override {
    if (!dropless::testing::gpu_supported())
      GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  }
};

TEST_P(ColumnSumsCuda, MatchesDouble) {
  const auto [dtype, N] = GetParam();
  for (const std::vector<std::int64_t>& offsets :
       {std::vector<std::int64_t>{0, 1, 1, 130, 258, 400},
        std::vector<std::int64_t>{0, 0, 5000, 5000}, std::vector<std::int64_t>{0, 0, 0}}) {
    const std::int64_t E = offsets.size() - 1, R = offsets.back(), pitch = N + 16;
    DeviceBuffer offsets_E1(8 * (E + 1)), rows(R * N * 2), weights(R * 4), out(E * pitch * 2);
    const std::size_t space_bytes = column_sums_workspace_bytes(R, E, N);
    DeviceBuffer space(space_bytes + 1024);
    DeviceBuffer tiles(row_tiles_bytes(R, E, kColumnSumRows));
    offsets_E1.upload(offsets);
    dropless::testing::fill_random(rows.get(), dtype, R * N, 1, 1.0f);
    dropless::testing::fill_random(weights.get(), DType::kFloat32, R, 2, 1.0f);
    build_row_tiles(offsets_E1.as<std::int64_t>(), E, kColumnSumRows, tiles.get(), nullptr);
    const auto rows_RN = values_of(rows, dtype, R * N);
    const auto weights_R = values_of(weights, DType::kFloat32, R);
    TensorView out_EN(out.get(), dtype, {E, N}, kGpu);
    out_EN.stride[0] = pitch;
    for (const bool weighed : {false, true}) {
      std::vector<double> expected(E * N), actual(E * N);
      for (std::int64_t e = 0; e < E; ++e) {
        for (std::int64_t r = offsets[e]; r < offsets[e + 1]; ++r) {
          for (std::int64_t n = 0; n < N; ++n) {
            expected[e * N + n] += rows_RN[r * N + n] * (weighed ? weights_R[r] : 1.0);
          }
        }
      }
      std::vector<std::uint16_t> bits[2];
      for (auto& run : bits) {
        out.poison();
        space.poison();
        column_sums({rows.get(), dtype, {R, N}, kGpu}, weighed ? weights.as<float>() : nullptr,
                    offsets_E1.as<std::int64_t>(), tiles.get(), out_EN, space.get(), nullptr);
        run = out.download<std::uint16_t>(E * pitch);
        ASSERT_TRUE(dropless::testing::intact(space, space_bytes));
      }
      EXPECT_EQ(bits[0], bits[1]);
      const auto all = values_of(out, dtype, E * pitch);
      for (std::int64_t e = 0; e < E; ++e) {
        for (std::int64_t n = 0; n < N; ++n) actual[e * N + n] = all[e * pitch + n];
        for (std::int64_t n = N; n < pitch; ++n) EXPECT_EQ(bits[0][e * pitch + n], 0xffff);
      }
      EXPECT_LE(dropless::testing::relative_error(actual, expected), 5e-3);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, ColumnSumsCuda,
                         ::testing::Combine(::testing::Values(DType::kBFloat16, DType::kFloat16),
                                            ::testing::Values(8, 248, 256, 1032)),
                         [](const auto& info) {
                           return std::string(dtype_name(std::get<0>(info.param))) + "_N" +
                                  std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace dropless::cuda
