#include "train/bridge/moe.h"

#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "dropless/error.h"
#include "dropless/permute.h"
#include "train/bridge/device.h"
#include "train/bridge/views.h"

namespace dropless::train {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Scratch for one call: 64-byte aligned by libtorch's allocator, returned to its cache afterwards.
at::Tensor make_workspace(std::size_t bytes, const at::Tensor& like) {
  return at::empty({static_cast<std::int64_t>(bytes)}, like.options().dtype(at::kByte));
}

// What the node carries from forward to backward besides tensors.
struct NodeState : torch::CustomClassHolder {
  explicit NodeState(const MoEConfig& config) : config(config) {}
  MoEConfig config;
  bool consumed = false;  // backward has replaced the saved pre-activations
};

struct SavedTensors {
  at::Tensor gate_RF, up_RF, weights_TK, indices_TK, rows_TK, offsets_E1;

  MoESaved views() const {
    return {view_of(gate_RF),    view_of(up_RF),   view_of(weights_TK),
            view_of(indices_TK), view_of(rows_TK), view_of(offsets_E1)};
  }
};

SavedTensors make_saved(const MoEConfig& config, const at::Tensor& x_TD) {
  const std::int64_t tokens = x_TD.size(0);
  const std::int64_t rows = tokens * config.top_k;
  const auto ints = x_TD.options().dtype(at::kInt);
  const auto probability = sum_type(x_TD.scalar_type());
  SavedTensors saved;
  saved.gate_RF = at::empty({rows, config.d_ffn}, x_TD.options());
  if (config.glu) saved.up_RF = at::empty({rows, config.d_ffn}, x_TD.options());
  saved.weights_TK = at::empty({tokens, config.top_k}, x_TD.options().dtype(probability));
  saved.indices_TK = at::empty({tokens, config.top_k}, ints);
  saved.rows_TK = at::empty({tokens, config.top_k}, ints);
  saved.offsets_E1 = at::empty({config.num_experts + 1}, x_TD.options().dtype(at::kLong));
  return saved;
}

MoEWeights weight_views(const MoEConfig& config, const at::Tensor& router_ED,
                        const at::Tensor& w1_EFD, const at::Tensor& v1_EFD,
                        const at::Tensor& w2_EFD, const at::Tensor& selection_bias_E) {
  return {view_of(router_ED), view_of(w1_EFD), config.glu ? view_of(v1_EFD) : TensorView(),
          view_of(w2_EFD), config.selection_bias ? view_of(selection_bias_E) : TensorView()};
}

struct MoEFunction : torch::autograd::Function<MoEFunction> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x_TD,
                               const at::Tensor& router_ED, const at::Tensor& w1_EFD,
                               const at::Tensor& v1_EFD, const at::Tensor& w2_EFD,
                               const at::Tensor& selection_bias_E, const MoEConfig& config) {
    const SavedTensors saved = make_saved(config, x_TD);
    const auto loss_options = saved.weights_TK.options();
    at::Tensor out_TD = at::empty_like(x_TD);
    at::Tensor losses_2 = at::empty({2}, loss_options);
    at::Tensor tokens_per_expert_E =
        at::empty({config.num_experts}, x_TD.options().dtype(at::kInt));
    const MoEWeights weights =
        weight_views(config, router_ED, w1_EFD, v1_EFD, w2_EFD, selection_bias_E);
    const TensorView x = view_of(x_TD);
    const std::size_t bytes = moe_forward_workspace_bytes(config, x_TD.size(0), x.dtype, x.device);
    at::Tensor workspace = make_workspace(bytes, x_TD);
    moe_forward(config, x, weights, view_of(out_TD), view_of(losses_2),
                view_of(tokens_per_expert_E), saved.views(), workspace.data_ptr(), bytes,
                current_stream(x_TD.device()));

    ctx->save_for_backward({x_TD, router_ED, w1_EFD, v1_EFD, w2_EFD, saved.gate_RF, saved.up_RF,
                            saved.weights_TK, saved.indices_TK, saved.rows_TK, saved.offsets_E1,
                            selection_bias_E});
    ctx->mark_non_differentiable({tokens_per_expert_E});
    ctx->set_materialize_grads(true);
    ctx->saved_data["state"] = c10::IValue::make_capsule(c10::make_intrusive<NodeState>(config));
    return {out_TD, losses_2, tokens_per_expert_E};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto state =
        c10::static_intrusive_pointer_cast<NodeState>(ctx->saved_data["state"].toCapsule());
    const MoEConfig& config = state->config;
    const variable_list kept = ctx->get_saved_variables();
    const at::Tensor &x_TD = kept[0], &router_ED = kept[1], &w1_EFD = kept[2], &v1_EFD = kept[3],
                     &w2_EFD = kept[4];
    if (state->consumed && x_TD.is_cuda()) {
      throw Error(
          ErrorKind::kInvalidArgument,
          "the mixture-of-experts layer ran backward twice; on a GPU the first run replaces "
          "what the second would need",
          "run forward again instead of keeping the graph");
    }
    state->consumed = true;
    const SavedTensors saved{kept[5], kept[6], kept[7], kept[8], kept[9], kept[10]};
    const MoEWeights weights = weight_views(config, router_ED, w1_EFD, v1_EFD, w2_EFD, kept[11]);

    const at::Tensor d_out_TD = grads[0].contiguous();
    const at::Tensor d_losses_2 = grads[1].contiguous();
    at::Tensor d_x = at::empty_like(x_TD), d_router = at::empty_like(router_ED),
               d_w1 = at::empty_like(w1_EFD), d_w2 = at::empty_like(w2_EFD);
    at::Tensor d_v1 = config.glu ? at::empty_like(v1_EFD) : at::Tensor();
    const MoEGradients out{view_of(d_x), view_of(d_router), view_of(d_w1), view_of(d_v1),
                           view_of(d_w2)};
    const TensorView x = view_of(x_TD);
    const std::size_t bytes = moe_backward_workspace_bytes(config, x_TD.size(0), x.dtype, x.device);
    at::Tensor workspace = make_workspace(bytes, x_TD);
    moe_backward(config, x, weights, saved.views(), view_of(d_out_TD), view_of(d_losses_2), out,
                 workspace.data_ptr(), bytes, current_stream(x_TD.device()));
    return {d_x, d_router, d_w1, d_v1, d_w2, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

std::string moe_layer_problem(const MoEConfig& config, at::ScalarType dtype, at::Device device) {
  return moe_unsupported(config, dtype_of(dtype), device_of(device));
}

std::int64_t moe_capacity(const MoEConfig& config, std::int64_t num_tokens) {
  return expert_capacity(config.capacity_factor, num_tokens, config.top_k, config.num_experts);
}

MoEResult moe_layer(const MoEConfig& config, const at::Tensor& x_TD, const at::Tensor& router_ED,
                    const at::Tensor& w1_EFD, const at::Tensor& v1_EFD, const at::Tensor& w2_EFD,
                    const at::Tensor& selection_bias_E) {
  // libtorch asks every argument of a function for its device, so an absent tensor is passed as an
  // empty one.
  const at::Tensor none = at::empty({0}, x_TD.options());
  const variable_list out =
      MoEFunction::apply(x_TD.contiguous(), router_ED, w1_EFD, config.glu ? v1_EFD : none, w2_EFD,
                         config.selection_bias ? selection_bias_E : none, config);
  return {out[0], out[1], out[2]};
}

}  // namespace dropless::train
