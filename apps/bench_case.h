// What `bench moe` times: one layer's tensors, the dense products that do the same arithmetic, and
// the dense network of equal active parameters.
#pragma once

#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "apps/bench_routing.h"
#include "dropless/error.h"
#include "train/bridge/moe.h"

namespace dropless::apps {

struct LayerShape {
  std::int64_t T, d, f, E, k;
};

// Of --dtype: bf16, fp16 or fp32.
inline at::ScalarType bench_type(const std::string& dtype) {
  return dtype == "bf16" ? at::kBFloat16 : dtype == "fp16" ? at::kHalf : at::kFloat;
}

// The layer's output from its config, x, router, w1, v1, w2.
using LayerFunction =
    std::function<at::Tensor(const MoEConfig&, const at::Tensor&, const at::Tensor&,
                             const at::Tensor&, const at::Tensor&, const at::Tensor&)>;

inline at::Tensor own_layer(const MoEConfig& config, const at::Tensor& x, const at::Tensor& router,
                            const at::Tensor& w1, const at::Tensor& v1, const at::Tensor& w2) {
  return train::moe_layer(config, x, router, w1, v1, w2).out_TD;
}

// Throws Error(kInvalidArgument) for a routing that a shape cannot have.
inline void expect_fit(const LayerShape& s, const RoutingChoice& routing) {
  if (routing.kind == Routing::kLoads && std::ssize(routing.loads) != s.E) {
    throw Error(ErrorKind::kInvalidArgument,
                "the run of --routing has " + std::to_string(routing.loads.size()) +
                    " experts, the shape " + std::to_string(s.E),
                "give a --shape of as many experts");
  }
  if (routing.kind != Routing::kRouter && s.d < s.E) {
    throw Error(ErrorKind::kInvalidArgument,
                "routings of one's choice need d >= E, not d " + std::to_string(s.d) + ", E " +
                    std::to_string(s.E),
                "use --routing router");
  }
}

// SwiGLU, random tokens and weights.
class LayerCase {
 public:
  LayerCase(const LayerShape& s, const RoutingChoice& routing, at::TensorOptions options)
      : s_(s), R_(s.T * s.k) {
    expect_fit(s, routing);
    config_ = {.num_experts = s.E, .top_k = s.k, .d_model = s.d, .d_ffn = s.f, .route = {}};
    const auto random = [&](at::IntArrayRef shape, double scale) {
      return at::randn(shape, options).mul_(scale);
    };
    const double in = 1 / std::sqrt(s.d);
    inputs_ = {random({s.T, s.d}, 1), random({s.E, s.d}, in), random({s.E, s.f, s.d}, in),
               random({s.E, s.f, s.d}, in), random({s.E, s.f, s.d}, 1 / std::sqrt(s.f))};
    if (routing.kind != Routing::kRouter) set_logits(logits_for(routing, options));
    dense_model_ = {random({s.k * s.f, s.d}, in), random({s.k * s.f, s.d}, in),
                    random({s.d, s.k * s.f}, 1 / std::sqrt(s.k * s.f))};
    for (at::Tensor& input : inputs_) input.set_requires_grad(true);
    for (at::Tensor& weight : dense_model_) weight.set_requires_grad(true);
    d_out_ = random({s.T, s.d}, 1);
    rows_d_ = random({R_, s.d}, 1);
    rows_f_ = random({R_, s.f}, 1);
    rows_2f_ = random({R_, 2 * s.f}, 1);
    w_2fd_ = random({2 * s.f, s.d}, in);
    w_d2f_ = random({s.d, 2 * s.f}, in);
    w_fd_ = random({s.f, s.d}, in);
  }

  at::Tensor forward(const LayerFunction& layer) const {
    return layer(config_, inputs_[0], inputs_[1], inputs_[2], inputs_[3], inputs_[4]);
  }
  // Of x, router, w1, v1, w2.
  torch::autograd::variable_list gradients(const at::Tensor& out) const {
    return torch::autograd::grad({out}, inputs_, {d_out_});
  }

  // Up and down; with backward also the gradients of activations and weights. Of each product's two layouts the one that
  // cuBLAS had faster on more of the six shapes (an H200: up to 2 %).
  void dense(bool backward) const {
    const at::NoGradGuard no_grad;
    at::mm(rows_d_, w_2fd_.t());
    at::mm(rows_f_, w_fd_);
    if (!backward) return;
    at::mm(rows_d_, w_fd_.t());
    at::mm(rows_2f_, w_d2f_.t());
    at::mm(rows_d_.t(), rows_f_);
    at::mm(rows_d_.t(), rows_2f_);
  }

  // A dense SwiGLU network of width k f: as many parameters as a token of the layer meets.
  at::Tensor dense_model_forward() const {
    const at::Tensor& x = inputs_[0];
    const at::Tensor gate = at::linear(x, dense_model_[0]), up = at::linear(x, dense_model_[1]);
    return at::linear(at::silu(gate).mul(up), dense_model_[2]);
  }
  void dense_model_backward(const at::Tensor& out) const {
    torch::autograd::grad({out}, {inputs_[0], dense_model_[0], dense_model_[1], dense_model_[2]},
                          {d_out_});
  }

  // Read and written by one combination of the experts' outputs.
  double combined_bytes() const {
    return static_cast<double>((R_ + s_.T) * s_.d) * static_cast<double>(rows_d_.element_size());
  }
  std::int64_t gradient_bytes() const {
    std::int64_t bytes = 0;
    for (const at::Tensor& input : inputs_) bytes += static_cast<std::int64_t>(input.nbytes());
    return bytes;
  }
  double forward_flops() const { return 6.0 * R_ * s_.d * s_.f; }

 private:
  at::Tensor logits_for(const RoutingChoice& routing, at::TensorOptions options) const {
    const at::TensorOptions fp32 = options.dtype(at::kFloat);
    const at::Tensor experts_E = at::arange(s_.E, fp32);
    if (routing.kind == Routing::kUniform) {
      const at::Tensor first_T1 = at::arange(s_.T, fp32).mul_(s_.k).remainder_(s_.E).unsqueeze(1);
      const at::Tensor chosen = (experts_E - first_T1).remainder(s_.E).lt(s_.k);
      return chosen.to(at::kFloat).mul_(4).add_(at::randn({s_.T, s_.E}, fp32), 0.1);
    }
    // The k largest of log-weights with Gumbel noise: k experts drawn by weight without repetition.
    const at::Tensor uniform = at::rand({s_.T, s_.E}, fp32).clamp_(1e-7, 1 - 1e-7);
    const at::Tensor log_weights_E =
        routing.kind == Routing::kZipf
            ? -at::log1p(experts_E)
            : at::tensor(routing.loads, at::kDouble).log().to(experts_E.options());
    return uniform.log_().neg_().log_().neg_().add_(log_weights_E);
  }

  // The router reads the logits off the tokens' first E columns.
  void set_logits(const at::Tensor& logits_TE) {
    inputs_[0].narrow(1, 0, s_.E).copy_(logits_TE);
    inputs_[1].zero_().narrow(1, 0, s_.E).copy_(at::eye(s_.E, inputs_[1].options()));
  }

  LayerShape s_;
  std::int64_t R_;
  MoEConfig config_;
  std::vector<at::Tensor> inputs_;       // x, router, w1, v1, w2
  std::vector<at::Tensor> dense_model_;  // gate, up, down
  at::Tensor d_out_, rows_d_, rows_f_, rows_2f_, w_2fd_, w_d2f_, w_fd_;
};

}  // namespace dropless::apps
