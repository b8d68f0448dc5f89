// A layer whose rows hold more than 2^31 elements. Without losses a token's output and gradients do not depend on the others,
// so that many copies of a few tokens tell what each element must be.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "dropless/moe.h"
#include "tests/cuda/gpu_support.h"

namespace dropless::testing {
namespace {

constexpr auto kType = DType::kBFloat16;
constexpr Device kGpu{DeviceType::kCuda, 0};
constexpr std::int64_t kD = 2048, kE = 8, kK = 8, kTokens = 1000;

// Wide experts, whose rows are gathered before products, and narrow ones.
struct Large {
  std::int64_t d_ffn, copies;
  std::int64_t weights() const { return kE * d_ffn * kD; }
};
constexpr Large kLarge[] = {{2056, 140}, {1024, 270}};
static_assert(kLarge[0].copies * kTokens * kK * kD > std::int64_t{1} << 31);
static_assert(kLarge[1].copies * kTokens * kK * kLarge[1].d_ffn > std::int64_t{1} << 31);

DeviceBuffer random_weights(std::int64_t count, std::uint64_t seed) {
  DeviceBuffer buffer(static_cast<std::size_t>(count) * 2);
  fill_random(buffer.get(), kType, count, seed, 0.02f);
  return buffer;
}

struct Weights {
  explicit Weights(std::int64_t count)
      : router(random_weights(kE * kD, 1)),
        w1(random_weights(count, 2)),
        v1(random_weights(count, 3)),
        w2(random_weights(count, 4)) {}
  DeviceBuffer router, w1, v1, w2;
};

// The same kTokens rows, `copies` times.
DeviceBuffer repeated_rows(std::int64_t copies, std::uint64_t seed) {
  constexpr std::size_t kBytes = static_cast<std::size_t>(kTokens) * kD * 2;
  DeviceBuffer buffer(static_cast<std::size_t>(copies) * kBytes);
  fill_random(buffer.get(), kType, kTokens * kD, seed, 1.0f);
  for (std::int64_t i = 1; i < copies; ++i) {
    cudaMemcpy(buffer.as<char>() + static_cast<std::size_t>(i) * kBytes, buffer.get(), kBytes,
               cudaMemcpyDeviceToDevice);
  }
  return buffer;
}

struct Results {
  std::vector<std::uint16_t> out, d_x;
  std::vector<std::int32_t> counts;
  std::vector<double> d_router, d_w1, d_v1, d_w2;
};

Results run(const Weights& w, const Large& layer, std::int64_t copies) {
  const std::int64_t F = layer.d_ffn, count = layer.weights();
  const MoEConfig config{.num_experts = kE, .top_k = kK, .d_model = kD, .d_ffn = F};
  const std::int64_t T = copies * kTokens, R = T * kK;
  const auto buffer = [](std::int64_t elements, std::size_t bytes = 2) {
    return DeviceBuffer(static_cast<std::size_t>(elements) * bytes);
  };
  const DeviceBuffer x = repeated_rows(copies, 5), d_out = repeated_rows(copies, 6);
  const DeviceBuffer out = buffer(T * kD), losses = buffer(2, 4), counts = buffer(kE, 4);
  const DeviceBuffer gate = buffer(R * F), up = buffer(R * F), weights = buffer(R, 4),
                     indices = buffer(R, 4), rows = buffer(R, 4), offsets = buffer(kE + 1, 8);
  const DeviceBuffer d_x = buffer(T * kD), d_router = buffer(kE * kD), d_w1 = buffer(count),
                     d_v1 = buffer(count), d_w2 = buffer(count);
  const DeviceBuffer space(std::max(moe_forward_workspace_bytes(config, T, kType, kGpu),
                                    moe_backward_workspace_bytes(config, T, kType, kGpu)));

  const auto view = [](const DeviceBuffer& b, std::initializer_list<std::int64_t> shape,
                       DType dtype = kType) { return TensorView(b.get(), dtype, shape, kGpu); };
  const MoEWeights weights_of{view(w.router, {kE, kD}), view(w.w1, {kE, F, kD}),
                              view(w.v1, {kE, F, kD}), view(w.w2, {kE, F, kD})};
  const MoESaved saved{view(gate, {R, F}),
                       view(up, {R, F}),
                       view(weights, {T, kK}, DType::kFloat32),
                       view(indices, {T, kK}, DType::kInt32),
                       view(rows, {T, kK}, DType::kInt32),
                       view(offsets, {kE + 1}, DType::kInt64)};
  moe_forward(config, view(x, {T, kD}), weights_of, view(out, {T, kD}),
              view(losses, {2}, DType::kFloat32), view(counts, {kE}, DType::kInt32), saved,
              space.get(), space.bytes());
  moe_backward(config, view(x, {T, kD}), weights_of, saved, view(d_out, {T, kD}), {},
               {view(d_x, {T, kD}), view(d_router, {kE, kD}), view(d_w1, {kE, F, kD}),
                view(d_v1, {kE, F, kD}), view(d_w2, {kE, F, kD})},
               space.get(), space.bytes());
  synchronize();
  return {out.download<std::uint16_t>(T * kD), d_x.download<std::uint16_t>(T * kD),
          counts.download<std::int32_t>(kE),   values_of(d_router, kType, kE * kD),
          values_of(d_w1, kType, count),       values_of(d_v1, kType, count),
          values_of(d_w2, kType, count)};
}

// The first row that is not its token's.
std::int64_t first_difference(const std::vector<std::uint16_t>& many,
                              const std::vector<std::uint16_t>& few) {
  for (std::size_t at = 0; at < many.size(); at += kD) {
    if (std::memcmp(&many[at], &few[at % few.size()], kD * 2) != 0) {
      return static_cast<std::int64_t>(at / kD);
    }
  }
  return -1;
}

class MoELargeCuda : public ::testing::TestWithParam<Large> {};

TEST_P(MoELargeCuda, MoreThanTwoToThe31ElementsGiveEachTokenTheSame) {
  const Large layer = GetParam();
  if (!gpu_supported()) GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  if (free < std::size_t{32} << 30) GTEST_SKIP() << "needs 32 GiB of GPU memory";
  const Weights weights(layer.weights());
  const Results few = run(weights, layer, 1), many = run(weights, layer, layer.copies);
  EXPECT_EQ(first_difference(many.out, few.out), -1);
  EXPECT_EQ(first_difference(many.d_x, few.d_x), -1);
  for (std::int64_t e = 0; e < kE; ++e) EXPECT_EQ(many.counts[e], layer.copies * few.counts[e]);
  const auto expect_multiple = [&](const char* name, const std::vector<double>& of_many,
                                   std::vector<double> of_few) {
    for (double& value : of_few) value *= static_cast<double>(layer.copies);
    EXPECT_LE(relative_error(of_many, of_few), 5e-3) << name;
  };
  expect_multiple("d_router", many.d_router, few.d_router);
  expect_multiple("d_w1", many.d_w1, few.d_w1);
  expect_multiple("d_v1", many.d_v1, few.d_v1);
  expect_multiple("d_w2", many.d_w2, few.d_w2);
}

INSTANTIATE_TEST_SUITE_P(, MoELargeCuda, ::testing::ValuesIn(kLarge),
                         [](const auto& info) { return "F" + std::to_string(info.param.d_ffn); });

}  // namespace
}  // namespace dropless::testing
