// The contract is moe_check.h.
#include "src/ops/moe_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "src/common/check.h"

namespace dropless {

void check_networks_config(const char* op, const MoEConfig& c) {
  DROPLESS_CHECK(
      c.d_model >= 1 && c.d_ffn >= 1 && c.num_experts >= 1,
      concat(op, ": d_model ", c.d_model, ", d_ffn ", c.d_ffn, ", num_experts ", c.num_experts),
      "all three must be at least 1");
  expect_activation(op, c.activation);
}

void check_config(const char* op, const MoEConfig& c) {
  check_networks_config(op, c);
  DROPLESS_CHECK(c.shared_d_ffn >= 0, concat(op, ": shared_d_ffn is ", c.shared_d_ffn),
                 "0 is no shared expert");
  DROPLESS_CHECK(c.shared_d_ffn > 0 || !c.shared_bias,
                 concat(op, ": shared_bias is set, but shared_d_ffn is 0"),
                 "give the shared expert a width, or leave its bias off");
  DROPLESS_CHECK(c.capacity_factor >= 0 && std::isfinite(c.capacity_factor),
                 concat(op, ": capacity_factor is ", c.capacity_factor),
                 "use 0 (dropless) or a finite factor > 0");
  expect_route_config(op, c.route, c.num_experts, c.top_k);
}

void check_sizes(const char* op, const MoEConfig& config, std::int64_t tokens) {
  check_config(op, config);
  DROPLESS_CHECK(tokens >= 0, concat(op, ": there are ", tokens, " tokens"), "give 0 or more");
  expect_row_count(op, tokens, config.top_k);
  const std::int64_t width = std::max({config.d_model, config.d_ffn, config.shared_d_ffn});
  expect_bytes(op, "the weights", {config.num_experts, width, config.d_model});
  // All of the workspace's arrays together are at most 64 times the largest; its partial sums take
  // less than 1024 numbers for each expert.
  expect_bytes(op, "the workspace",
               {64, tokens, config.top_k, std::max(width, config.num_experts)});
  expect_bytes(op, "the workspace", {1024, config.num_experts});
}

namespace {

void expect_supported(const char* op, const MoEConfig& config, DType dtype, Device device) {
  const std::string problem = moe_unsupported(config, dtype, device);
  DROPLESS_CHECK_KIND(ErrorKind::kUnsupported, problem.empty(), concat(op, ": ", problem));
}

}  // namespace

void expect_aligned(const char* op, std::initializer_list<ConstTensorView> views) {
  for (const ConstTensorView& view : views) {
    DROPLESS_CHECK(reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0,
                   concat(op, ": a tensor ", describe(view), " is at ", view.data,
                          ", not aligned to 16 bytes"));
    DROPLESS_CHECK(view.rank != 3 || view.stride[0] % 8 == 0,
                   concat(op, ": the experts' matrices of a tensor ", describe(view), " lie ",
                          view.stride[0], " elements apart"),
                   "their distance must be a multiple of 8 elements");
  }
}

void expect_optional(const char* op, const char* name, const ConstTensorView& view, bool present,
                     const Expected& expected, Device device) {
  if (present) expect_tensor(op, name, view, expected, device);
  expect_present_or_empty(op, name, view);
  DROPLESS_CHECK(present || !view,
                 concat(op, ": ", name, " is ", describe(view), ", but the layer has none"),
                 "leave it absent, or set the option of MoEConfig that it belongs to");
}

void check_routing(const char* op, const MoESizes& s, const MoESaved& saved) {
  expect_offsets(op, saved.offsets_E1, static_cast<std::int64_t*>(saved.offsets_E1.data)[s.E]);
  const std::int64_t kept = static_cast<std::int64_t*>(saved.offsets_E1.data)[s.E];
  DROPLESS_CHECK(kept <= s.R,
                 concat(op, ": saved.offsets_E1 end at ", kept, ", but there are ", s.R, " rows"));
  expect_indices(op, "saved.indices_TK", saved.indices_TK, s.E);
  const auto* rows = static_cast<const std::int32_t*>(saved.rows_TK.data);
  std::int64_t named = 0;
  for (std::int64_t i = 0; i < s.R; ++i) {
    DROPLESS_CHECK(rows[i] >= -1 && rows[i] < kept,
                   concat(op, ": saved.rows_TK[", i / s.K, ", ", i % s.K, "] is ", rows[i],
                          ", but there are ", kept, " rows"));
    named += rows[i] >= 0;
  }
  DROPLESS_CHECK(named == kept, concat(op, ": saved.rows_TK names ", named, " rows of ", kept),
                 "pass what moe_forward left in MoESaved");
}

MoESizes check_inputs(const char* op, const MoEConfig& config, const ConstTensorView& x_TD,
                      const MoEWeights& weights, const MoESaved& saved) {
  expect_floating(op, "x_TD", x_TD, 2);
  check_sizes(op, config, x_TD.shape[0]);
  expect_supported(op, config, x_TD.dtype, x_TD.device);
  const MoESizes s(config, x_TD.shape[0], x_TD.dtype);
  const Expected weight{{s.E, s.F, s.D}, s.dtype}, rows{{s.R, s.F}, s.dtype};
  expect_tensor(op, "x_TD", x_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor(op, "router_ED", weights.router_ED, {{s.E, s.D}, s.dtype}, x_TD.device);
  expect_matrices(op, "w1_EFD", weights.w1_EFD, weight, x_TD.device);
  expect_tensor(op, "w2_EFD", weights.w2_EFD, weight, x_TD.device);
  expect_tensor(op, "saved.gate_RF", saved.gate_RF, rows, x_TD.device);
  if (config.glu) {
    expect_matrices(op, "v1_EFD", weights.v1_EFD, weight, x_TD.device);
    expect_tensor(op, "saved.up_RF", saved.up_RF, rows, x_TD.device);
  }
  DROPLESS_CHECK(config.glu || (!weights.v1_EFD && !saved.up_RF),
                 concat(op, ": v1_EFD is ", describe(weights.v1_EFD), " and saved.up_RF is ",
                        describe(saved.up_RF), ", but the layer is not gated"),
                 "leave both absent, or set MoEConfig::glu");
  expect_present_or_empty(op, "v1_EFD", weights.v1_EFD);
  expect_present_or_empty(op, "saved.up_RF", saved.up_RF);
  expect_optional(op, "selection_bias_E", weights.selection_bias_E, config.selection_bias,
                  {{s.E}, s.sums}, x_TD.device);
  check_options(op, config, s, weights, x_TD.device);
  const Expected shared{{s.T, s.S}, s.dtype};
  expect_optional(op, "saved.shared_gate_TS", saved.shared_gate_TS, s.S > 0, shared, x_TD.device);
  expect_optional(op, "saved.shared_up_TS", saved.shared_up_TS, s.S > 0 && config.glu, shared,
                  x_TD.device);
  expect_tensor(op, "saved.weights_TK", saved.weights_TK, {{s.T, s.K}, s.sums}, x_TD.device);
  expect_tensor(op, "saved.indices_TK", saved.indices_TK, {{s.T, s.K}, DType::kInt32}, x_TD.device);
  expect_tensor(op, "saved.rows_TK", saved.rows_TK, {{s.T, s.K}, DType::kInt32}, x_TD.device);
  expect_tensor(op, "saved.offsets_E1", saved.offsets_E1, {{s.E + 1}, DType::kInt64}, x_TD.device);
  if (x_TD.device.type == DeviceType::kCuda) {
    expect_aligned(op, {x_TD, weights.router_ED, weights.w1_EFD, weights.v1_EFD, weights.w2_EFD,
                        weights.b1_EF, weights.bv1_EF, weights.b2_ED, saved.gate_RF, saved.up_RF});
  }
  return s;
}

}  // namespace dropless
