#include "train/nn/rope.h"

namespace dropless::train {
namespace {

// One node instead of the six of the composed form; the gradient is the rotation by the opposite
// angle.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, double sign) {
  const std::int64_t half = x.size(-1) / 2;
  const at::Tensor x1 = x.narrow(-1, 0, half), x2 = x.narrow(-1, half, half);
  at::Tensor y = at::empty(x.sizes(), x.options());
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

}  // namespace

Rope::Rope(std::int64_t head_dim, double theta, at::Device device)
    : half_(head_dim / 2), theta_(theta), device_(device) {}

void Rope::grow(std::int64_t positions) {
  if (cos_.defined() && cos_.size(0) >= positions) return;
  // Angles in fp64: at position 1e5 fp32 has lost three digits of the phase.
  const at::Tensor i = at::arange(half_, at::kDouble);
  const at::Tensor frequency = at::pow(theta_, i * (-1.0 / static_cast<double>(half_)));
  const at::Tensor angle = at::arange(positions, at::kDouble).unsqueeze(1) * frequency.unsqueeze(0);
  cos_ = angle.cos().to(at::kFloat).unsqueeze(1).to(device_);
  sin_ = angle.sin().to(at::kFloat).unsqueeze(1).to(device_);
}

at::Tensor Rope::forward(const at::Tensor& x, std::int64_t first) {
  grow(first + x.size(1));
  const at::Tensor cos = cos_.narrow(0, first, x.size(1)).to(x.scalar_type());
  const at::Tensor sin = sin_.narrow(0, first, x.size(1)).to(x.scalar_type());
  return RopeFunction::apply(x, cos, sin);
}

}  // namespace dropless::train
