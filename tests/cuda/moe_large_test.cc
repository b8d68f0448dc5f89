// A layer whose rows hold more than 2^31 elements. Without losses a token's output and gradients do not depend on the others,
// so that many copies of a few tokens tell what each element must be.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "dropless/moe.h"
#include "tests/cuda/gpu_support.h"

namespace dropless::testing {
namespace {

constexpr auto kType = DType::kBFloat16;
constexpr Device kGpu{DeviceType::kCuda, 0};
constexpr std::int64_t kD = 2048, kF = 2056, kE = 8, kK = 8;
constexpr std::int64_t kTokens = 1000, kCopies = 140;
static_assert(kCopies * kTokens * kK * kD > std::int64_t{1} << 31);

DeviceBuffer random_weights(std::int64_t count, std::uint64_t seed) {
  DeviceBuffer buffer(static_cast<std::size_t>(count) * 2);
  fill_random(buffer.get(), kType, count, seed, 0.02f);
  return buffer;
}

struct Weights {
  DeviceBuffer router = random_weights(kE * kD, 1), w1 = random_weights(kE * kF * kD, 2),
               v1 = random_weights(kE * kF * kD, 3), w2 = random_weights(kE * kF * kD, 4);
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

Results run(const Weights& w, std::int64_t copies) {
  const MoEConfig config{.num_experts = kE, .top_k = kK, .d_model = kD, .d_ffn = kF};
  const std::int64_t T = copies * kTokens, R = T * kK;
  const auto buffer = [](std::int64_t elements, std::size_t bytes = 2) {
    return DeviceBuffer(static_cast<std::size_t>(elements) * bytes);
  };
  const DeviceBuffer x = repeated_rows(copies, 5), d_out = repeated_rows(copies, 6);
  const DeviceBuffer out = buffer(T * kD), losses = buffer(2, 4), counts = buffer(kE, 4);
  const DeviceBuffer gate = buffer(R * kF), up = buffer(R * kF), weights = buffer(R, 4),
                     indices = buffer(R, 4), rows = buffer(R, 4), offsets = buffer(kE + 1, 8);
  const DeviceBuffer d_x = buffer(T * kD), d_router = buffer(kE * kD), d_w1 = buffer(kE * kF * kD),
                     d_v1 = buffer(kE * kF * kD), d_w2 = buffer(kE * kF * kD);
  const DeviceBuffer space(std::max(moe_forward_workspace_bytes(config, T, kType, kGpu),
                                    moe_backward_workspace_bytes(config, T, kType, kGpu)));

  const auto view = [](const DeviceBuffer& b, std::initializer_list<std::int64_t> shape,
                       DType dtype = kType) { return TensorView(b.get(), dtype, shape, kGpu); };
  const MoEWeights layer{view(w.router, {kE, kD}), view(w.w1, {kE, kF, kD}),
                         view(w.v1, {kE, kF, kD}), view(w.w2, {kE, kF, kD})};
  const MoESaved saved{view(gate, {R, kF}),
                       view(up, {R, kF}),
                       view(weights, {T, kK}, DType::kFloat32),
                       view(indices, {T, kK}, DType::kInt32),
                       view(rows, {T, kK}, DType::kInt32),
                       view(offsets, {kE + 1}, DType::kInt64)};
  moe_forward(config, view(x, {T, kD}), layer, view(out, {T, kD}),
              view(losses, {2}, DType::kFloat32), view(counts, {kE}, DType::kInt32), saved,
              space.get(), space.bytes());
  moe_backward(config, view(x, {T, kD}), layer, saved, view(d_out, {T, kD}), {},
               {view(d_x, {T, kD}), view(d_router, {kE, kD}), view(d_w1, {kE, kF, kD}),
                view(d_v1, {kE, kF, kD}), view(d_w2, {kE, kF, kD})},
               space.get(), space.bytes());
  synchronize();
  return {out.download<std::uint16_t>(T * kD),  d_x.download<std::uint16_t>(T * kD),
          counts.download<std::int32_t>(kE),    values_of(d_router, kType, kE * kD),
          values_of(d_w1, kType, kE * kF * kD), values_of(d_v1, kType, kE * kF * kD),
          values_of(d_w2, kType, kE * kF * kD)};
}

// The first row that is not its token's.
std::int64_t first_difference(const std::vector<std::uint16_t>& many,
                              const std::vector<std::uint16_t>& few) {
  for (std::int64_t t = 0; t < kCopies * kTokens; ++t) {
    if (std::memcmp(&many[t * kD], &few[t % kTokens * kD], kD * 2) != 0) return t;
  }
  return -1;
}

TEST(MoELargeCuda, MoreThanTwoToThe31ElementsGiveEachTokenTheSame) {
  if (!gpu_supported()) GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  if (free < std::size_t{32} << 30) GTEST_SKIP() << "needs 32 GiB of GPU memory";
  const Weights weights;
  const Results few = run(weights, 1), many = run(weights, kCopies);
  EXPECT_EQ(first_difference(many.out, few.out), -1);
  EXPECT_EQ(first_difference(many.d_x, few.d_x), -1);
  for (std::int64_t e = 0; e < kE; ++e) EXPECT_EQ(many.counts[e], kCopies * few.counts[e]);
  const auto expect_multiple = [](const char* name, const std::vector<double>& of_many,
                                  std::vector<double> of_few) {
    for (double& value : of_few) value *= kCopies;
    EXPECT_LE(relative_error(of_many, of_few), 5e-3) << name;
  };
  expect_multiple("d_router", many.d_router, few.d_router);
  expect_multiple("d_w1", many.d_w1, few.d_w1);
  expect_multiple("d_v1", many.d_v1, few.d_v1);
  expect_multiple("d_w2", many.d_w2, few.d_w2);
}

}  // namespace
}  // namespace dropless::testing
