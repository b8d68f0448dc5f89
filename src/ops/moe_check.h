// Checks of the layer's arguments (moe.h, moe_stages.h): each throws Error naming the tensor.
#pragma once

#include <initializer_list>

#include "dropless/moe.h"
#include "src/ops/expect.h"
#include "src/ops/moe_sizes.h"

namespace dropless {

// The sizes of the experts' networks, and the whole layer's options.
void check_networks_config(const char* op, const MoEConfig& config);
void check_config(const char* op, const MoEConfig& config);

// The options, and that no size of the layer overflows.
void check_sizes(const char* op, const MoEConfig& config, std::int64_t tokens);

// A tensor that the layer has, or has not.
void expect_optional(const char* op, const char* name, const ConstTensorView& view, bool present,
                     const Expected& expected, Device device);

// The GPU's copy engine reads and writes tensors in 16-byte units.
void expect_aligned(const char* op, std::initializer_list<ConstTensorView> views);

// x, weights and saved state of either direction; returns the sizes.
MoESizes check_inputs(const char* op, const MoEConfig& config, const ConstTensorView& x_TD,
                      const MoEWeights& weights, const MoESaved& saved);

// What forward left for backward: indices and rows that lie where they should.
void check_routing(const char* op, const MoESizes& s, const MoESaved& saved);

// Biases and shared expert of `tensors`: the weights, or their gradients.
template <class Tensors>
void check_options(const char* op, const MoEConfig& config, const MoESizes& s,
                   const Tensors& tensors, Device device) {
  const bool bias = config.expert_bias, shared = s.S > 0, glu = config.glu;
  const bool shared_bias = shared && config.shared_bias;
  const Expected hidden{{s.E, s.F}, s.dtype}, weight{{s.S, s.D}, s.dtype}, row{{s.S}, s.dtype};
  expect_optional(op, "b1_EF", tensors.b1_EF, bias, hidden, device);
  expect_optional(op, "bv1_EF", tensors.bv1_EF, bias && glu, hidden, device);
  expect_optional(op, "b2_ED", tensors.b2_ED, bias, {{s.E, s.D}, s.dtype}, device);
  expect_optional(op, "shared_w1_SD", tensors.shared_w1_SD, shared, weight, device);
  expect_optional(op, "shared_v1_SD", tensors.shared_v1_SD, shared && glu, weight, device);
  expect_optional(op, "shared_w2_SD", tensors.shared_w2_SD, shared, weight, device);
  expect_optional(op, "shared_b1_S", tensors.shared_b1_S, shared_bias, row, device);
  expect_optional(op, "shared_bv1_S", tensors.shared_bv1_S, shared_bias && glu, row, device);
  expect_optional(op, "shared_b2_D", tensors.shared_b2_D, shared_bias, {{s.D}, s.dtype}, device);
}

}  // namespace dropless
