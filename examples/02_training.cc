// Trains one mixture-of-experts layer with a loop and an optimiser (Adam) of its own: forward, loss,
// backward, update. The toy problem has what experts are good at: the plane is cut into quadrants, and
// the function to learn is another linear map in each.
#include <cstdio>

#include "examples/tensor.h"

namespace {

using namespace dropless;
using examples::Tensor;

constexpr std::int64_t kTokens = 512, kWidth = 8;

// y = M_q x, with q the quadrant of (x_0, x_1).
struct Problem {
  explicit Problem(std::mt19937& random) : maps{4, kWidth, kWidth} {
    maps.fill_normal(random, 0.6);
  }

  void draw(std::mt19937& random, Tensor<float>& x_TD, Tensor<float>& y_TD) const {
    x_TD.fill_normal(random, 1);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const float* x = &x_TD[t * kWidth];
      const std::int64_t quadrant = (x[0] > 0) + 2 * (x[1] > 0);
      for (std::int64_t i = 0; i < kWidth; ++i) {
        float sum = 0;
        for (std::int64_t j = 0; j < kWidth; ++j)
          sum += maps[(quadrant * kWidth + i) * kWidth + j] * x[j];
        y_TD[t * kWidth + i] = sum;
      }
    }
  }

  Tensor<float> maps;
};

// Adam (Kingma and Ba 2014, arXiv:1412.6980) of one tensor.
class Adam {
 public:
  explicit Adam(Tensor<float>& weight)
      : weight_(weight), mean_(weight.values().size()), square_(weight.values().size()) {}

  void update(const Tensor<float>& gradient, int step, float rate) {
    const float b1 = 0.9f, b2 = 0.99f;
    const float scale1 = 1 - std::pow(b1, static_cast<float>(step));
    const float scale2 = 1 - std::pow(b2, static_cast<float>(step));
    for (std::size_t i = 0; i < mean_.size(); ++i) {
      const float g = gradient.values()[i];
      mean_[i] = b1 * mean_[i] + (1 - b1) * g;
      square_[i] = b2 * square_[i] + (1 - b2) * g * g;
      weight_.values()[i] -= rate * (mean_[i] / scale1) / (std::sqrt(square_[i] / scale2) + 1e-8f);
    }
  }

 private:
  Tensor<float>& weight_;
  std::vector<float> mean_, square_;
};

// Mean square error; its gradient to d_out.
double loss_of(const Tensor<float>& out, const Tensor<float>& y, Tensor<float>& d_out) {
  double loss = 0;
  const auto n = static_cast<float>(out.size());
  for (std::int64_t i = 0; i < out.size(); ++i) {
    const float error = out[i] - y[i];
    loss += error * error / n;
    d_out[i] = 2 * error / n;
  }
  return loss;
}

}  // namespace

int main() {
  const MoEConfig config{
      .num_experts = 8, .top_k = 2, .d_model = kWidth, .d_ffn = 32, .route = {.normalize_p = 1}};
  std::mt19937 random(2);
  const Problem problem(random);
  examples::Layer layer(config, random);
  examples::Saved saved(config, kTokens);
  Tensor<float> x{kTokens, kWidth}, y{kTokens, kWidth}, out{kTokens, kWidth}, losses{2};
  Tensor<float> d_out{kTokens, kWidth}, d_losses{2}, d_x{kTokens, kWidth};
  const std::int64_t E = config.num_experts, F = config.d_ffn;
  Tensor<float> d_router{E, kWidth}, d_w1{E, F, kWidth}, d_v1{E, F, kWidth}, d_w2{E, F, kWidth};
  const MoEGradients gradients{
      .x_TD = d_x, .router_ED = d_router, .w1_EFD = d_w1, .v1_EFD = d_v1, .w2_EFD = d_w2};
  Adam router(layer.router_ED), w1(layer.w1_EFD), v1(layer.v1_EFD), w2(layer.w2_EFD);

  // One workspace serves both directions.
  examples::Workspace workspace(
      std::max(moe_forward_workspace_bytes(config, kTokens, DType::kFloat32),
               moe_backward_workspace_bytes(config, kTokens, DType::kFloat32)));
  d_losses[0] = 0.01f;  // the weight of the load-balancing loss
  double first = 0, last = 0;
  const int steps = 600;
  for (int step = 1; step <= steps; ++step) {
    problem.draw(random, x, y);
    moe_forward(config, x, layer.weights(), out, losses, {}, saved.views(), workspace.data(),
                workspace.bytes());
    last = loss_of(out, y, d_out);
    if (step == 1) first = last;
    moe_backward(config, x, layer.weights(), saved.views(), d_out, d_losses, gradients,
                 workspace.data(), workspace.bytes());
    const float rate = 0.01f * (1 - 0.95f * static_cast<float>(step) / steps);
    router.update(d_router, step, rate);
    w1.update(d_w1, step, rate);
    v1.update(d_v1, step, rate);
    w2.update(d_w2, step, rate);
    if (step % 100 == 0 || step == 1) {
      std::printf("step %4d  loss %.4f  balance %.3f\n", step, last, losses[0]);
    }
  }
  return last < 0.1 * first ? 0 : 1;
}
