// The plain loops of a pass over one token, against formulas written another way; bad arguments by name.
#include "dropless/decode.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/ops/random_floats.h"
#include "tests/ops/tensor.h"

namespace dropless {
namespace {

using testing::message_of;
using testing::random_floats;

ConstTensorView view(const std::vector<float>& x, std::initializer_list<std::int64_t> shape) {
  return {x.data(), DType::kFloat32, shape};
}
TensorView view(std::vector<float>& x, std::initializer_list<std::int64_t> shape) {
  return {x.data(), DType::kFloat32, shape};
}

TEST(Decode, ProductSumsOverColumns) {
  const std::int64_t B = 3, N = 5, K = 7;
  std::vector<float> x = random_floats(B * K, 1), w = random_floats(N * K, 2),
                     bias = random_floats(N, 3);
  std::vector<float> out(B * N), plain(B * N);
  decode_product(view(x, {B, K}), view(w, {N, K}), view(bias, {N}), view(out, {B, N}));
  decode_product(view(x, {B, K}), view(w, {N, K}), {}, view(plain, {B, N}));
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t n = 0; n < N; ++n) {
      double sum = 0;
      for (std::int64_t k = 0; k < K; ++k) sum += double(x[b * K + k]) * w[n * K + k];
      EXPECT_NEAR(out[b * N + n], sum + bias[n], 1e-5);
      EXPECT_NEAR(plain[b * N + n], sum, 1e-5);
    }
  }
}

TEST(Decode, ProductOfNothing) {
  std::vector<float> x(6), w(6), out(4, 7.0F), bias{1, 2};
  decode_product(view(x, {0, 3}), view(w, {2, 3}), {}, view(out, {0, 2}));
  decode_product(view(x, {2, 3}), view(w, {0, 3}), {}, view(out, {2, 0}));
  EXPECT_EQ(out[0], 7.0F);
  decode_product(view(x, {2, 0}), view(w, {2, 0}), view(bias, {2}), view(out, {2, 2}));
  EXPECT_EQ(out, (std::vector<float>{1, 2, 1, 2})) << "a sum over no columns";
}

TEST(Decode, ProductRefusesWhatDoesNotFit) {
  std::vector<float> x(6), w(6), out(4), bias(2);
  const auto message = [&](const ConstTensorView& x, const ConstTensorView& w,
                           const ConstTensorView& bias, const TensorView& out) {
    return message_of([&] { decode_product(x, w, bias, out); });
  };
  using ::testing::HasSubstr;
  const TensorView good = view(out, {2, 2});
  EXPECT_THAT(message(view(x, {2, 3}), view(w, {3, 2}), {}, good),
              HasSubstr("decode_product: w_NK"));
  EXPECT_THAT(message(view(x, {3, 2}), view(w, {2, 2}), {}, good),
              HasSubstr("decode_product: x_BK"));
  EXPECT_THAT(message(view(x, {6}), view(w, {2, 3}), {}, good), HasSubstr("decode_product: x_BK"));
  EXPECT_THAT(message(view(x, {2, 3}), view(w, {2, 3}), view(bias, {1}), good),
              HasSubstr("decode_product: bias_N"));
  ConstTensorView narrow = view(w, {2, 3});
  narrow.dtype = DType::kBFloat16;
  EXPECT_THAT(message(view(x, {2, 3}), narrow, {}, good), HasSubstr("decode_product: w_NK"));
  EXPECT_FALSE(decode_product_pays(1, 8, Device{}));
}

TEST(Decode, AddNormNormsTheSum) {
  const std::int64_t B = 3, D = 10;
  for (const bool rms : {true, false}) {
    std::vector<float> x = random_floats(B * D, 1), out(B * D), weight = random_floats(D, 3);
    const std::vector<float> before = x, y = random_floats(B * D, 2), bias = random_floats(D, 4);
    DecodeNorm norm{rms, 1e-5, view(weight, {D}), {}};
    if (!rms) norm.bias_D = view(bias, {D});
    decode_add_norm(view(x, {B, D}), view(y, {B, D}), norm, view(out, {B, D}));
    for (std::int64_t b = 0; b < B; ++b) {
      double mean = 0, square = 0;
      for (std::int64_t i = b * D; i < b * D + D; ++i) {
        EXPECT_EQ(x[i], before[i] + y[i]);
        mean += x[i] / static_cast<double>(D);
        square += static_cast<double>(x[i]) * x[i] / static_cast<double>(D);
      }
      const double variance = rms ? square : square - mean * mean;
      for (std::int64_t i = 0; i < D; ++i) {
        const double centred = x[b * D + i] - (rms ? 0 : mean);
        const double expected =
            centred / std::sqrt(variance + 1e-5) * weight[i] + (rms ? 0 : bias[i]);
        EXPECT_NEAR(out[b * D + i], expected, 1e-5);
      }
    }
    decode_add_norm(view(x, {B, D}), {}, norm, view(out, {B, D}));
    EXPECT_EQ(x[0], before[0] + y[0]) << "nothing is added where y is absent";
  }
}

// RoPE turns: scores depend on the distance of two positions alone, and lengths stay.
TEST(Decode, AttentionRotatesAndWritesOnePlace) {
  DecodeAttention a{.heads = 2, .groups = 1, .head_dim = 4};
  const std::int64_t C = 9, N = 16;
  std::vector<float> cos, sin;
  for (std::int64_t p = 0; p < C; ++p) {
    for (const double f : {1.0, 0.1}) {
      cos.push_back(static_cast<float>(std::cos(f * static_cast<double>(p))));
      sin.push_back(static_cast<float>(std::sin(f * static_cast<double>(p))));
    }
  }
  a.cos_PI = view(cos, {C, 2});
  a.sin_PI = view(sin, {C, 2});
  const std::vector<float> qkv = random_floats(N, 5);
  std::vector<float> keys(C * 4), values(C * 4), out(8);
  // With only `key` and the query itself seen; their values differ.
  const auto mixed = [&](std::int64_t query, std::int64_t key) {
    std::fill(keys.begin(), keys.end(), -7.0F);
    std::fill(values.begin(), values.end(), -7.0F);
    for (const std::int64_t position : {key, query}) {
      a.window = position == query ? query - key : 0;
      decode_attention(a, view(qkv, {1, N}), {&position, DType::kInt64, {1}}, {},
                       view(keys, {1, 1, C, 4}), view(values, {1, 1, C, 4}), view(out, {1, 2, 4}));
      if (position == key) std::fill_n(values.begin() + key * 4, 4, 2.0F);
    }
    return out[0];
  };
  const float turned = mixed(5, 4);
  EXPECT_NEAR(mixed(8, 7), turned, 1e-5);
  EXPECT_TRUE(std::equal(qkv.begin() + 12, qkv.end(), values.begin() + 8 * 4));
  EXPECT_EQ(keys[6 * 4], -7) << "nothing was written to place 6";
  EXPECT_EQ(values[6 * 4], -7);
  a.cos_PI = a.sin_PI = {};
  EXPECT_GT(std::abs(mixed(5, 4) - turned), 1e-3);
}

TEST(Decode, ClipsBeforeOrAfterTheNorm) {
  DecodeAttention a{.heads = 1, .groups = 1, .head_dim = 2, .clip = 0.5};
  const std::vector<float> ones = {1, 1}, qkv = {0.1F, 0.2F, 3, 4, 9, -9};
  a.q_norm = a.k_norm = {true, 0, view(ones, {2}), {}};
  std::vector<float> keys(2), values(2), out(2);
  const std::int64_t position = 0;
  const auto append = [&] {
    decode_attention(a, view(qkv, {1, 6}), {&position, DType::kInt64, {1}}, {},
                     view(keys, {1, 1, 1, 2}), view(values, {1, 1, 1, 2}), view(out, {1, 1, 2}));
  };
  append();
  EXPECT_NEAR(keys[1], 1, 1e-6);  // 0.5, 0.5 normed
  a.clip_after_norm = true;
  append();
  EXPECT_EQ(keys[1], 0.5F);
  EXPECT_THAT(values, ::testing::ElementsAre(0.5F, -0.5F));
  EXPECT_THAT(out, ::testing::ElementsAre(0.5F, -0.5F));
}

TEST(Decode, AttentionSeesWhatItShould) {
  DecodeAttention a{.heads = 1, .groups = 1, .head_dim = 2, .scale = 0};  // equal weights
  const std::int64_t C = 6;
  const auto mean = [&](std::int64_t position, std::int64_t pads) {
    std::vector<float> keys = random_floats(C * 2, 6), values, out(2);
    for (int j = 0; j < C; ++j) values.insert(values.end(), {static_cast<float>(1 << j), 0});
    const std::vector<float> qkv = {1, 1, 1, 1, static_cast<float>(1 << position), 0};
    decode_attention(a, view(qkv, {1, 6}), {&position, DType::kInt64, {1}},
                     {&pads, DType::kInt64, {1}}, view(keys, {1, 1, C, 2}),
                     view(values, {1, 1, C, 2}), view(out, {1, 1, 2}));
    return out[0];
  };
  EXPECT_FLOAT_EQ(mean(2, 0), 7.0F / 3);
  EXPECT_FLOAT_EQ(mean(4, 2), 28.0F / 3);
  EXPECT_FLOAT_EQ(mean(1, 5), 2.0F) << "itself, always";
  a.window = 1;
  EXPECT_FLOAT_EQ(mean(3, 0), 6.0F);
  const std::vector<float> steep = {50};
  a.window = -1;
  a.slopes_H = view(steep, {1});
  EXPECT_NEAR(mean(4, 0), 16, 1e-3) << "far places weigh nothing";
}

TEST(Decode, RefusesWhatDoesNotFit) {
  std::vector<float> x(12), weight(6), out(2), qkv(6), normed(12);
  EXPECT_THAT(message_of([&] {
                decode_add_norm(view(x, {2, 6}), {}, {true, 1e-5, view(weight, {5}), {}},
                                view(normed, {2, 6}));
              }),
              ::testing::HasSubstr("weight_D"));
  std::int64_t position = 3;
  DecodeAttention a{.heads = 1, .groups = 1, .head_dim = 2};
  const auto attend = [&] {
    decode_attention(a, view(qkv, {1, 6}), {&position, DType::kInt64, {1}}, {},
                     view(x, {1, 1, 3, 2}), view(x, {1, 1, 3, 2}), view(out, {1, 1, 2}));
  };
  EXPECT_THAT(message_of(attend), ::testing::HasSubstr("position_1 is 3"));
  position = 2;
  EXPECT_EQ(message_of(attend), "no error");
  a.head_dim = 3;
  EXPECT_THAT(message_of(attend), ::testing::HasSubstr("head_dim is 3"));
  a.head_dim = 2;
  std::vector<float> table(2), slopes(2);
  a.cos_PI = a.sin_PI = view(table, {2, 1});
  EXPECT_THAT(message_of(attend), ::testing::HasSubstr("for a cache of 3 places"));
  a.cos_PI = a.sin_PI = {};
  a.slopes_H = view(slopes, {2});
  EXPECT_THAT(message_of(attend), ::testing::HasSubstr("slopes_H"));
  a.slopes_H = {};
  a.q_norm.weight_D = view(table, {2});
  EXPECT_THAT(message_of(attend), ::testing::HasSubstr("one of q_norm and k_norm"));
  a.q_norm.weight_D = view(weight, {6});
  EXPECT_THAT(message_of(attend), ::testing::HasSubstr("q_norm.weight_D"));
  a.q_norm = {};
  EXPECT_THAT(message_of([&] {
                decode_attention(a, view(qkv, {1, 6}), {&position, DType::kInt64, {1}},
                                 {&position, DType::kInt32, {1}}, view(x, {1, 1, 3, 2}),
                                 view(x, {1, 1, 3, 2}), view(out, {1, 1, 2}));
              }),
              ::testing::HasSubstr("pads_B"));
  EXPECT_THAT(message_of([&] {
                decode_attention(a, view(qkv, {1, 6}), {&position, DType::kInt64, {1}}, {},
                                 view(x, {1, 1, 3, 2}), view(x, {1, 1, 6, 1}),
                                 view(out, {1, 1, 2}));
              }),
              ::testing::HasSubstr("values_BGCI"));
  EXPECT_THAT(message_of([&] {
                decode_add_norm(view(x, {2, 6}), view(x, {1, 6}),
                                {true, 1e-5, view(weight, {6}), {}}, view(normed, {2, 6}));
              }),
              ::testing::HasSubstr("y_BD"));
  double fp64 = 0;
  EXPECT_THAT(message_of([&] {
                decode_add_norm(view(x, {1, 1}), {}, {true, 1e-5, view(weight, {1}), {}},
                                {&fp64, DType::kFloat64, {1, 1}});
              }),
              ::testing::HasSubstr("the loops take float32"));
  a.heads = 3;
  a.groups = 2;
  EXPECT_THAT(message_of(attend), ::testing::HasSubstr("3 heads in 2 groups"));
}

}  // namespace
}  // namespace dropless
