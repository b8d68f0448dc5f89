// The kernels of a pass over one token against the plain loops on the CPU: head widths, groups, norms of
// heads and of all, windows, pads, caps, ALiBi, long caches; the same bits on every run.
#include "dropless/decode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "dropless/error.h"
#include "tests/cuda/gpu_support.h"

namespace dropless {
namespace {

using dropless::testing::DeviceBuffer;
using dropless::testing::values_of;
const Device kGpu{DeviceType::kCuda, 0};

// A tensor on the GPU and its copy on the CPU.
struct Twin {
  DType dtype;
  std::vector<std::int64_t> shape;
  DeviceBuffer gpu;
  std::vector<std::uint8_t> cpu;

  static std::size_t count(const std::vector<std::int64_t>& shape) {
    std::size_t n = 1;
    for (const std::int64_t size : shape) n *= static_cast<std::size_t>(size);
    return n;
  }
  Twin(DType dtype, std::vector<std::int64_t> sizes, std::uint64_t seed, float scale = 1.0F)
      : dtype(dtype), shape(std::move(sizes)), gpu(count(shape) * dtype_bytes(dtype)) {
    dropless::testing::fill_random(gpu.get(), dtype, static_cast<std::int64_t>(count(shape)), seed,
                                   scale);
    cpu = gpu.download<std::uint8_t>(gpu.bytes());
  }
  Twin(const std::vector<std::int64_t>& numbers)
      : dtype(DType::kInt64),
        shape{static_cast<std::int64_t>(numbers.size())},
        gpu(numbers.size() * 8) {
    gpu.upload(numbers);
    cpu = gpu.download<std::uint8_t>(gpu.bytes());
  }
  TensorView view(bool on_gpu) {
    TensorView view;
    view.data = on_gpu ? gpu.get() : cpu.data();
    view.dtype = dtype;
    if (on_gpu) view.device = kGpu;
    view.rank = static_cast<int>(shape.size());
    std::int64_t step = 1;
    for (int i = view.rank - 1; i >= 0; --i) {
      view.shape[i] = shape[i];
      view.stride[i] = step;
      step *= shape[i];
    }
    return view;
  }
  // ||gpu - cpu|| / ||cpu||
  double difference() {
    DeviceBuffer uploaded(gpu.bytes());
    uploaded.upload(cpu);
    return dropless::testing::relative_error(values_of(gpu, dtype, count(shape)),
                                             values_of(uploaded, dtype, count(shape)));
  }
};

class DecodeCuda : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (!dropless::testing::gpu_supported())
      GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  }
};

TEST_P(DecodeCuda, Product) {
  struct Sizes {
    std::int64_t rows, n, k;
  };
  for (const Sizes& s : {Sizes{1, 6144, 2048},
                         {1, 7, 8},
                         {2, 333, 2056},
                         {3, 50, 6144},
                         {8, 5000, 4096},
                         {5, 1, 520},
                         {1, 4300, 49152},
                         {2, 100, 14336},
                         {7, 64, 64}}) {
    Twin x(GetParam(), {s.rows, s.k}, 1), w(GetParam(), {s.n, s.k}, 2, 0.1F);
    Twin bias(DType::kFloat32, {s.n}, 3), out(GetParam(), {s.rows, s.n}, 4);
    for (const bool biased : {true, false}) {
      std::vector<std::uint16_t> first;
      for (int run = 0; run < 3; ++run) {
        const bool on_gpu = run < 2;
        decode_product(x.view(on_gpu), w.view(on_gpu), biased ? bias.view(on_gpu) : TensorView(),
                       out.view(on_gpu));
        if (!on_gpu) continue;
        std::vector<std::uint16_t> bits = out.gpu.download<std::uint16_t>(out.gpu.bytes() / 2);
        if (run == 1) {
          EXPECT_EQ(bits, first) << "the same bits on every run";
        }
        first = std::move(bits);
      }
      EXPECT_LT(out.difference(), 3e-3) << s.rows << " " << s.n << " " << s.k;
    }
  }
}

// In a row of kernels that begin before the one in front of them ends, each sees what that one wrote.
TEST_P(DecodeCuda, ProductsInARow) {
  const std::int64_t D = 2048, kLayers = 24;
  Twin weight(DType::kFloat32, {D}, 5), bias(DType::kFloat32, {D}, 10);
  Twin w(GetParam(), {D, D}, 6, 0.02F);
  for (const std::int64_t rows : {1, 2, 8}) {
    const bool rms = rows != 2;
    Twin x(DType::kFloat32, {rows, D}, 7), y(GetParam(), {rows, D}, 8);
    Twin out(GetParam(), {rows, D}, 9);
    const std::vector<std::uint8_t> x_before = x.cpu, y_before = y.cpu;
    std::vector<std::uint32_t> first;
    for (int run = 0; run < 21; ++run) {
      const bool on_gpu = run < 20;
      if (on_gpu) {
        x.gpu.upload(x_before);
        y.gpu.upload(y_before);
      }
      DecodeNorm norm{rms, 1e-5, weight.view(on_gpu), {}};
      if (!rms) norm.bias_D = bias.view(on_gpu);
      for (std::int64_t layer = 0; layer < kLayers; ++layer) {
        decode_add_norm(x.view(on_gpu), y.view(on_gpu), norm, out.view(on_gpu));
        decode_product(out.view(on_gpu), w.view(on_gpu), {}, y.view(on_gpu));
      }
      if (!on_gpu) continue;
      const auto bits = x.gpu.download<std::uint32_t>(x.gpu.bytes() / 4);
      if (run == 0) first = bits;
      EXPECT_EQ(bits, first) << "run " << run << " of " << rows << " rows";
    }
    EXPECT_LT(x.difference(), 1e-2) << rows;
  }
}

TEST_P(DecodeCuda, ProductRefusesWhatItHasNoKernelFor) {
  const auto refused = [&](std::int64_t rows, std::int64_t columns, std::int64_t offset) {
    Twin x(GetParam(), {rows, columns}, 1), out(GetParam(), {rows, 2}, 3);
    Twin w(GetParam(), {2 * columns + offset}, 2);
    TensorView matrix = w.view(true);
    matrix.data = static_cast<std::uint16_t*>(matrix.data) + offset;
    matrix.rank = 2;
    matrix.shape[0] = 2, matrix.shape[1] = columns;
    matrix.stride[0] = columns, matrix.stride[1] = 1;
    EXPECT_THROW(decode_product(x.view(true), matrix, {}, out.view(true)), Error)
        << rows << " " << columns << " " << offset;
  };
  refused(9, 64, 0);
  refused(1, 12, 0);
  refused(1, 49160, 0);
  refused(1, 64, 1);
  EXPECT_FALSE(decode_product_pays(9, 64, kGpu));
}

TEST_P(DecodeCuda, AddNorm) {
  for (const std::int64_t D : {4, 516, 2048, 4000, 13000}) {
    for (const bool rms : {true, false}) {
      for (const bool adds : {true, false}) {
        Twin x(DType::kFloat32, {3, D}, 1), y(GetParam(), {3, D}, 2), out(GetParam(), {3, D}, 3);
        Twin weight(DType::kFloat32, {D}, 4), bias(DType::kFloat32, {D}, 5);
        for (const bool on_gpu : {true, false}) {
          DecodeNorm norm{rms, 1e-5, weight.view(on_gpu), {}};
          if (!rms) norm.bias_D = bias.view(on_gpu);
          decode_add_norm(x.view(on_gpu), adds ? y.view(on_gpu) : TensorView(), norm,
                          out.view(on_gpu));
        }
        EXPECT_LT(x.difference(), 1e-6);
        EXPECT_LT(out.difference(), 1e-3) << D;
      }
    }
  }
}

struct Case {
  std::int64_t rows, heads, groups, head_dim, places, position;
  int norm;  // 0: none, 1: of each head, 2: of all
  bool rms, rope, clips, clip_after, alibi;
  double softcap;
  std::int64_t window;
};

TEST_P(DecodeCuda, Attention) {
  const Case cases[] = {
      {1, 16, 16, 128, 256, 100, 2, true, true, false, false, false, 0, -1},
      {3, 8, 2, 64, 70, 69, 1, true, true, true, true, false, 0, 9},
      {2, 4, 4, 256, 33, 0, 1, false, true, false, false, false, 5, -1},
      {2, 6, 3, 96, 600, 577, 0, true, false, true, false, true, 0, -1},
      {1, 32, 1, 80, 5000, 4999, 2, false, true, false, false, false, 0, -1},
      {4, 2, 1, 8, 8, 7, 0, true, false, false, false, false, 0, 0},
      // A cluster a head, with parts that see nothing.
      {1, 16, 4, 128, 4096, 3000, 2, true, true, false, false, true, 0, -1},
      {2, 8, 8, 256, 1024, 5, 1, false, true, true, false, false, 3, -1},
      {1, 4, 4, 64, 2000, 1900, 0, true, true, false, false, false, 0, 600},
      {1, 16, 16, 128, 512, 0, 1, true, true, false, false, false, 0, -1},
      {1, 32, 8, 128, 700, 699, 0, true, true, false, false, false, 0, -1},
      {1, 8, 8, 136, 900, 333, 0, true, true, false, false, false, 0, -1},
  };
  for (const Case& c : cases) {
    const std::int64_t N = (c.heads + 2 * c.groups) * c.head_dim;
    const DType type = GetParam();
    Twin qkv(type, {c.rows, N}, 1);
    Twin keys(type, {c.rows, c.groups, c.places, c.head_dim}, 3);
    Twin values(type, {c.rows, c.groups, c.places, c.head_dim}, 4);
    Twin out(type, {c.rows, c.heads, c.head_dim}, 5);
    Twin q_weight(DType::kFloat32, {c.norm == 2 ? c.heads * c.head_dim : c.head_dim}, 6);
    Twin k_weight(DType::kFloat32, {c.norm == 2 ? c.groups * c.head_dim : c.head_dim}, 7);
    Twin cos(DType::kFloat32, {c.places, c.head_dim / 2}, 8);
    Twin sin(DType::kFloat32, {c.places, c.head_dim / 2}, 9),
        slopes(DType::kFloat32, {c.heads}, 10, 0.1F);
    Twin position(std::vector<std::int64_t>{c.position});
    std::vector<std::int64_t> begins(c.rows, 0);
    begins.back() = c.position / 3;
    Twin pads(begins);
    std::vector<std::uint16_t> first;
    for (int run = 0; run < 3; ++run) {
      const bool on_gpu = run < 2;
      DecodeAttention a{.heads = c.heads, .groups = c.groups, .head_dim = c.head_dim};
      if (c.norm > 0) {
        a.q_norm = {c.rms, 1e-5, q_weight.view(on_gpu), {}};
        a.k_norm = {c.rms, 1e-5, k_weight.view(on_gpu), {}};
      }
      if (c.clips) a.clip = 0.7;
      a.clip_after_norm = c.clip_after;
      if (c.rope) a.cos_PI = cos.view(on_gpu), a.sin_PI = sin.view(on_gpu);
      a.scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
      a.softcap = c.softcap;
      a.window = c.window;
      if (c.alibi) a.slopes_H = slopes.view(on_gpu);
      decode_attention(a, qkv.view(on_gpu), position.view(on_gpu), pads.view(on_gpu),
                       keys.view(on_gpu), values.view(on_gpu), out.view(on_gpu));
      if (!on_gpu) continue;
      const auto bits = out.gpu.download<std::uint16_t>(Twin::count(out.shape));
      if (run == 0) first = bits;
      EXPECT_EQ(bits, first);
    }
    EXPECT_LT(keys.difference(), 5e-3) << c.head_dim;
    EXPECT_EQ(values.difference(), 0) << c.head_dim;
    EXPECT_LT(out.difference(), 5e-3) << c.head_dim << " of " << c.places;
  }
}

INSTANTIATE_TEST_SUITE_P(, DecodeCuda, ::testing::Values(DType::kBFloat16, DType::kFloat16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

}  // namespace
}  // namespace dropless
