// Up projection with its activation, and the gradient through it, against fp32 products and double
// arithmetic on the host: every activation, plain and gated, ragged and empty experts.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
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
constexpr double kTolerance = 5e-3;

double act(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::kRelu:
      return x > 0.0 ? x : 0.0;
    case Activation::kQuickGelu:
      return x / (1.0 + std::exp(-1.702 * x));
  }
  return 0.0;
}

// By central differences, away from relu's kink.
double slope(Activation activation, double x) {
  if (activation == Activation::kRelu) return x > 0.0 ? 1.0 : 0.0;
  return (act(activation, x + 1e-4) - act(activation, x - 1e-4)) / 2e-4;
}

// Some rows twice, others never.
std::vector<std::int32_t> row_list(std::int64_t count) {
  std::vector<std::int32_t> list;
  for (std::int64_t r = 0; r < count; ++r) list.push_back(static_cast<std::int32_t>(r * r % count));
  return list;
}

// Rows of 16-bit elements by the list.
void copy_listed(const DeviceBuffer& from, const std::vector<std::int32_t>& list,
                 std::int64_t width, DeviceBuffer& to) {
  const auto all = from.download<std::uint16_t>(list.size() * width);
  std::vector<std::uint16_t> listed;
  for (const std::int32_t row : list) {
    listed.insert(listed.end(), all.begin() + row * width, all.begin() + (row + 1) * width);
  }
  to.upload(listed);
}

struct Sizes {
  std::vector<std::int64_t> offsets;
  std::int64_t d, f;
};

// Every other eight rows, so that the two rows of a thread, eight apart, differ.
bool is_faint(std::int64_t row) { return row / 8 % 2 == 1; }

// Faint rows of bf16 elements by 2^-40, about 1e-12: exact.
void make_faint(DeviceBuffer& rows_RD, std::int64_t rows, std::int64_t width) {
  constexpr std::uint16_t kExponent = 0x7f80, kShift = 40 << 7;
  auto words = rows_RD.download<std::uint16_t>(rows * width);
  for (std::int64_t i = 0; i < rows * width; ++i) {
    if (!is_faint(i / width)) continue;
    words[i] = (words[i] & kExponent) > kShift ? words[i] - kShift : 0;
  }
  rows_RD.upload(words);
}

std::vector<double> faint_rows(const std::vector<double>& all, std::int64_t width) {
  std::vector<double> faint;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (is_faint(static_cast<std::int64_t>(i) / width)) faint.push_back(all[i]);
  }
  return faint;
}

const Sizes kSizes[] = {
    {{0, 300, 300, 301, 429, 700}, 192, 328},
    {{0, 128, 256}, 512, 512},
    {{0, 0, 77}, 64, 8},
};

class ActivationCuda : public ::testing::TestWithParam<std::tuple<DType, Activation, bool>> {
 protected:
  void SetUp() override {
    if (!dropless::testing::gpu_supported())
      GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  }
};

TEST_P(ActivationCuda, ForwardMatchesPlainLoops) {
  const DType dtype = std::get<0>(GetParam());
  const Activation activation = std::get<1>(GetParam());
  const bool glu = std::get<2>(GetParam());
  for (const Sizes& s : kSizes) {
    const std::int64_t E = s.offsets.size() - 1, R = s.offsets.back(), D = s.d, F = s.f;
    // w1 and v1 are halves of one [E, 2 F, D] tensor, as Hugging Face stores them.
    DeviceBuffer offsets(8 * (E + 1)), x(R * D * 2), w(E * 2 * F * D * 2);
    DeviceBuffer gate(R * F * 2), up(R * F * 2), out(R * F * 2), out_only(R * F * 2);
    DeviceBuffer list(R * 4), x_listed(R * D * 2), gathered(R * F * 2);
    DeviceBuffer both(R * 2 * F * 4), tiles(row_tiles_bytes(R, E, 128));
    offsets.upload(s.offsets);
    fill_random(x.get(), dtype, R * D, 1, 1.0f);
    fill_random(w.get(), dtype, E * 2 * F * D, 2, 0.2f);
    list.upload(row_list(R));
    copy_listed(x, row_list(R), D, x_listed);
    dropless::testing::reference_grouped_gemm(x_listed.get(), w.get(), false,
                                              offsets.as<std::int64_t>(), E, D, 2 * F,
                                              both.as<float>(), dtype);
    build_row_tiles(offsets.as<std::int64_t>(), E, 128, tiles.get(), nullptr);
    ConstTensorView w1(w.get(), dtype, {E, F, D}, kGpu);
    w1.stride[0] = 2 * F * D;
    ConstTensorView v1 = w1;
    v1.data = w.as<char>() + F * D * 2;
    const auto routed = [&](const DeviceBuffer& buffer) {
      return TensorView(buffer.get(), dtype, {R, F}, kGpu);
    };
    const ConstTensorView x_RD(x_listed.get(), dtype, {R, D}, kGpu);
    const ConstTensorView v1_or_none = glu ? v1 : ConstTensorView();
    grouped_gemm_activation(activation, x_RD, nullptr, w1, v1_or_none, tiles.get(), routed(gate),
                            glu ? routed(up) : TensorView(), routed(out), nullptr);
    grouped_gemm_activation(activation, x_RD, nullptr, w1, v1_or_none, tiles.get(), TensorView(),
                            TensorView(), routed(out_only), nullptr);
    grouped_gemm_activation(activation, {x.get(), dtype, {R, D}, kGpu}, list.as<std::int32_t>(), w1,
                            v1_or_none, tiles.get(), TensorView(), TensorView(), routed(gathered),
                            nullptr);
    dropless::testing::synchronize();

    const auto reference = values_of(both, DType::kFloat32, R * 2 * F);
    std::vector<double> gate_ref(R * F), up_ref(R * F), out_ref(R * F);
    const auto g = values_of(gate, dtype, R * F), u = values_of(up, dtype, R * F);
    for (std::int64_t r = 0; r < R; ++r) {
      for (std::int64_t c = 0; c < F; ++c) {
        const std::int64_t i = r * F + c;
        gate_ref[i] = reference[r * 2 * F + c];
        up_ref[i] = reference[r * 2 * F + F + c];
        out_ref[i] = act(activation, g[i]) * (glu ? u[i] : 1.0);
      }
    }
    EXPECT_LE(relative_error(g, gate_ref), kTolerance);
    if (glu) {
      EXPECT_LE(relative_error(u, up_ref), kTolerance);
    }
    EXPECT_LE(relative_error(values_of(out, dtype, R * F), out_ref), kTolerance);
    EXPECT_EQ(out.download<std::uint16_t>(R * F), out_only.download<std::uint16_t>(R * F));
    EXPECT_EQ(out.download<std::uint16_t>(R * F), gathered.download<std::uint16_t>(R * F));
  }
}

// gate and up with their biases, added before rounding, whether rows are gathered or not.
TEST_P(ActivationCuda, AddsTheExpertsBiases) {
  const DType dtype = std::get<0>(GetParam());
  const Activation activation = std::get<1>(GetParam());
  const bool glu = std::get<2>(GetParam());
  for (const Sizes& s : kSizes) {
    const std::int64_t E = s.offsets.size() - 1, R = s.offsets.back(), D = s.d, F = s.f;
    DeviceBuffer offsets(8 * (E + 1)), x(R * D * 2), x_listed(R * D * 2), list(R * 4);
    DeviceBuffer w(2 * E * F * D * 2), biases(2 * E * F * 2), product(R * F * 4);
    DeviceBuffer gate(R * F * 2), up(R * F * 2), out(R * F * 2), gathered(R * F * 2);
    DeviceBuffer tiles(row_tiles_bytes(R, E, 128));
    offsets.upload(s.offsets);
    fill_random(x.get(), dtype, R * D, 1, 1.0f);
    fill_random(w.get(), dtype, 2 * E * F * D, 2, 0.2f);
    fill_random(biases.get(), dtype, 2 * E * F, 3, 2.0f);
    list.upload(row_list(R));
    copy_listed(x, row_list(R), D, x_listed);
    build_row_tiles(offsets.as<std::int64_t>(), E, 128, tiles.get(), nullptr);
    const auto plane = [&](const DeviceBuffer& both, std::int64_t plane_size, int i) {
      return both.as<char>() + 2 * i * plane_size;
    };
    const auto weight = [&](int i) {
      return ConstTensorView(plane(w, E * F * D, i), dtype, {E, F, D}, kGpu);
    };
    const auto bias = [&](int i) {
      return ConstTensorView(plane(biases, E * F, i), dtype, {E, F}, kGpu);
    };
    const auto routed = [&](const DeviceBuffer& buffer) {
      return TensorView(buffer.get(), dtype, {R, F}, kGpu);
    };
    const auto run = [&](const DeviceBuffer& rows, const std::int32_t* rows_list, bool save,
                         const DeviceBuffer& act_RF) {
      grouped_gemm_activation(activation, {rows.get(), dtype, {R, D}, kGpu}, rows_list, weight(0),
                              glu ? weight(1) : ConstTensorView(), tiles.get(),
                              save ? routed(gate) : TensorView(),
                              save && glu ? routed(up) : TensorView(), routed(act_RF), nullptr,
                              bias(0), glu ? bias(1) : ConstTensorView());
    };
    run(x_listed, nullptr, true, out);
    run(x, list.as<std::int32_t>(), false, gathered);

    const auto bias_2EF = values_of(biases, dtype, 2 * E * F);
    std::vector<double> computed[2], expected(R * F, 1.0);
    for (int i = 0; i < (glu ? 2 : 1); ++i) {
      dropless::testing::reference_grouped_gemm(x_listed.get(), weight(i).data, false,
                                                offsets.as<std::int64_t>(), E, D, F,
                                                product.as<float>(), dtype);
      auto pre = values_of(product, DType::kFloat32, R * F);
      computed[i] = values_of(i == 0 ? gate : up, dtype, R * F);
      for (std::int64_t e = 0; e < E; ++e) {
        for (std::int64_t j = s.offsets[e] * F; j < s.offsets[e + 1] * F; ++j) {
          pre[j] += bias_2EF[(i * E + e) * F + j % F];
          expected[j] *= i == 0 ? act(activation, computed[0][j]) : computed[1][j];
        }
      }
      EXPECT_LE(relative_error(computed[i], pre), kTolerance);
    }
    EXPECT_LE(relative_error(values_of(out, dtype, R * F), expected), kTolerance);
    EXPECT_EQ(out.download<std::uint16_t>(R * F), gathered.download<std::uint16_t>(R * F));
  }
}

// With faint rows those are compared once more on their own: beside the others no norm tells of them.
void check_backward(DType dtype, Activation activation, bool glu, const Sizes& s,
                    bool with_faint_rows = false) {
  const std::int64_t E = s.offsets.size() - 1, R = s.offsets.back(), D = s.d, F = s.f;
  const std::int64_t parts = (F + kActivationGradColumns - 1) / kActivationGradColumns;
  DeviceBuffer offsets(8 * (E + 1)), d_out(R * D * 2), w2(E * F * D * 2), scores(R * 4);
  DeviceBuffer gate(R * F * 2), up(R * F * 2), out(R * F * 2), t(R * F * 4);
  DeviceBuffer list(R * 4), d_out_listed(R * D * 2);
  DeviceBuffer d_scores(parts * R * 4), tiles(row_tiles_bytes(R, E, 128));
  offsets.upload(s.offsets);
  fill_random(d_out.get(), dtype, R * D, 1, 1.0f);
  fill_random(w2.get(), dtype, E * F * D, 2, 0.2f);
  fill_random(gate.get(), dtype, R * F, 3, 4.0f);
  fill_random(up.get(), dtype, R * F, 4, 2.0f);
  fill_random(scores.get(), DType::kFloat32, R, 5, 1.0f);
  std::vector<std::int32_t> tokens = row_list(R);
  if (with_faint_rows) {
    std::iota(tokens.begin(), tokens.end(), 0);
    make_faint(d_out, R, D);
  }
  list.upload(tokens);
  copy_listed(d_out, tokens, D, d_out_listed);
  dropless::testing::reference_grouped_gemm(d_out_listed.get(), w2.get(), false,
                                            offsets.as<std::int64_t>(), E, D, F, t.as<float>(),
                                            dtype);
  const auto g = values_of(gate, dtype, R * F), u = values_of(up, dtype, R * F);
  build_row_tiles(offsets.as<std::int64_t>(), E, 128, tiles.get(), nullptr);
  const auto routed = [&](const DeviceBuffer& buffer) {
    return TensorView(buffer.get(), dtype, {R, F}, kGpu);
  };
  grouped_gemm_activation_grad(
      activation, {d_out.get(), dtype, {R, D}, kGpu}, list.as<std::int32_t>(),
      {w2.get(), dtype, {E, F, D}, kGpu}, scores.as<float>(), tiles.get(), routed(gate),
      glu ? routed(up) : TensorView(), routed(out), d_scores.as<float>(), nullptr);
  dropless::testing::synchronize();

  const auto t_RF = values_of(t, DType::kFloat32, R * F),
             s_R = values_of(scores, DType::kFloat32, R);
  const auto partial = values_of(d_scores, DType::kFloat32, parts * R);
  std::vector<double> d_gate(R * F), d_up(R * F), scaled(R * F), d_s(R, 0.0), d_s_ref(R, 0.0);
  for (std::int64_t r = 0; r < R; ++r) {
    for (std::int64_t c = 0; c < F; ++c) {
      const std::int64_t i = r * F + c;
      const double up_value = glu ? u[i] : 1.0, value = act(activation, g[i]);
      d_gate[i] = s_R[r] * t_RF[i] * up_value * slope(activation, g[i]);
      d_up[i] = s_R[r] * t_RF[i] * value;
      scaled[i] = s_R[r] * value * up_value;
      d_s_ref[r] += t_RF[i] * value * up_value;
    }
    for (std::int64_t i = 0; i < parts; ++i) d_s[r] += partial[i * R + r];
  }
  const auto expect_close = [&](const char* what, const std::vector<double>& actual,
                                const std::vector<double>& expected, std::int64_t width,
                                double tolerance) {
    EXPECT_LE(relative_error(actual, expected), tolerance) << what;
    if (!with_faint_rows) return;
    EXPECT_LE(relative_error(faint_rows(actual, width), faint_rows(expected, width)), tolerance)
        << what << " of faint rows";
  };
  expect_close("d_gate", values_of(gate, dtype, R * F), d_gate, F, kTolerance);
  if (glu) expect_close("d_up", values_of(up, dtype, R * F), d_up, F, kTolerance);
  expect_close("a'", values_of(out, dtype, R * F), scaled, F, kTolerance);
  expect_close("d_s", d_s, d_s_ref, 1, 1e-3);
}

TEST_P(ActivationCuda, BackwardMatchesPlainLoops) {
  const auto [dtype, activation, glu] = GetParam();
  for (const Sizes& s : kSizes) check_backward(dtype, activation, glu, s);
}

// More tiles than a GPU has multiprocessors: a tile's gradients are computed while the next one is multiplied, in pieces that lie
// the closer the shorter d is.
TEST(ActivationGradCuda, ManyTilesMatchPlainLoops) {
  if (!dropless::testing::gpu_supported())
    GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  for (const std::int64_t d : {200, 1024, 1600, 2048}) {
    const Sizes sizes{{0, 200, 200, 1000, 1011, 1300}, d, 4072};
    check_backward(DType::kBFloat16, Activation::kSilu, true, sizes);
    check_backward(DType::kFloat16, Activation::kSilu, d < 1024, sizes);
  }
}

// Half of the rows 2^-40 of the others, in either half of a thread's pair. Only bf16 has gradients as small.
TEST(ActivationGradCuda, FaintRowsKeepTheirBits) {
  if (!dropless::testing::gpu_supported())
    GTEST_SKIP() << "no GPU of compute capability 8.0 or later";
  for (const Sizes& s : kSizes) {
    for (const bool glu : {false, true}) {
      check_backward(DType::kBFloat16, Activation::kSilu, glu, s, true);
      check_backward(DType::kBFloat16, Activation::kGelu, glu, s, true);
    }
  }
}

std::string case_name(const ::testing::TestParamInfo<ActivationCuda::ParamType>& info) {
  const auto [dtype, activation, glu] = info.param;
  return std::string(dtype_name(dtype)) + "_" + ::testing::PrintToString(activation) +
         (glu ? "_glu" : "_plain");
}

INSTANTIATE_TEST_SUITE_P(, ActivationCuda,
                         ::testing::Combine(::testing::Values(DType::kBFloat16, DType::kFloat16),
                                            ::testing::Values(Activation::kSilu,
                                                              Activation::kGeluTanh,
                                                              Activation::kGelu, Activation::kRelu,
                                                              Activation::kQuickGelu),
                                            ::testing::Bool()),
                         case_name);

}  // namespace
}  // namespace dropless::cuda
