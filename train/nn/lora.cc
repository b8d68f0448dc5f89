#include "train/nn/lora.h"

namespace dropless::train {

LoraAdapter::LoraAdapter(const LoraConfig& config, const std::string& name, std::int64_t out,
                         std::int64_t in, ParameterMaker& maker)
    : a_(maker.adapter_in(name + ".lora_A.weight", 1, config.r, in)),
      b_(maker.adapter_out(name + ".lora_B.weight", 1, out, config.r)),
      scale_(config.scale()),
      dropout_(config.dropout) {}

at::Tensor LoraAdapter::add_to(const at::Tensor& y, const at::Tensor& x, bool training) const {
  if (!a_.defined()) return y;
  const at::Tensor in = training && dropout_ > 0 ? at::dropout(x, dropout_, /*train=*/true) : x;
  return y + at::linear(at::linear(in, a_), b_) * scale_;
}

ExpertAdapters make_expert_adapters(const LoraConfig& config, const std::string& name,
                                    std::int64_t num_experts, std::int64_t d_model,
                                    std::int64_t d_ffn, bool glu, ParameterMaker& maker) {
  ExpertAdapters adapters;
  adapters.scale = config.scale();
  adapters.dropout = config.dropout;
  const auto make = [&](LoraTarget target, const char* part, std::int64_t out, std::int64_t in) {
    if (!config.has(target)) return ExpertAdapter{};
    const std::string prefix = name + part;
    const at::Tensor a = maker.adapter_in(prefix + ".lora_A", num_experts, config.r, in);
    const at::Tensor b = maker.adapter_out(prefix + ".lora_B", num_experts, out, config.r);
    return ExpertAdapter{a, b};
  };
  adapters.w1 = make(glu ? LoraTarget::kGate : LoraTarget::kUp, ".w1", d_ffn, d_model);
  if (glu) adapters.v1 = make(LoraTarget::kUp, ".v1", d_ffn, d_model);
  adapters.w2 = make(LoraTarget::kDown, ".w2", d_model, d_ffn);
  return adapters;
}

}  // namespace dropless::train
