#include "train/nn/recompute.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <utility>

#include "train/nn/precision.h"

namespace dropless::train {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What backward needs besides x, in a form that a context can hold.
struct Held : torch::CustomClassHolder {
  Recomputed body;
  AutocastState autocast;
};

struct Checkpoint : torch::autograd::Function<Checkpoint> {
  // `anchor` requires a gradient, so that backward comes here even where x requires none.
  static variable_list forward(AutogradContext* context, const at::Tensor& x, const at::Tensor&,
                               const Recomputed& body) {
    auto held = c10::make_intrusive<Held>();
    held->body = body;
    held->autocast = AutocastState::of(x.device());
    context->saved_data["held"] = c10::IValue::make_capsule(std::move(held));
    context->save_for_backward({x});
    return body(x);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto capsule = context->saved_data["held"].toCapsule();
    const auto& held = static_cast<const Held&>(*capsule);
    const at::Tensor saved = context->get_saved_variables()[0];
    const at::Tensor x = saved.detach().requires_grad_(saved.is_floating_point());
    variable_list outputs, weights;
    {
      const at::AutoGradMode with_graph(true);
      const AutocastGuard autocast(held.autocast, x.device());
      const std::vector<at::Tensor> all = held.body(x);
      for (std::size_t i = 0; i < all.size(); ++i) {
        if (!gradients[i].defined() || !all[i].requires_grad()) continue;
        outputs.push_back(all[i]);
        weights.push_back(gradients[i]);
      }
    }
    if (!outputs.empty()) torch::autograd::backward(outputs, weights);
    return {x.grad(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

std::vector<at::Tensor> recompute_in_backward(const Recomputed& body, const at::Tensor& x) {
  if (!at::GradMode::is_enabled()) return body(x);
  const at::Tensor anchor = at::empty({0}, x.options()).requires_grad_();
  return Checkpoint::apply(x, anchor, body);
}

}  // namespace dropless::train
