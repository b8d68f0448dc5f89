// The router's products against double on the host: experts on either side of what one pass takes, ragged tokens and
// widths; what d_logits have below the element type's bits; the same bits on every run.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "src/cuda/kernels.h"
#include "tests/cuda/gpu_support.h"

namespace dropless::cuda {
namespace {

using dropless::testing::DeviceBuffer;
using dropless::testing::fill_random;
using dropless::testing::relative_error;
using dropless::testing::values_of;
const Device kGpu{DeviceType::kCuda, 0};

// Memory of a call, with poisoned results that begin with a row nobody may write and end with one.
struct Products {
  Products(DType type, std::int64_t tokens, std::int64_t d_model, std::int64_t experts)
      : dtype(type), T(tokens), D(d_model), E(experts) {}

  ConstTensorView x_TD() const { return {x.get(), dtype, {T, D}, kGpu}; }
  ConstTensorView router_ED() const { return {router.get(), dtype, {E, D}, kGpu}; }
  TensorView inner(const DeviceBuffer& buffer, std::int64_t rows) const {
    return {buffer.as<std::uint16_t>() + D, dtype, {rows, D}, kGpu};
  }
  std::vector<double> values(const DeviceBuffer& buffer, std::int64_t rows) const {
    const std::vector<double> all =
        values_of(buffer, dtype, static_cast<std::size_t>((rows + 2) * D));
    return {all.begin() + D, all.end() - D};
  }
  void expect_edges_intact(const DeviceBuffer& buffer, std::int64_t rows) const {
    const auto bits = buffer.download<std::uint16_t>(static_cast<std::size_t>((rows + 2) * D));
    for (std::int64_t i = 0; i < D; ++i) {
      ASSERT_EQ(bits[static_cast<std::size_t>(i)], 0xffff);
      ASSERT_EQ(bits[bits.size() - 1 - static_cast<std::size_t>(i)], 0xffff);
    }
  }
  void backward() {
    d_x.poison();
    d_router.poison();
    space.poison();
    router_backward(x_TD(), router_ED(), d_logits.as<float>(), inner(d_x, T), inner(d_router, E),
                    space.get(), nullptr);
  }

  DType dtype;
  std::int64_t T, D, E, P = router_pitch(E);
  DeviceBuffer x{static_cast<std::size_t>(T * D * 2)}, router{static_cast<std::size_t>(E * D * 2)};
  DeviceBuffer d_logits{static_cast<std::size_t>(T * P * 4)};
  DeviceBuffer d_x{static_cast<std::size_t>((T + 2) * D * 2)};
  DeviceBuffer d_router{static_cast<std::size_t>((E + 2) * D * 2)};
  DeviceBuffer space{router_workspace_bytes(T, D, E)};
};

// d_x and d_router in double.
std::vector<double> d_x_of(const Products& p) {
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  const auto router = values_of(p.router, p.dtype, size(p.E * p.D));
  const auto d_logits = values_of(p.d_logits, DType::kFloat32, size(p.T * p.P));
  std::vector<double> out(size(p.T * p.D));
  for (std::int64_t t = 0; t < p.T; ++t) {
    for (std::int64_t e = 0; e < p.E; ++e) {
      const double d = d_logits[size(t * p.P + e)];
      for (std::int64_t i = 0; i < p.D; ++i)
        out[size(t * p.D + i)] += d * router[size(e * p.D + i)];
    }
  }
  return out;
}
std::vector<double> d_router_of(const Products& p) {
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  const auto x = values_of(p.x, p.dtype, size(p.T * p.D));
  const auto d_logits = values_of(p.d_logits, DType::kFloat32, size(p.T * p.P));
  std::vector<double> out(size(p.E * p.D));
  for (std::int64_t t = 0; t < p.T; ++t) {
    for (std::int64_t e = 0; e < p.E; ++e) {
      const double d = d_logits[size(t * p.P + e)];
      for (std::int64_t i = 0; i < p.D; ++i) out[size(e * p.D + i)] += d * x[size(t * p.D + i)];
    }
  }
  return out;
}

class RouterCuda : public ::testing::TestWithParam<std::tuple<DType, std::int64_t>> {
 protected:
  void SetUp() override {
    if (!dropless::testing::gpu_supported())
      GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  }
};

TEST_P(RouterCuda, MatchesDouble) {
  const auto [dtype, E] = GetParam();
  for (const auto& [T, D] : {std::pair<std::int64_t, std::int64_t>{1, 8},
                             {63, 264},
                             {64, 256},
                             {129, 1032},
                             {2000, 520},
                             {20000, 136}}) {
    SCOPED_TRACE(std::to_string(T) + " tokens of width " + std::to_string(D));
    Products p(dtype, T, D, E);
    fill_random(p.x.get(), dtype, T * D, 1, 1.0f);
    fill_random(p.router.get(), dtype, E * D, 2, 1.0f);
    fill_random(p.d_logits.get(), DType::kFloat32, T * p.P, 3, 1.0f);
    p.backward();
    EXPECT_LE(relative_error(p.values(p.d_x, T), d_x_of(p)), 5e-3);
    EXPECT_LE(relative_error(p.values(p.d_router, E), d_router_of(p)), 5e-3);
    p.expect_edges_intact(p.d_x, T);
    p.expect_edges_intact(p.d_router, E);
    const auto d_x = p.d_x.download<std::uint16_t>(static_cast<std::size_t>(T * D));
    const auto d_router = p.d_router.download<std::uint16_t>(static_cast<std::size_t>(E * D));
    p.backward();
    EXPECT_EQ(p.d_x.download<std::uint16_t>(d_x.size()), d_x);
    EXPECT_EQ(p.d_router.download<std::uint16_t>(d_router.size()), d_router);
  }
}

TEST_P(RouterCuda, NoTokensGiveZeros) {
  const auto [dtype, E] = GetParam();
  Products p(dtype, 0, 72, E);
  fill_random(p.router.get(), dtype, E * 72, 2, 1.0f);
  p.backward();
  for (const double value : p.values(p.d_router, E)) ASSERT_EQ(value, 0);
}

// d_logits of about 1 whose leading bits cancel in both sums: what is left is far below what one number of the type holds.
TEST_P(RouterCuda, KeepsWhatTheElementTypeDoesNot) {
  const auto [dtype, E] = GetParam();
  if (E < 2) GTEST_SKIP() << "nothing to cancel";
  constexpr std::int64_t T = 2, D = 64;
  Products p(dtype, T, D, E);
  const std::uint16_t one = dtype == DType::kBFloat16 ? 0x3f80 : 0x3c00, minus = one | 0x8000;
  std::vector<std::uint16_t> x(T * D, one), router(static_cast<std::size_t>(E * D), 0);
  std::vector<float> d_logits(static_cast<std::size_t>(T * p.P), 0);
  for (std::size_t i = 0; i < D; ++i) {
    x[D + i] = minus;
    router[i] = one;
    router[D + i] = minus;
  }
  for (std::size_t t = 0; t < T; ++t) {
    d_logits[t * static_cast<std::size_t>(p.P)] = 1.0f + static_cast<float>(1 + t) / 16384;
    d_logits[t * static_cast<std::size_t>(p.P) + 1] = 1.0f - static_cast<float>(2 * t) / 16384;
  }
  p.x.upload(x);
  p.router.upload(router);
  p.d_logits.upload(d_logits);
  p.backward();
  EXPECT_LE(relative_error(p.values(p.d_x, T), d_x_of(p)), 5e-3);
  EXPECT_LE(relative_error(p.values(p.d_router, E), d_router_of(p)), 5e-3);
}

INSTANTIATE_TEST_SUITE_P(, RouterCuda,
                         ::testing::Combine(::testing::Values(DType::kBFloat16, DType::kFloat16),
                                            ::testing::Values(1, 8, 60, 64, 65, 128, 129, 300)),
                         [](const auto& info) {
                           return std::string(dtype_name(std::get<0>(info.param))) + "_E" +
                                  std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace dropless::cuda
