// moe.h: checks; the layer on the CPU composed of its kernels, and the one place that lays out
// their workspace. On a GPU: moe_cuda.cc.
//
// Forward (rows r sorted by expert, t(r) the token of row r):
//   logits = x Wr^T -> weights, indices, losses -> rows, offsets, tokens
//   gate = x[t(r)] W1_e^T, up = x[t(r)] V1_e^T        gathered while the GEMM packs its operand
//   h = act(gate) * up, y = h W2_e, out = combine(y)
//
// Backward, with s_r the routing weight of row r:
//   g = d_out[t(r)] W2_e^T                            without s_r: d_s_r = <h, g> needs no y
//   s_r h, d_gate, d_up, d_s                          by one elementwise pass
//   dW2 = (s h)^T d_out[t(r)], dW1 = d_gate^T x[t(r)], dV1 = d_up^T x[t(r)]
//   d_x = combine(d_gate W1_e + d_up V1_e) + d_logits Wr, dWr = d_logits^T x
//
// The shared expert is one more expert that every token is routed to, with a constant weight: the
// same products with one group and no row list. Bias gradients are products with one row: ones (b1,
// bv1) or the routing weights (b2).
#include "dropless/moe.h"

#include <algorithm>
#include <cmath>

#include "dropless/permute.h"
#include "src/common/check.h"
#include "src/common/dispatch.h"
#include "src/common/workspace.h"
#include "src/cpu/kernels.h"
#include "src/ops/expect.h"
#include "src/ops/moe_cuda.h"

namespace dropless {
namespace {

struct Sizes {
  std::int64_t T, D, F, E, K, R, S;
  DType dtype, sums;
  Sizes(const MoEConfig& config, std::int64_t tokens, DType dtype)
      : T(tokens),
        D(config.d_model),
        F(config.d_ffn),
        E(config.num_experts),
        K(config.top_k),
        R(T * K),
        S(config.shared_d_ffn),
        dtype(dtype),
        sums(accumulator_dtype(dtype)) {}
};

// Matrix products take what the carver has left; a query counts one slot per thread.
struct GemmSpace {
  void* data;
  std::size_t bytes;
};

// Whether the experts' part of the output has a factor of its own.
bool scales_experts(const MoEConfig& config) {
  return config.shared_d_ffn > 0 && config.shared_weighted;
}

double experts_scale(const MoEConfig& c) {
  const double k = static_cast<double>(c.top_k);
  return scales_experts(c) ? k / (k + 1) : 1;
}

double shared_scale(const MoEConfig& c) {
  return scales_experts(c) ? 1 / (static_cast<double>(c.top_k) + 1) : 1;
}

struct ForwardBuffers {
  void *logits_TE, *route_partials, *h_RF, *y_RD;
  std::int32_t *tokens_per_expert_E, *order_partials, *tokens_R;
  void* weights_TK;  // scaled, with a weighted shared expert
  void *shared_h_TS, *shared_y_TD;
};

ForwardBuffers carve_forward(WorkspaceCarver& carver, const MoEConfig& config, const Sizes& s) {
  const std::size_t element = dtype_bytes(s.dtype), sum = dtype_bytes(s.sums);
  return {.logits_TE = carver.take_bytes(s.T * s.E * sum),
          .route_partials = carver.take_bytes(cpu::route_partials_bytes(s.E, s.sums)),
          .h_RF = carver.take_bytes(s.R * s.F * element),
          .y_RD = carver.take_bytes(s.R * s.D * element),
          .tokens_per_expert_E = carver.take<std::int32_t>(s.E),
          .order_partials = carver.take<std::int32_t>(cpu::kMaxTokenChunks * s.E),
          .tokens_R = carver.take<std::int32_t>(s.R),
          .weights_TK = carver.take_bytes(scales_experts(config) ? s.R * sum : 0),
          .shared_h_TS = carver.take_bytes(s.T * s.S * element),
          .shared_y_TD = carver.take_bytes(s.S > 0 ? s.T * s.D * sum : 0)};
}

struct BackwardBuffers {
  void *logits_TE, *d_logits_TE;
  void* d_weights_TK;
  void* router_d_x_TD;
  void* g_RF;  // becomes d_gate
  void* d_up_RF;
  void* scaled_h_RF;  // dead once dW2 is there, then d_x_RD
  void* d_x_RD;
  std::int32_t *tokens_per_expert_E, *tokens_R;
  void* weights_TK;          // scaled, with a weighted shared expert
  void *weights_R, *ones_R;  // with expert biases
  void* shared_g_TS;         // becomes d_gate, as g_RF
  void *shared_d_up_TS, *shared_scaled_h_TS;
  void *shared_weights_T, *shared_d_weights_T;  // the constant weight; a gradient nobody wants
  std::int32_t* shared_rows_T;                  // token t is row t
};

BackwardBuffers carve_backward(WorkspaceCarver& carver, const MoEConfig& config, const Sizes& s) {
  const std::size_t element = dtype_bytes(s.dtype), sum = dtype_bytes(s.sums);
  BackwardBuffers b{};
  b.logits_TE = carver.take_bytes(s.T * s.E * sum);
  b.d_logits_TE = carver.take_bytes(s.T * s.E * sum);
  b.d_weights_TK = carver.take_bytes(s.R * sum);
  b.router_d_x_TD = carver.take_bytes(s.T * s.D * sum);
  b.g_RF = carver.take_bytes(s.R * s.F * element);
  b.d_up_RF = config.glu ? carver.take_bytes(s.R * s.F * element) : nullptr;
  b.scaled_h_RF = b.d_x_RD = carver.take_bytes(s.R * std::max(s.F, s.D) * element);
  b.tokens_per_expert_E = carver.take<std::int32_t>(s.E);
  b.tokens_R = carver.take<std::int32_t>(s.R);
  if (scales_experts(config)) b.weights_TK = carver.take_bytes(s.R * sum);
  if (config.expert_bias) {
    b.weights_R = carver.take_bytes(s.R * sum);
    b.ones_R = carver.take_bytes(s.R * sum);
  }
  if (s.S > 0) {
    b.shared_g_TS = carver.take_bytes(s.T * s.S * element);
    b.shared_d_up_TS = config.glu ? carver.take_bytes(s.T * s.S * element) : nullptr;
    b.shared_scaled_h_TS = carver.take_bytes(s.T * s.S * element);
    b.shared_weights_T = carver.take_bytes(s.T * sum);
    b.shared_d_weights_T = carver.take_bytes(s.T * sum);
    b.shared_rows_T = carver.take<std::int32_t>(s.T);
  }
  return b;
}

GemmSpace carve_gemm_space(WorkspaceCarver& carver) {
  const std::size_t bytes = carver.left();
  return {carver.take_bytes(bytes), bytes};
}

// The bytes that must be there, with `slots` threads multiplying.
template <class Carve>
std::size_t workspace_bytes_for(int slots, Carve&& carve) {
  WorkspaceCarver carver;
  carve(carver);
  return carver.used() + slots * cpu::kGemmSlotBytes;
}

void check_config(const char* op, const MoEConfig& c) {
  DROPLESS_CHECK(
      c.d_model >= 1 && c.d_ffn >= 1 && c.num_experts >= 1,
      concat(op, ": d_model ", c.d_model, ", d_ffn ", c.d_ffn, ", num_experts ", c.num_experts),
      "all three must be at least 1");
  DROPLESS_CHECK(c.shared_d_ffn >= 0, concat(op, ": shared_d_ffn is ", c.shared_d_ffn),
                 "0 is no shared expert");
  DROPLESS_CHECK(c.capacity_factor >= 0 && std::isfinite(c.capacity_factor),
                 concat(op, ": capacity_factor is ", c.capacity_factor),
                 "use 0 (dropless) or a finite factor > 0");
  expect_route_config(op, c.route, c.num_experts, c.top_k);
}

void expect_supported(const char* op, const MoEConfig& config, DType dtype, Device device) {
  const std::string problem = moe_unsupported(config, dtype, device);
  DROPLESS_CHECK_KIND(ErrorKind::kUnsupported, problem.empty(), concat(op, ": ", problem));
}

// The copy engine reads and writes tensors in 16-byte units.
void expect_aligned(const char* op, std::initializer_list<ConstTensorView> views) {
  for (const ConstTensorView& view : views) {
    DROPLESS_CHECK(reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0,
                   concat(op, ": a tensor ", describe(view), " is at ", view.data,
                          ", not aligned to 16 bytes"));
  }
}

// A tensor that the layer has, or has not.
void expect_optional(const char* op, const char* name, const ConstTensorView& view, bool present,
                     const Expected& expected, Device device) {
  if (present) expect_tensor(op, name, view, expected, device);
  DROPLESS_CHECK(present || !view,
                 concat(op, ": ", name, " is ", describe(view), ", but the layer has none"),
                 "leave it absent, or set the option of MoEConfig that it belongs to");
}

// Biases and shared expert of `tensors`: the weights, or their gradients.
template <class Tensors>
void check_options(const char* op, const MoEConfig& config, const Sizes& s, const Tensors& tensors,
                   Device device) {
  const bool bias = config.expert_bias, shared = s.S > 0;
  const Expected hidden{{s.E, s.F}, s.dtype}, weight{{s.S, s.D}, s.dtype};
  expect_optional(op, "b1_EF", tensors.b1_EF, bias, hidden, device);
  expect_optional(op, "bv1_EF", tensors.bv1_EF, bias && config.glu, hidden, device);
  expect_optional(op, "b2_ED", tensors.b2_ED, bias, {{s.E, s.D}, s.dtype}, device);
  expect_optional(op, "shared_w1_SD", tensors.shared_w1_SD, shared, weight, device);
  expect_optional(op, "shared_v1_SD", tensors.shared_v1_SD, shared && config.glu, weight, device);
  expect_optional(op, "shared_w2_SD", tensors.shared_w2_SD, shared, weight, device);
}

// What forward left for backward: indices and rows that lie where they should.
void check_routing(const char* op, const Sizes& s, const MoESaved& saved) {
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

Sizes check_inputs(const char* op, const MoEConfig& config, const ConstTensorView& x_TD,
                   const MoEWeights& weights, const MoESaved& saved) {
  check_config(op, config);
  expect_floating(op, "x_TD", x_TD, 2);
  expect_supported(op, config, x_TD.dtype, x_TD.device);
  const Sizes s(config, x_TD.shape[0], x_TD.dtype);
  expect_row_count(op, s.T, s.K);
  const Expected weight{{s.E, s.F, s.D}, s.dtype}, rows{{s.R, s.F}, s.dtype};
  expect_tensor(op, "x_TD", x_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor(op, "router_ED", weights.router_ED, {{s.E, s.D}, s.dtype}, x_TD.device);
  expect_tensor(op, "w1_EFD", weights.w1_EFD, weight, x_TD.device);
  expect_tensor(op, "w2_EFD", weights.w2_EFD, weight, x_TD.device);
  expect_tensor(op, "saved.gate_RF", saved.gate_RF, rows, x_TD.device);
  if (config.glu) {
    expect_tensor(op, "v1_EFD", weights.v1_EFD, weight, x_TD.device);
    expect_tensor(op, "saved.up_RF", saved.up_RF, rows, x_TD.device);
  }
  DROPLESS_CHECK(config.glu || (!weights.v1_EFD && !saved.up_RF),
                 concat(op, ": v1_EFD is ", describe(weights.v1_EFD), " and saved.up_RF is ",
                        describe(saved.up_RF), ", but the layer is not gated"),
                 "leave both absent, or set MoEConfig::glu");
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
                        saved.gate_RF, saved.up_RF});
  }
  return s;
}

// Groups of rows with the networks they go through: the routed experts, or the shared one.
struct Networks {
  std::int64_t groups, width;
  const std::int64_t* offsets;  // [groups + 1]
  const std::int32_t* tokens;   // of each row; null: row t is token t
};

// What both directions do: the layer's tensors, the kernels to run, and its matrix products.
struct Layer {
  const MoEConfig& config;
  const Sizes& s;
  const cpu::KernelTable& kernels;
  ConstTensorView x_TD;
  const MoEWeights& weights;
  Networks experts;
  GemmSpace space;
  std::int64_t all_tokens[2];

  Layer(const MoEConfig& config, const Sizes& s, const ConstTensorView& x_TD,
        const MoEWeights& weights, const MoESaved& saved, const std::int32_t* tokens_R,
        GemmSpace space)
      : config(config),
        s(s),
        kernels(cpu::kernels(config.backend)),
        x_TD(x_TD),
        weights(weights),
        experts{s.E, s.F, static_cast<const std::int64_t*>(saved.offsets_E1.data), tokens_R},
        space(space),
        all_tokens{0, s.T} {}

  Networks shared() const { return {1, s.S, all_tokens, nullptr}; }
  std::int64_t kept_rows() const { return experts.offsets[s.E]; }

  // One group of all tokens: out [T, n] = a [T, k] b, or a b^T.
  void token_product(const void* a, DType a_dtype, const ConstTensorView& b, std::int64_t n,
                     std::int64_t k, bool transpose_b, void* out) const {
    cpu::GroupedGemmArgs args{.groups = 1,
                              .n = n,
                              .k = k,
                              .offsets = all_tokens,
                              .transpose_b = transpose_b,
                              .num_terms = 1,
                              .terms = {},
                              .out = out,
                              .out_dtype = s.sums,
                              .workspace = space.data,
                              .workspace_bytes = space.bytes};
    args.terms[0] = {.a = a, .a_dtype = a_dtype, .b = b.data, .b_dtype = s.dtype};
    kernels.grouped_gemm(args);
  }

  void logits(void* logits_TE) const {
    token_product(x_TD.data, s.dtype, weights.router_ED, s.E, s.D, true, logits_TE);
  }

  // Each token's row of `a` times each network's [width, D] weight, transposed, plus its bias.
  void expand(const Networks& nets, const void* a_TD, const ConstTensorView& b,
              const ConstTensorView& bias, void* out) const {
    cpu::GroupedGemmArgs args{.groups = nets.groups,
                              .n = nets.width,
                              .k = s.D,
                              .offsets = nets.offsets,
                              .transpose_b = true,
                              .num_terms = 1,
                              .terms = {},
                              .out = out,
                              .out_dtype = s.dtype,
                              .workspace = space.data,
                              .workspace_bytes = space.bytes,
                              .bias = bias.data};
    args.terms[0] = {
        .a = a_TD, .a_dtype = s.dtype, .a_rows = nets.tokens, .b = b.data, .b_dtype = s.dtype};
    kernels.grouped_gemm(args);
  }

  // a1 B1 (+ a2 B2 where a2 is there) plus the bias: [rows, D]. Experts write rows of the layer's
  // type; the shared expert writes sums, or adds to them.
  void contract(const Networks& nets, const void* a1, const ConstTensorView& b1, const void* a2,
                const ConstTensorView& b2, const ConstTensorView& bias, void* out,
                bool accumulate = false) const {
    cpu::GroupedGemmArgs args{.groups = nets.groups,
                              .n = s.D,
                              .k = nets.width,
                              .offsets = nets.offsets,
                              .transpose_b = false,
                              .num_terms = a2 == nullptr ? 1 : 2,
                              .terms = {},
                              .out = out,
                              .out_dtype = nets.tokens == nullptr ? s.sums : s.dtype,
                              .workspace = space.data,
                              .workspace_bytes = space.bytes,
                              .bias = bias.data,
                              .accumulate = accumulate};
    args.terms[0] = {.a = a1, .a_dtype = s.dtype, .b = b1.data, .b_dtype = s.dtype};
    args.terms[1] = {.a = a2, .a_dtype = s.dtype, .b = b2.data, .b_dtype = s.dtype};
    kernels.grouped_gemm(args);
  }

  // out_e [m, n] = sum over e's rows r of a[r]^T b[r], or b[its token] with b_tokens.
  void row_products(const Networks& nets, std::int64_t m, const void* a, DType a_dtype,
                    std::int64_t n, const void* b, const std::int32_t* b_tokens, void* out) const {
    kernels.grouped_gemm_weight_grad({.groups = nets.groups,
                                      .m = m,
                                      .n = n,
                                      .offsets = nets.offsets,
                                      .a = a,
                                      .a_dtype = a_dtype,
                                      .b = b,
                                      .b_dtype = s.dtype,
                                      .b_rows = b_tokens,
                                      .out = out,
                                      .out_dtype = s.dtype,
                                      .workspace = space.data,
                                      .workspace_bytes = space.bytes});
  }

  void weight_gradient(const Networks& nets, const void* a, const void* b_TD,
                       const TensorView& out) const {
    row_products(nets, nets.width, a, s.dtype, s.D, b_TD, nets.tokens, out.data);
  }

  // The elementwise middle of backward, for `tokens` of `top_k` rows each.
  void activation_gradient(std::int64_t top_k, const Networks& nets, const TensorView& gate,
                           const TensorView& up, const void* weights_TK,
                           const std::int32_t* rows_TK, void* g, void* d_up, void* scaled_h,
                           void* d_weights) const {
    kernels.expert_backward({.dtype = s.dtype,
                             .activation = config.activation,
                             .tokens = s.T,
                             .top_k = top_k,
                             .width = nets.width,
                             .gate_RF = gate.data,
                             .up_RF = up.data,
                             .weights_TK = weights_TK,
                             .rows_TK = rows_TK,
                             .g_RF = g,
                             .d_gate_RF = g,
                             .d_up_RF = d_up,
                             .scaled_h_RF = scaled_h,
                             .d_weights_TK = d_weights});
  }

  // gate and up of the networks, and their activation h.
  void up(const Networks& nets, std::int64_t rows, const ConstTensorView& w1,
          const ConstTensorView& b1, const ConstTensorView& v1, const ConstTensorView& bv1,
          const TensorView& gate, const TensorView& up, void* h) const {
    expand(nets, x_TD.data, w1, b1, gate.data);
    if (config.glu) expand(nets, x_TD.data, v1, bv1, up.data);
    kernels.activation_forward({.dtype = s.dtype,
                                .activation = config.activation,
                                .size = rows * nets.width,
                                .gate = gate.data,
                                .up = up.data,
                                .a = h});
  }
};

// visitor(zero of the type of sums)
template <class Visitor>
void visit_sums(const Sizes& s, Visitor&& visitor) {
  s.sums == DType::kFloat64 ? visitor(double{}) : visitor(float{});
}

// to[i] = scale * from[i], or scale where there is no `from`; may be in place.
void scale_sums(const Sizes& s, std::int64_t size, double scale, const void* from, void* to) {
  visit_sums(s, [&](auto zero) {
    using A = decltype(zero);
    for (std::int64_t i = 0; i < size; ++i) {
      const A value = from == nullptr ? A(1) : static_cast<const A*>(from)[i];
      static_cast<A*>(to)[i] = static_cast<A>(scale) * value;
    }
  });
}

// The gradients that biases bring: their own, and <b2_e, d_out[t]> for the routing weights.
void bias_backward(const Layer& layer, const MoESaved& saved, const ConstTensorView& d_out_TD,
                   const void* weights_TK, const BackwardBuffers& buffers,
                   const MoEGradients& grads) {
  const Sizes& s = layer.s;
  const Networks& experts = layer.experts;
  const auto* rows_TK = static_cast<const std::int32_t*>(saved.rows_TK.data);
  const auto* indices_TK = static_cast<const std::int32_t*>(saved.indices_TK.data);
  scale_sums(s, s.R, 1, nullptr, buffers.ones_R);
  layer.token_product(d_out_TD.data, s.dtype, layer.weights.b2_ED, s.E, s.D, true,
                      buffers.logits_TE);
  visit_sums(s, [&](auto zero) {
    using A = decltype(zero);
    for (std::int64_t i = 0; i < s.R; ++i) {
      if (rows_TK[i] < 0) continue;
      static_cast<A*>(buffers.weights_R)[rows_TK[i]] = static_cast<const A*>(weights_TK)[i];
      static_cast<A*>(buffers.d_weights_TK)[i] +=
          static_cast<const A*>(buffers.logits_TE)[i / s.K * s.E + indices_TK[i]];
    }
  });
  layer.row_products(experts, 1, buffers.weights_R, s.sums, s.D, d_out_TD.data, experts.tokens,
                     grads.b2_ED.data);
  layer.row_products(experts, 1, buffers.ones_R, s.sums, s.F, buffers.g_RF, nullptr,
                     grads.b1_EF.data);
  if (layer.config.glu) {
    layer.row_products(experts, 1, buffers.ones_R, s.sums, s.F, buffers.d_up_RF, nullptr,
                       grads.bv1_EF.data);
  }
}

// The shared expert's weight gradients; its part of d_x is added to router_d_x_TD.
void shared_backward(const Layer& layer, const MoESaved& saved, const ConstTensorView& d_out_TD,
                     const BackwardBuffers& buffers, const MoEGradients& grads) {
  const Sizes& s = layer.s;
  const Networks shared = layer.shared();
  for (std::int64_t t = 0; t < s.T; ++t) buffers.shared_rows_T[t] = static_cast<std::int32_t>(t);
  scale_sums(s, s.T, shared_scale(layer.config), nullptr, buffers.shared_weights_T);
  layer.expand(shared, d_out_TD.data, layer.weights.shared_w2_SD, {}, buffers.shared_g_TS);
  layer.activation_gradient(1, shared, saved.shared_gate_TS, saved.shared_up_TS,
                            buffers.shared_weights_T, buffers.shared_rows_T, buffers.shared_g_TS,
                            buffers.shared_d_up_TS, buffers.shared_scaled_h_TS,
                            buffers.shared_d_weights_T);
  layer.weight_gradient(shared, buffers.shared_scaled_h_TS, d_out_TD.data, grads.shared_w2_SD);
  layer.weight_gradient(shared, buffers.shared_g_TS, layer.x_TD.data, grads.shared_w1_SD);
  if (layer.config.glu) {
    layer.weight_gradient(shared, buffers.shared_d_up_TS, layer.x_TD.data, grads.shared_v1_SD);
  }
  layer.contract(shared, buffers.shared_g_TS, layer.weights.shared_w1_SD, buffers.shared_d_up_TS,
                 layer.weights.shared_v1_SD, {}, buffers.router_d_x_TD, true);
}

// From d_weights to d_logits, the router's weight gradient, and its part of d_x.
void router_backward(const Layer& layer, const MoEConfig& config, const MoESaved& saved,
                     const ConstTensorView& d_losses_2, const BackwardBuffers& buffers,
                     void* d_router_ED) {
  const Sizes& s = layer.s;
  layer.kernels.histogram({.entries = s.R,
                           .bins = s.E,
                           .indices_N = static_cast<const std::int32_t*>(saved.indices_TK.data),
                           .counts_E = buffers.tokens_per_expert_E});
  layer.logits(buffers.logits_TE);
  layer.kernels.route_backward(
      {.config = config.route,
       .dtype = s.sums,
       .tokens = s.T,
       .experts = s.E,
       .top_k = s.K,
       .logits_TE = buffers.logits_TE,
       .indices_TK = static_cast<const std::int32_t*>(saved.indices_TK.data),
       .tokens_per_expert_E = buffers.tokens_per_expert_E,
       .d_weights_TK = buffers.d_weights_TK,
       .d_losses_2 = d_losses_2.data,
       .d_logits_TE = buffers.d_logits_TE});
  const Networks all_tokens{1, s.D, layer.all_tokens, nullptr};
  layer.row_products(all_tokens, s.E, buffers.d_logits_TE, s.sums, s.D, layer.x_TD.data, nullptr,
                     d_router_ED);
  layer.token_product(buffers.d_logits_TE, s.sums, layer.weights.router_ED, s.D, s.E, false,
                      buffers.router_d_x_TD);
}

}  // namespace

std::string moe_unsupported(const MoEConfig& config, DType dtype, Device device) {
  if (device.type != DeviceType::kCuda) return "";
  if (config.expert_bias || config.capacity_factor != 0 || config.shared_d_ffn != 0) {
    return "the GPU kernels have no expert bias, capacity factor or shared expert";
  }
  return moe_cuda_problem(config, dtype, device);
}

std::size_t moe_forward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens,
                                        DType dtype, Device device) {
  if (device.type == DeviceType::kCuda) return moe_cuda_forward_workspace_bytes(config, num_tokens);
  return workspace_bytes_for(cpu::max_threads(), [&](WorkspaceCarver& carver) {
    carve_forward(carver, config, Sizes(config, num_tokens, dtype));
  });
}

std::size_t moe_backward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens,
                                         DType dtype, Device device) {
  if (device.type == DeviceType::kCuda) {
    return moe_cuda_backward_workspace_bytes(config, num_tokens);
  }
  return workspace_bytes_for(cpu::max_threads(), [&](WorkspaceCarver& carver) {
    carve_backward(carver, config, Sizes(config, num_tokens, dtype));
  });
}

void moe_forward(const MoEConfig& config, ConstTensorView x_TD, const MoEWeights& weights,
                 TensorView out_TD, TensorView losses_2, TensorView tokens_per_expert_E,
                 const MoESaved& saved, void* workspace, std::size_t workspace_bytes,
                 Stream stream) {
  const char* op = "moe_forward";
  const Sizes s = check_inputs(op, config, x_TD, weights, saved);
  expect_tensor(op, "out_TD", out_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor_or_absent(op, "losses_2", losses_2, {{2}, s.sums}, x_TD.device);
  expect_tensor_or_absent(op, "tokens_per_expert_E", tokens_per_expert_E, {{s.E}, DType::kInt32},
                          x_TD.device);
  if (x_TD.device.type == DeviceType::kCuda) {
    expect_aligned(op, {out_TD});
    expect_workspace(op, workspace, workspace_bytes, moe_cuda_forward_workspace_bytes(config, s.T));
    moe_cuda_forward(config, x_TD, weights, out_TD, losses_2, tokens_per_expert_E, saved, workspace,
                     stream);
    return;
  }
  if (config.route.selection == RouteSelection::kGiven) {
    expect_indices(op, "saved.indices_TK", saved.indices_TK, s.E);
  }
  expect_workspace(
      op, workspace, workspace_bytes,
      workspace_bytes_for(1, [&](WorkspaceCarver& carver) { carve_forward(carver, config, s); }));

  WorkspaceCarver carver(workspace, workspace_bytes);
  const ForwardBuffers buffers = carve_forward(carver, config, s);
  const Layer layer(config, s, x_TD, weights, saved, buffers.tokens_R, carve_gemm_space(carver));
  const cpu::KernelTable& kernels = layer.kernels;
  auto* indices_TK = static_cast<std::int32_t*>(saved.indices_TK.data);
  auto* rows_TK = static_cast<std::int32_t*>(saved.rows_TK.data);

  layer.logits(buffers.logits_TE);
  kernels.route_forward({.config = config.route,
                         .dtype = s.sums,
                         .tokens = s.T,
                         .experts = s.E,
                         .top_k = s.K,
                         .logits_TE = buffers.logits_TE,
                         .bias_E = weights.selection_bias_E.data,
                         .weights_TK = saved.weights_TK.data,
                         .indices_TK = indices_TK,
                         .losses_2 = losses_2.data,
                         .tokens_per_expert_E = tokens_per_expert_E ? static_cast<std::int32_t*>(
                                                                          tokens_per_expert_E.data)
                                                                    : buffers.tokens_per_expert_E,
                         .partials = buffers.route_partials});
  kernels.dispatch_order({.tokens = s.T,
                          .experts = s.E,
                          .top_k = s.K,
                          .indices_TK = indices_TK,
                          .rows_TK = rows_TK,
                          .offsets_E1 = static_cast<std::int64_t*>(saved.offsets_E1.data),
                          .tokens_R = buffers.tokens_R,
                          .partials = buffers.order_partials,
                          .capacity = expert_capacity(config.capacity_factor, s.T, s.K, s.E)});

  layer.up(layer.experts, layer.kept_rows(), weights.w1_EFD, weights.b1_EF, weights.v1_EFD,
           weights.bv1_EF, saved.gate_RF, saved.up_RF, buffers.h_RF);
  layer.contract(layer.experts, buffers.h_RF, weights.w2_EFD, nullptr, {}, weights.b2_ED,
                 buffers.y_RD);
  if (s.S > 0) {
    layer.up(layer.shared(), s.T, weights.shared_w1_SD, {}, weights.shared_v1_SD, {},
             saved.shared_gate_TS, saved.shared_up_TS, buffers.shared_h_TS);
    layer.contract(layer.shared(), buffers.shared_h_TS, weights.shared_w2_SD, nullptr, {}, {},
                   buffers.shared_y_TD);
  }
  const void* weights_TK = saved.weights_TK.data;
  if (scales_experts(config)) {
    scale_sums(s, s.R, experts_scale(config), weights_TK, buffers.weights_TK);
    weights_TK = buffers.weights_TK;
  }
  kernels.combine({.dtype = s.dtype,
                   .tokens = s.T,
                   .top_k = s.K,
                   .width = s.D,
                   .y_RD = buffers.y_RD,
                   .weights_TK = weights_TK,
                   .rows_TK = rows_TK,
                   .base_TD = s.S > 0 ? buffers.shared_y_TD : nullptr,
                   .out_TD = out_TD.data,
                   .base_scale = shared_scale(config)});
}

void moe_backward(const MoEConfig& config, ConstTensorView x_TD, const MoEWeights& weights,
                  const MoESaved& saved, ConstTensorView d_out_TD, ConstTensorView d_losses_2,
                  const MoEGradients& grads, void* workspace, std::size_t workspace_bytes,
                  Stream stream) {
  const char* op = "moe_backward";
  const Sizes s = check_inputs(op, config, x_TD, weights, saved);
  const Expected weight{{s.E, s.F, s.D}, s.dtype};
  expect_tensor(op, "d_out_TD", d_out_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor_or_absent(op, "d_losses_2", d_losses_2, {{2}, s.sums}, x_TD.device);
  expect_tensor(op, "grads.x_TD", grads.x_TD, {{s.T, s.D}, s.dtype}, x_TD.device);
  expect_tensor(op, "grads.router_ED", grads.router_ED, {{s.E, s.D}, s.dtype}, x_TD.device);
  expect_tensor(op, "grads.w1_EFD", grads.w1_EFD, weight, x_TD.device);
  expect_tensor(op, "grads.w2_EFD", grads.w2_EFD, weight, x_TD.device);
  if (config.glu) expect_tensor(op, "grads.v1_EFD", grads.v1_EFD, weight, x_TD.device);
  check_options(op, config, s, grads, x_TD.device);
  if (x_TD.device.type == DeviceType::kCuda) {
    expect_aligned(op, {d_out_TD, grads.x_TD, grads.w1_EFD, grads.v1_EFD, grads.w2_EFD});
    expect_workspace(op, workspace, workspace_bytes,
                     moe_cuda_backward_workspace_bytes(config, s.T));
    moe_cuda_backward(config, x_TD, weights, saved, d_out_TD, d_losses_2, grads, workspace, stream);
    return;
  }
  check_routing(op, s, saved);
  expect_workspace(
      op, workspace, workspace_bytes,
      workspace_bytes_for(1, [&](WorkspaceCarver& carver) { carve_backward(carver, config, s); }));

  WorkspaceCarver carver(workspace, workspace_bytes);
  const BackwardBuffers buffers = carve_backward(carver, config, s);
  const auto* rows_TK = static_cast<const std::int32_t*>(saved.rows_TK.data);
  const Layer layer(config, s, x_TD, weights, saved, buffers.tokens_R, carve_gemm_space(carver));
  const cpu::KernelTable& kernels = layer.kernels;
  const Networks& experts = layer.experts;
  kernels.invert_rows(
      {.tokens = s.T, .top_k = s.K, .rows_TK = rows_TK, .tokens_R = buffers.tokens_R});
  const void* weights_TK = saved.weights_TK.data;
  if (scales_experts(config)) {
    scale_sums(s, s.R, experts_scale(config), weights_TK, buffers.weights_TK);
    weights_TK = buffers.weights_TK;
  }

  layer.expand(experts, d_out_TD.data, weights.w2_EFD, {}, buffers.g_RF);
  layer.activation_gradient(s.K, experts, saved.gate_RF, saved.up_RF, weights_TK, rows_TK,
                            buffers.g_RF, buffers.d_up_RF, buffers.scaled_h_RF,
                            buffers.d_weights_TK);
  layer.weight_gradient(experts, buffers.scaled_h_RF, d_out_TD.data, grads.w2_EFD);
  layer.weight_gradient(experts, buffers.g_RF, x_TD.data, grads.w1_EFD);
  if (config.glu) layer.weight_gradient(experts, buffers.d_up_RF, x_TD.data, grads.v1_EFD);
  if (config.expert_bias) bias_backward(layer, saved, d_out_TD, weights_TK, buffers, grads);
  if (scales_experts(config)) {
    scale_sums(s, s.R, experts_scale(config), buffers.d_weights_TK, buffers.d_weights_TK);
  }

  router_backward(layer, config, saved, d_losses_2, buffers, grads.router_ED.data);
  if (s.S > 0) shared_backward(layer, saved, d_out_TD, buffers, grads);
  layer.contract(experts, buffers.g_RF, weights.w1_EFD, buffers.d_up_RF, weights.v1_EFD, {},
                 buffers.d_x_RD);
  kernels.combine({.dtype = s.dtype,
                   .tokens = s.T,
                   .top_k = s.K,
                   .width = s.D,
                   .y_RD = buffers.d_x_RD,
                   .weights_TK = nullptr,
                   .rows_TK = rows_TK,
                   .base_TD = buffers.router_d_x_TD,
                   .out_TD = grads.x_TD.data});
}

}  // namespace dropless
