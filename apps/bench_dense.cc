// The contract is bench_dense.h.
#include "apps/bench_dense.h"

#include <torch/csrc/autograd/autograd.h>

#include <cmath>

namespace dropless::apps {

DenseExperts::DenseExperts(std::int64_t rows, std::int64_t d, std::int64_t f, std::int64_t experts,
                           at::TensorOptions options) {
  const at::NoGradGuard no_grad;
  const std::int64_t n = std::max<std::int64_t>(rows / experts, 1);
  const auto random = [&](std::int64_t a, std::int64_t b) {
    return at::randn({a, b}, options).mul_(0.05);
  };
  const bool one_dnn = options.dtype() == at::kFloat;
  const auto add = [&](bool backward, const at::Tensor& a, const at::Tensor& b) {
    (backward ? backward_ : forward_).push_back({at::empty({a.size(0), b.size(1)}, options), a, b});
    if (!one_dnn) return;
    (backward ? backward_linears_ : forward_linears_)
        .push_back({a.contiguous().to_mkldnn(), b.t().contiguous().to_mkldnn()});
  };
  for (std::int64_t e = 0; e < experts; ++e) {
    const at::Tensor x = random(n, d), dy = random(n, d), h = random(n, f), dg = random(n, f),
                     du = random(n, f), w1 = random(f, d), v1 = random(f, d), w2 = random(f, d);
    add(false, x, w1.t());
    add(false, x, v1.t());
    add(false, h, w2);
    add(true, dy, w2.t());
    add(true, h.t(), dy);
    add(true, dg.t(), x);
    add(true, du.t(), x);
    add(true, dg, w1);
    add(true, du, v1);
  }
}

void DenseExperts::run(Library library, bool backward) {
  const at::NoGradGuard no_grad;
  if (library == Library::kOneDnn) {
    for (const Linear& p : forward_linears_) at::mkldnn_linear(p.input, p.weight, {});
    if (!backward) return;
    for (const Linear& p : backward_linears_) at::mkldnn_linear(p.input, p.weight, {});
    return;
  }
  for (Product& p : forward_) at::mm_out(p.out, p.a, p.b);
  if (!backward) return;
  for (Product& p : backward_) at::mm_out(p.out, p.a, p.b);
}

DenseModel::DenseModel(std::int64_t tokens, std::int64_t d, std::int64_t f,
                       at::TensorOptions options) {
  const double in = 1 / std::sqrt(static_cast<double>(d));
  inputs_ = {at::randn({tokens, d}, options), at::randn({f, d}, options).mul_(in),
             at::randn({f, d}, options).mul_(in), at::randn({f, d}, options).mul_(in)};
  for (at::Tensor& input : inputs_) input.set_requires_grad(true);
  d_out_ = at::randn({tokens, d}, options);
}

at::Tensor DenseModel::forward() const {
  const at::Tensor h =
      at::silu(at::linear(inputs_[0], inputs_[1])) * at::linear(inputs_[0], inputs_[2]);
  return at::matmul(h, inputs_[3]);
}

void DenseModel::backward(const at::Tensor& out) const {
  torch::autograd::grad({out}, inputs_, {d_out_});
}

}  // namespace dropless::apps
