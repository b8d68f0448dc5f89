#include "train/nn/rope.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace dropless::train {
namespace {

// What a table is in beside x: a CPU multiplies 16-bit numbers in fp32, a GPU's operators want one type.
at::ScalarType table_type(const at::Tensor& x) {
  return x.is_cpu() ? at::toOpMathType(x.scalar_type()) : x.scalar_type();
}

// x [B, S, heads, 2 half], its last stride 1, tables [S, 1, half] -> y, contiguous.
template <typename T, typename Table = at::opmath_type<T>>
void rotate_rows(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, double sign,
                 at::Tensor& y) {
  const std::int64_t S = x.size(1), H = x.size(2), half = x.size(3) / 2;
  const std::int64_t stride_b = x.stride(0), stride_s = x.stride(1), stride_h = x.stride(2);
  const T* x_data = x.const_data_ptr<T>();
  const Table *cos_data = cos.const_data_ptr<Table>(), *sin_data = sin.const_data_ptr<Table>();
  T* y_data = y.mutable_data_ptr<T>();
  const auto factor = static_cast<Table>(sign);
  const auto positions = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t s = p % S;
      const Table *c = cos_data + s * half, *n = sin_data + s * half;
      for (std::int64_t h = 0; h < H; ++h) {
        const T* from = x_data + p / S * stride_b + s * stride_s + h * stride_h;
        T* to = y_data + (p * H + h) * 2 * half;
        for (std::int64_t i = 0; i < half; ++i) {
          const Table x1 = from[i], x2 = from[i + half], sine = n[i] * factor;
          to[i] = static_cast<T>(x1 * c[i] - x2 * sine);
          to[i + half] = static_cast<T>(x2 * c[i] + x1 * sine);
        }
      }
    }
  };
  const std::int64_t grain = std::max<std::int64_t>(1, 16384 / (H * 2 * half));
  at::parallel_for(0, x.size(0) * S, grain, positions);
}

// One node instead of the six of the composed form; the gradient is the rotation by the opposite
// angle. On a CPU also one pass: libtorch's loops over half a head are short, and in bf16 scalar.
at::Tensor rotate(const at::Tensor& x_any, const at::Tensor& cos, const at::Tensor& sin,
                  double sign) {
  const bool on_cpu = x_any.is_cpu();
  const at::Tensor x = on_cpu && x_any.stride(-1) != 1 ? x_any.contiguous() : x_any;
  at::Tensor y = at::empty(x.sizes(), x.options());
  if (on_cpu) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "rotate",
                                    [&] { rotate_rows<scalar_t>(x, cos, sin, sign, y); });
    return y;
  }
  const std::int64_t half = x.size(-1) / 2;
  const at::Tensor x1 = x.narrow(-1, 0, half), x2 = x.narrow(-1, half, half);
  at::Tensor y1 = y.narrow(-1, 0, half), y2 = y.narrow(-1, half, half);
  at::mul_out(y1, x1, cos);
  y1.addcmul_(x2, sin, -sign);
  at::mul_out(y2, x2, cos);
  y2.addcmul_(x1, sin, sign);
  return y;
}

struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& cos, const at::Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return rotate(x, cos, sin, 1.0);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {rotate(grads[0], saved[0], saved[1], -1.0), at::Tensor(), at::Tensor()};
  }
};

at::Tensor llama3_frequencies(const at::Tensor& f, const RopeScaling& s) {
  const at::Tensor turns =
      f * (static_cast<double>(s.original_max_seq_len) / (2 * std::numbers::pi));
  const at::Tensor smooth =
      ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1);
  return f * (smooth + (1 - smooth) / s.factor);
}

at::Tensor yarn_frequencies(const at::Tensor& f, double theta, const RopeScaling& s) {
  const auto half = static_cast<double>(f.size(0));
  // The index whose angle makes that many turns over the N positions.
  const auto index = [&](double turns) {
    const double n = static_cast<double>(s.original_max_seq_len);
    return half * std::log(n / (turns * 2 * std::numbers::pi)) / std::log(theta);
  };
  double low = index(s.beta_fast), high = index(s.beta_slow);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, 2 * half - 1);
  if (low == high) high += 0.001;
  const at::Tensor ramp = ((at::arange(f.size(0), at::kDouble) - low) / (high - low)).clamp(0, 1);
  return f * (ramp / s.factor + (1 - ramp));
}

}  // namespace

at::Tensor rope_frequencies(std::int64_t head_dim, double theta, const RopeScaling& scaling,
                            std::int64_t positions) {
  const auto d = static_cast<double>(head_dim);
  if (scaling.depends_on_length(positions)) {
    const double longer =
        static_cast<double>(positions) / static_cast<double>(scaling.original_max_seq_len);
    theta *= std::pow(scaling.factor * longer - (scaling.factor - 1), d / (d - 2));
  }
  at::Tensor f = at::pow(theta, at::arange(head_dim / 2, at::kDouble) * (-2 / d));
  switch (scaling.type) {
    case RopeScaling::Type::kLinear:
      return f / scaling.factor;
    case RopeScaling::Type::kLlama3:
      return llama3_frequencies(f, scaling);
    case RopeScaling::Type::kYarn:
      return yarn_frequencies(f, theta, scaling);
    default:
      return f;
  }
}

Rope::Rope(std::int64_t head_dim, double theta, const RopeScaling& scaling, at::Device device,
           at::ScalarType type)
    : head_dim_(head_dim), theta_(theta), scaling_(scaling), device_(device), type_(type) {}

void Rope::fill(std::int64_t positions) {
  const std::int64_t have = cos_.defined() ? cos_.size(0) : 0;
  const bool stretched =
      scaling_.depends_on_length(positions) || scaling_.depends_on_length(filled_for_);
  if (stretched ? filled_for_ == positions : have >= positions) return;
  filled_for_ = positions;
  // Generation adds one position after the other.
  const std::int64_t rows = stretched ? positions : std::max(positions, 2 * have);
  // Angles in fp64: at position 1e5 fp32 has lost three digits of the phase.
  const at::Tensor f = rope_frequencies(head_dim_, theta_, scaling_, positions);
  const at::Tensor angle = at::arange(rows, at::kDouble).unsqueeze(1) * f.unsqueeze(0);
  const auto table = [&](const at::Tensor& values) {
    return (values * scaling_.attention_factor).to(type_).unsqueeze(1).to(device_);
  };
  cos_ = table(angle.cos());
  sin_ = table(angle.sin());
  cast_cos_ = cast_sin_ = at::Tensor();
}

// Cast whole and kept: what every call saves for backward is then a view.
void Rope::cast_tables(const at::Tensor& x) {
  const at::ScalarType type = table_type(x);
  if (cast_cos_.defined() && cast_cos_.scalar_type() == type) return;
  cast_cos_ = cos_.to(type);
  cast_sin_ = sin_.to(type);
}

at::Tensor Rope::forward(const at::Tensor& x, std::int64_t first) {
  fill(first + x.size(1));
  cast_tables(x);
  return RopeFunction::apply(x, cast_cos_.narrow(0, first, x.size(1)),
                             cast_sin_.narrow(0, first, x.size(1)));
}

std::pair<at::Tensor, at::Tensor> Rope::tables(std::int64_t positions) {
  fill(positions);
  return {cos_.squeeze(1), sin_.squeeze(1)};
}

at::Tensor Rope::forward_at(const at::Tensor& x, const at::Tensor& position_1,
                            std::int64_t positions) {
  fill(positions);
  cast_tables(x);
  return rotate(x, cast_cos_.index_select(0, position_1), cast_sin_.index_select(0, position_1),
                1.0);
}

}  // namespace dropless::train
