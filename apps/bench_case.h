// What `bench moe` times: one layer's tensors, and the dense products that do the same arithmetic.
#pragma once

#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <vector>

#include "train/bridge/moe.h"
#include "train/nn/moe_torch.h"

namespace dropless::apps {

struct LayerShape {
  std::int64_t T, d, f, E, k;
};

using LayerFunction = train::MoEResult (*)(const MoEConfig&, const at::Tensor&, const at::Tensor&,
                                           const at::Tensor&, const at::Tensor&, const at::Tensor&);

// Without the arguments that have defaults.
inline train::MoEResult moe_layer(const MoEConfig& config, const at::Tensor& x,
                                  const at::Tensor& router, const at::Tensor& w1,
                                  const at::Tensor& v1, const at::Tensor& w2) {
  return train::moe_layer(config, x, router, w1, v1, w2);
}
inline train::MoEResult moe_layer_torch(const MoEConfig& config, const at::Tensor& x,
                                        const at::Tensor& router, const at::Tensor& w1,
                                        const at::Tensor& v1, const at::Tensor& w2) {
  return train::moe_layer_torch(config, x, router, w1, v1, w2);
}

// SwiGLU, random tokens and router.
class LayerCase {
 public:
  LayerCase(const LayerShape& s, at::TensorOptions options) : s_(s), R_(s.T * s.k) {
    config_ = {.num_experts = s.E, .top_k = s.k, .d_model = s.d, .d_ffn = s.f, .route = {}};
    const auto random = [&](at::IntArrayRef shape, double scale) {
      return at::randn(shape, options).mul_(scale);
    };
    const double in = 1 / std::sqrt(s.d);
    inputs_ = {random({s.T, s.d}, 1), random({s.E, s.d}, in), random({s.E, s.f, s.d}, in),
               random({s.E, s.f, s.d}, in), random({s.E, s.f, s.d}, 1 / std::sqrt(s.f))};
    for (at::Tensor& input : inputs_) input.set_requires_grad(true);
    d_out_ = random({s.T, s.d}, 1);
    rows_d_ = random({R_, s.d}, 1);
    rows_f_ = random({R_, s.f}, 1);
    rows_2f_ = random({R_, 2 * s.f}, 1);
    w_d2f_ = random({s.d, 2 * s.f}, in);
    w_df_ = random({s.d, s.f}, in);
  }

  at::Tensor forward(LayerFunction layer) const {
    return layer(config_, inputs_[0], inputs_[1], inputs_[2], inputs_[3], inputs_[4]).out_TD;
  }
  void backward(const at::Tensor& out) const { torch::autograd::grad({out}, inputs_, {d_out_}); }
  // Up and down; with backward also the gradients of activations and weights.
  void dense(bool backward) const {
    const at::NoGradGuard no_grad;
    at::mm(rows_d_, w_d2f_);
    at::mm(rows_f_, w_df_.t());
    if (!backward) return;
    at::mm(rows_d_, w_df_);
    at::mm(rows_2f_, w_d2f_.t());
    at::mm(rows_f_.t(), rows_d_);
    at::mm(rows_2f_.t(), rows_d_);
  }
  // Moves as many bytes as one combination of the experts' outputs.
  void copy_combine() const {
    const std::int64_t half = (R_ + s_.T) / 2;
    rows_d_.narrow(0, 0, half).clone();
  }
  std::int64_t gradient_bytes() const {
    std::int64_t bytes = 0;
    for (const at::Tensor& input : inputs_) bytes += static_cast<std::int64_t>(input.nbytes());
    return bytes;
  }
  double forward_flops() const { return 6.0 * R_ * s_.d * s_.f; }

 private:
  LayerShape s_;
  std::int64_t R_;
  MoEConfig config_;
  std::vector<at::Tensor> inputs_;  // x, router, w1, v1, w2
  at::Tensor d_out_, rows_d_, rows_f_, rows_2f_, w_d2f_, w_df_;
};

}  // namespace dropless::apps
