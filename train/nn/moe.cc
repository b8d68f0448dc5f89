#include "train/nn/moe.h"

#include <algorithm>
#include <cmath>

#include "dropless/error.h"
#include "train/bridge/moe.h"
#include "train/bridge/views.h"
#include "train/nn/ffn.h"
#include "train/nn/moe_torch.h"
#include "train/nn/precision.h"

namespace dropless::train {
namespace {

FfnConfig shared_ffn(const MoELayerConfig& config) {
  return {config.moe.d_model, config.shared_d_ffn, config.moe.activation,
          config.moe.glu,     config.bias,         config.lora};
}

}  // namespace

BackendChoice resolve_backend(const MoELayerConfig& config, at::ScalarType type,
                              at::Device device) {
  if (config.backend == MoEBackend::kTorch) return {MoEBackend::kTorch, ""};
  MoEConfig moe = config.moe;
  if (config.backend == MoEBackend::kReference) moe.backend = Backend::kReference;
  std::string problem;
  if (config.jitter_eps > 0) {
    problem = "the layer's kernels have no router jitter (moe_jitter_eps)";
  } else if (config.adapts_experts()) {
    problem = "the layer's kernels have no adapters (peft_config.target_modules)";
  } else {
    problem = moe_layer_problem(moe, type, device);
  }
  if (problem.empty()) {
    const bool reference = config.backend == MoEBackend::kReference;
    return {reference ? MoEBackend::kReference : MoEBackend::kDropless, ""};
  }
  if (config.backend == MoEBackend::kAuto) return {MoEBackend::kTorch, problem};
  throw Error(
      ErrorKind::kUnsupported,
      std::string("ffn_config.backend ") + moe_backend_name(config.backend) + ": " + problem,
      "use ffn_config.backend auto or torch");
}

at::Tensor router_entropy(const at::Tensor& x_TD, const at::Tensor& router_ED) {
  at::NoGradGuard no_grad;
  const at::Tensor logits_TE = at::matmul(x_TD, router_ED.t());
  const at::Tensor log_p_TE = at::log_softmax(logits_TE.to(sum_type(logits_TE.scalar_type())), 1);
  // One expert: 0, not 0 / 0.
  const double most = std::log(static_cast<double>(std::max<std::int64_t>(router_ED.size(0), 2)));
  return (log_p_TE.exp() * log_p_TE).sum(1).mean() / -most;
}

MoE::MoE(const MoELayerConfig& config, const std::string& name, ParameterMaker& maker)
    : config_(config) {
  const MoEConfig& moe = config.moe;
  router_ = maker.linear(name + ".router.layer.weight", moe.num_experts, moe.d_model);
  if (moe.selection_bias) {
    selection_bias_ =
        maker.constant(name + ".router.selection_bias", moe.num_experts, 0.0, /*trained=*/false);
  }
  const std::string mlp = name + ".experts.mlp.";
  w1_ = maker.experts(mlp + "w1", moe.num_experts, moe.d_ffn, moe.d_model, false);
  if (moe.glu) v1_ = maker.experts(mlp + "v1", moe.num_experts, moe.d_ffn, moe.d_model, false);
  w2_ = maker.experts(mlp + "w2", moe.num_experts, moe.d_ffn, moe.d_model, true);
  if (config.bias) bias_ = maker.constant(name + ".experts.bias", moe.d_model, 0.0);
  if (config.adapts_experts()) {
    adapters_ = make_expert_adapters(*config.lora, name + ".experts.mlp", moe.num_experts,
                                     moe.d_model, moe.d_ffn, moe.glu, maker);
  }
  if (config.shared_d_ffn == 0) return;
  shared_.emplace(shared_ffn(config), name + ".shared_expert", maker);
  if (config.shared_gate) {
    shared_gate_ = maker.linear(name + ".shared_expert_gate.weight", 1, moe.d_model);
  }
}

at::Tensor MoE::forward(const at::Tensor& x_BSD, RouterRecord& record, bool training) const {
  MoEConfig moe = config_.moe;
  const at::Tensor x_TD = to_compute_dtype(x_BSD).reshape({-1, moe.d_model});
  if (!resolved_ || resolved_->type != x_TD.scalar_type() || resolved_->device != x_TD.device()) {
    resolved_ = {x_TD.scalar_type(), x_TD.device(),
                 resolve_backend(config_, x_TD.scalar_type(), x_TD.device()).backend};
  }
  const MoEBackend backend = resolved_->backend;
  moe.backend = backend == MoEBackend::kReference ? Backend::kReference : Backend::kAuto;
  const std::int64_t E = moe.num_experts, F = moe.d_ffn, D = moe.d_model;
  const auto experts = [&](const at::Tensor& w) {
    return w.defined() ? to_compute_dtype(w).view({E, F, D}) : w;
  };
  const at::Tensor router = to_compute_dtype(router_);
  const MoEResult result =
      backend == MoEBackend::kTorch
          ? moe_layer_torch(moe, x_TD, router, experts(w1_), experts(v1_), experts(w2_),
                            selection_bias_, training ? config_.jitter_eps : 0.0,
                            adapters_in_compute_dtype(), training)
          : moe_layer(moe, x_TD, router, experts(w1_), experts(v1_), experts(w2_), selection_bias_);
  record.losses_2.push_back(result.losses_2);
  record.tokens_per_expert_E.push_back(result.tokens_per_expert_E);
  if (record.want_entropy) record.entropy.push_back(router_entropy(x_TD, router));
  at::Tensor out = result.out_TD;
  if (bias_.defined()) out = out + bias_;
  if (shared_) out = add_shared_expert(x_TD, out, training);
  return out.view(x_BSD.sizes());
}

void MoE::update_selection_bias(const at::Tensor& tokens_per_expert_E) {
  if (!selection_bias_.defined()) return;
  at::NoGradGuard no_grad;
  const at::Tensor load = tokens_per_expert_E.to(at::kDouble);
  const at::Tensor direction = at::sign(load.mean() - load);
  selection_bias_.add_(direction.to(selection_bias_.options()), config_.bias_update_rate);
}

// [E, ., .] each.
ExpertAdapters MoE::adapters_in_compute_dtype() const {
  ExpertAdapters cast = adapters_;
  for (ExpertAdapter* adapter : {&cast.w1, &cast.v1, &cast.w2}) {
    for (at::Tensor* tensor : {&adapter->a, &adapter->b}) {
      if (!tensor->defined()) continue;
      *tensor = to_compute_dtype(*tensor).view({config_.moe.num_experts, -1, tensor->size(1)});
    }
  }
  return cast;
}

at::Tensor MoE::add_shared_expert(const at::Tensor& x_TD, const at::Tensor& experts_TD,
                                  bool training) const {
  at::Tensor shared_TD = shared_->forward(x_TD, training);
  if (shared_gate_.defined()) {
    shared_TD = shared_TD * at::sigmoid(at::linear(x_TD, shared_gate_));
  }
  if (!config_.shared_weighted) return shared_TD + experts_TD;
  const double K = static_cast<double>(config_.moe.top_k);
  return shared_TD / (K + 1) + experts_TD * (K / (K + 1));
}

}  // namespace dropless::train
