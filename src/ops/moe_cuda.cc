// moe_cuda.h: the order of the kernels, and the one place that lays out their workspace.
//
// Forward (rows r sorted by expert, t(r) the token of row r):
//   logits = x Wr^T -> weights, indices, losses -> rows, offsets, row tiles
//   gate[r] = W1_e x[t(r)], up[r] = V1_e x[t(r)], h = act(gate) up   in one kernel that gathers its
//     rows; for wide experts x_RD[r] = x[t(r)] before
//   y = h W2_e (over x_RD);  out = combine(y)                        a slab of columns at a time
//
// Backward, s_r the routing weight of row r:
//   with g[r] = W2_e d_out[t(r)], in one kernel, rows gathered there:
//     gate <- d_gate, up <- d_up, scaled_h = s h, d_s = <g, h>
//   d_s -> d_logits -> dWr, and the router's part of d_x
//   and then, slabs of columns at a time, in the order of moe_backward_plan.h:
//     d_x_RD = d_gate W1_e + d_up V1_e;  d_x += combine(d_x_RD)
//     d_out_RD[r] = d_out[t(r)];  dW2 = scaled_h^T d_out_RD
//     x_RD[r] = x[t(r)];  dW1 = d_gate^T x_RD, dV1 = d_up^T x_RD
//   A slab's rows are gathered beside a product before, into memory that is free meanwhile.
//
// Biases are added in the products' epilogues. Their gradients are sums of d_gate, d_up and
// s d_out_RD over an expert's rows; <b2_e, d_out[t]>, the logits of a router b2, is b2's part of d_s.
//
// Forward of few tokens, where the weights' bytes are the time: two kernels, small_batch.h.
//
// Rows of d_model columns, R of them, would be the largest thing in memory: slabs bound it.
//
// No size depends on the routing: nothing waits for the device.
#include "src/ops/moe_cuda.h"

#include <algorithm>
#include <array>
#include <optional>
#include <type_traits>
#include <vector>

#include "dropless/permute.h"
#include "src/common/check.h"
#include "src/common/math.h"
#include "src/common/workspace.h"
#include "src/cuda/kernels.h"
#include "src/cuda/small_batch.h"
#include "src/ops/moe_backward_plan.h"
#include "src/ops/moe_sizes.h"
#include "src/ops/observed.h"

namespace dropless {
namespace {

constexpr int kRowTile = 128;  // rows of the matrix products' tiles
static_assert(kRowTile == cuda::kColumnSumRows);

// Up to this expert width the up projection gathers its rows itself: measured, it then loses less
// than a gather before it takes (docs/kernels.md), whose share of the time is as 1 / d_ffn.
constexpr std::int64_t kGatherInProduct = 2048;
bool up_gathers(const MoEConfig& config) { return config.d_ffn <= kGatherInProduct; }

// Columns of d_model that are multiplied and combined at a time, of R rows: a third, in whole tiles
// of the products. Where experts are wide all columns are little beside the pre-activations; where
// they are narrow the products of a slab are too short to be cut so often, and halves it is.
constexpr std::int64_t kColumnTile = 256;
std::int64_t slab_width(const MoEConfig& config) {
  if (!up_gathers(config)) return config.d_model;
  const std::int64_t slabs = config.d_ffn < 1024 ? 2 : 3;
  return std::min(config.d_model, round_up(ceil_div(config.d_model, slabs), kColumnTile));
}

// Columns [begin, begin + width).
template <class View>
View columns(View view, std::int64_t begin, std::int64_t width) {
  using Bytes = std::conditional_t<std::is_same_v<View, TensorView>, char*, const char*>;
  view.data =
      static_cast<Bytes>(view.data) + static_cast<std::int64_t>(dtype_bytes(view.dtype)) * begin;
  view.shape[view.rank - 1] = width;
  return view;
}

ConstTensorView bias_columns(const ConstTensorView& bias, std::int64_t begin, std::int64_t width) {
  return bias ? columns(bias, begin, width) : bias;
}

template <class Action>
void for_each_slab(const MoEConfig& config, Action action) {
  const std::int64_t width = slab_width(config);
  for (std::int64_t begin = 0; begin < config.d_model; begin += width) {
    action(begin, std::min(width, config.d_model - begin));
  }
}

// Whether a (token, k) may be without a row: by a capacity, or by an index that is no expert's, which
// only the device could find.
bool drops(const MoEConfig& config) {
  return config.capacity_factor != 0 || config.route.selection == RouteSelection::kGiven;
}

struct Sizes : MoESizes {
  std::int64_t P;  // columns of a row of logits in memory
  std::int64_t C;  // columns of a slab
  // The element type does not matter: all have 16 bits.
  Sizes(const MoEConfig& config, std::int64_t tokens)
      : MoESizes(config, tokens, DType::kBFloat16),
        P(cuda::router_pitch(E)),
        C(slab_width(config)) {}
};

struct ForwardBuffers {
  float* logits_TP;
  void *router_space, *route_space, *order_space, *row_tiles;
  std::int32_t* tokens_R;
  void* h_RF;
  void* rows_RC;  // x_RD, where the up projection does not gather; then y
};

ForwardBuffers carve_forward(WorkspaceCarver& carver, const Sizes& s) {
  return {.logits_TP = carver.take<float>(s.T * s.P),
          .router_space = carver.take_bytes(cuda::router_workspace_bytes(s.T, s.D, s.E)),
          .route_space = carver.take_bytes(cuda::route_workspace_bytes(s.T, s.E)),
          .order_space = carver.take_bytes(cuda::dispatch_order_workspace_bytes(s.T, s.K, s.E)),
          .row_tiles = carver.take_bytes(cuda::row_tiles_bytes(s.R, s.E, kRowTile)),
          .tokens_R = carver.take<std::int32_t>(s.R),
          .h_RF = carver.take<std::uint16_t>(s.R * s.F),
          .rows_RC = carver.take<std::uint16_t>(s.R * s.C)};
}

struct BackwardBuffers {
  float *logits_TP, *d_logits_TP, *weights_R, *d_scores_NR, *d_weights_TK;
  std::int32_t *tokens_R, *tokens_per_expert_E;
  void *router_space, *row_tiles;
  void* scaled_h_RF;
  void* rows_RC;     // a slab of d_x_RD, d_out_RD or x_RD
  void* bias_space;  // with expert biases
};

// Memory that holds rows until it is written.
struct Spare {
  void* data = nullptr;
  std::int64_t elements = 0;
};

// dW1 and, with a gated unit, dV1, where they are of x's type, so that they are only written, and have no gaps. As halves of
// one tensor each expert's lie in turn: two pieces as large, whatever of which lies there later.
std::array<Spare, 2> spare_memory(const MoEGradients& grads, bool glu, DType dtype) {
  const TensorView& w1 = grads.w1_EFD;
  const TensorView v1 = glu ? grads.v1_EFD : TensorView();
  if (v1 && w1.dtype == dtype && w1.numel() > 0) {
    const auto bytes = static_cast<std::int64_t>(dtype_bytes(dtype));
    const std::int64_t half = w1.shape[1] * w1.shape[2];
    auto* const data = static_cast<char*>(w1.data);
    const bool halves = w1.stride == v1.stride && w1.stride[0] == 2 * half &&
                        w1.stride[1] == w1.shape[2] && v1.data == data + half * bytes;
    if (halves) return {Spare{data, w1.numel()}, Spare{data + w1.numel() * bytes, w1.numel()}};
  }
  const auto whole = [&](const TensorView& w) {
    return w && w.dtype == dtype && w.contiguous() ? Spare{w.data, w.numel()} : Spare{};
  };
  return {whole(w1), whole(v1)};
}

std::vector<BackwardStep> backward_plan(const MoEConfig& config, const Sizes& s,
                                        std::array<std::int64_t, 2> spare_elements) {
  const std::int64_t rows = std::max<std::int64_t>(s.R, 1);
  const int d_x_slabs = up_gathers(config) ? 4 : 0;
  return plan_backward(s.D, {s.C, spare_elements[0] / rows, spare_elements[1] / rows, s.F},
                       d_x_slabs, kColumnTile);
}

// Columns of the widest slab of d_out, whatever the layout of the gradients.
std::int64_t widest_d_out(const MoEConfig& config, const Sizes& s) {
  const std::int64_t w1 = s.E * s.F * s.D;
  std::int64_t width = 0;
  for (const std::array<std::int64_t, 2> spare :
       {std::array<std::int64_t, 2>{0, 0}, {w1, 0}, {0, w1}, {w1, w1}}) {
    for (const BackwardStep& step : backward_plan(config, s, spare)) {
      if (step.product == SlabProduct::kDW2) width = std::max(width, step.slab.width);
    }
  }
  return width;
}

std::int64_t score_parts(const Sizes& s) { return ceil_div(s.F, cuda::kActivationGradColumns); }

BackwardBuffers carve_backward(WorkspaceCarver& carver, const MoEConfig& config, const Sizes& s) {
  // Sums of columns are taken of d_gate, of d_up and of d_out's slabs.
  const std::int64_t summed = config.expert_bias ? std::max(s.F, widest_d_out(config, s)) : 0;
  return {.logits_TP = carver.take<float>(s.T * s.P),
          .d_logits_TP = carver.take<float>(s.T * s.P),
          .weights_R = carver.take<float>(s.R),
          .d_scores_NR = carver.take<float>(score_parts(s) * s.R),
          .d_weights_TK = carver.take<float>(s.R),
          .tokens_R = carver.take<std::int32_t>(s.R),
          .tokens_per_expert_E = carver.take<std::int32_t>(s.E),
          .router_space = carver.take_bytes(cuda::router_workspace_bytes(s.T, s.D, s.E)),
          .row_tiles = carver.take_bytes(cuda::row_tiles_bytes(s.R, s.E, kRowTile)),
          .scaled_h_RF = carver.take<std::uint16_t>(s.R * s.F),
          .rows_RC = carver.take<std::uint16_t>(s.R * s.C),
          .bias_space = carver.take_bytes(
              config.expert_bias ? cuda::column_sums_workspace_bytes(s.R, s.E, summed) : 0)};
}

// Tells observe.h of the parts, with their formulas: sizes of 16-bit tensors in elements, of fp32 ones
// twice that.
struct Told {
  const Sizes& s;
  bool glu;
  Stream stream;

  double planes() const { return glu ? 2 : 1; }
  void product(const char* name, double k, double n, double more_elements = 0) const {
    part(name, 2.0 * s.R * k * n, s.R * (k + n) + s.E * k * n + more_elements);
  }
  void moved(const char* name, double elements) const { part(name, 0, elements); }
  void part(const char* name, double flops, double elements) const {
    tell_observer({name, flops, 2 * elements, stream});
  }
};

template <class T, class View>
T* data_of(const View& view) {
  return static_cast<T*>(view.data);
}

std::optional<cuda::SmallBatchPlan> small_batch_plan(const MoEConfig& config, std::int64_t tokens,
                                                     DType dtype, Device device) {
  const bool plain = cuda::plain_router(config.route) && !config.selection_bias &&
                     config.capacity_factor == 0 && !config.expert_bias;
  if (dtype != DType::kBFloat16 || !plain) return std::nullopt;
  if (!cuda::small_batch_fits(tokens, config.num_experts, config.top_k)) return std::nullopt;
  if (cuda::portable_path(device.index)) return std::nullopt;
  return cuda::choose_small_batch(tokens, config.num_experts, config.top_k);
}

void small_batch_forward(const cuda::SmallBatchPlan& plan, const MoEConfig& config,
                         const ConstTensorView& x_TD, const MoEWeights& weights,
                         const TensorView& out_TD, const TensorView& losses_2,
                         const TensorView& tokens_per_expert_E, const MoESaved& saved,
                         void* workspace, Stream stream) {
  cuda::small_batch_forward(plan,
                            {.tokens = x_TD.shape[0],
                             .top_k = config.top_k,
                             .d_model = config.d_model,
                             .d_ffn = config.d_ffn,
                             .num_experts = config.num_experts,
                             .glu = config.glu,
                             .activation = config.activation,
                             .normalize = config.route.normalize_p == 1,
                             .x_TD = x_TD,
                             .router_ED = weights.router_ED,
                             .w1_EFD = weights.w1_EFD,
                             .v1_EFD = weights.v1_EFD,
                             .w2_EFD = weights.w2_EFD,
                             .gate_RF = saved.gate_RF,
                             .up_RF = saved.up_RF,
                             .weights_TK = data_of<float>(saved.weights_TK),
                             .indices_TK = data_of<std::int32_t>(saved.indices_TK),
                             .rows_TK = data_of<std::int32_t>(saved.rows_TK),
                             .offsets_E1 = data_of<std::int64_t>(saved.offsets_E1),
                             .losses_2 = data_of<float>(losses_2),
                             .tokens_per_expert_E = data_of<std::int32_t>(tokens_per_expert_E),
                             .out_TD = out_TD},
                            workspace, stream);
}

}  // namespace

std::string moe_cuda_problem(const MoEConfig& config, DType dtype, Device device) {
  if (config.backend == Backend::kReference) return "the reference backend runs on the CPU only";
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16) {
    return concat("the GPU kernels take bfloat16 and float16, not ", dtype_name(dtype));
  }
  if (config.d_model % 8 != 0 || config.d_ffn % 8 != 0) {
    return concat("the GPU kernels need widths that are multiples of 8, not d_model ",
                  config.d_model, ", d_ffn ", config.d_ffn);
  }
  if (config.num_experts > 1024) {
    return concat("the GPU kernels take at most 1024 experts, not ", config.num_experts);
  }
  return cuda::device_problem(device.index);
}

std::size_t moe_cuda_forward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens,
                                             DType dtype, Device device) {
  if (const auto plan = small_batch_plan(config, num_tokens, dtype, device)) {
    return cuda::small_batch_workspace_bytes(*plan, num_tokens, config.top_k, config.d_model,
                                             config.d_ffn, config.num_experts);
  }
  WorkspaceCarver carver;
  carve_forward(carver, Sizes(config, num_tokens));
  return carver.used();
}

std::size_t moe_cuda_backward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens) {
  WorkspaceCarver carver;
  carve_backward(carver, config, Sizes(config, num_tokens));
  return carver.used();
}

void moe_cuda_forward(const MoEConfig& config, const ConstTensorView& x_TD,
                      const MoEWeights& weights, const TensorView& out_TD,
                      const TensorView& losses_2, const TensorView& tokens_per_expert_E,
                      const MoESaved& saved, void* workspace, Stream stream) {
  const cuda::CurrentDevice device(x_TD.device.index);
  if (const auto plan = small_batch_plan(config, x_TD.shape[0], x_TD.dtype, x_TD.device)) {
    small_batch_forward(*plan, config, x_TD, weights, out_TD, losses_2, tokens_per_expert_E, saved,
                        workspace, stream);
    const Sizes few(config, x_TD.shape[0]);
    const double planes = config.glu ? 3 : 2;
    tell_observer({"small batch", 2.0 * planes * few.R * few.D * few.F,
                   2.0 * planes * std::min(few.R, few.E) * few.D * few.F, stream});
    return;
  }
  const Sizes s(config, x_TD.shape[0]);
  const Told told{s, config.glu, stream};
  WorkspaceCarver carver(workspace, 0);
  const ForwardBuffers buffers = carve_forward(carver, s);
  const TensorView h_RF(buffers.h_RF, x_TD.dtype, {s.R, s.F}, x_TD.device);
  auto* rows_TK = data_of<std::int32_t>(saved.rows_TK);

  cuda::router_logits(x_TD, weights.router_ED, buffers.logits_TP, buffers.router_space, stream);
  told.part("router", 2.0 * s.T * s.D * s.E, s.T * s.D + s.E * s.D + 2.0 * s.T * s.P);
  const auto* selection_bias_E =
      config.selection_bias ? data_of<const float>(weights.selection_bias_E) : nullptr;
  cuda::route_forward(config.route, selection_bias_E, buffers.logits_TP, s.P, s.T, s.E, s.K,
                      data_of<float>(saved.weights_TK), data_of<std::int32_t>(saved.indices_TK),
                      data_of<float>(losses_2), data_of<std::int32_t>(tokens_per_expert_E),
                      buffers.route_space, stream);
  told.moved("route", 2.0 * s.T * s.P + 4.0 * s.R);
  cuda::dispatch_order(data_of<std::int32_t>(saved.indices_TK), nullptr, s.T, s.K, s.E, rows_TK,
                       data_of<std::int64_t>(saved.offsets_E1), buffers.tokens_R, nullptr,
                       buffers.order_space, stream,
                       expert_capacity(config.capacity_factor, s.T, s.K, s.E));
  if (s.R == 0) return;
  cuda::build_row_tiles(data_of<std::int64_t>(saved.offsets_E1), s.E, kRowTile, buffers.row_tiles,
                        stream);
  told.moved("order", 6.0 * s.R);
  const std::int32_t* list = buffers.tokens_R;
  ConstTensorView up_rows = x_TD;
  if (!up_gathers(config)) {
    const TensorView x_RD(buffers.rows_RC, x_TD.dtype, {s.R, s.D}, x_TD.device);
    cuda::gather(x_TD, rows_TK, s.K, x_RD, stream);
    told.moved("gather", static_cast<double>(s.T + s.R) * s.D);
    list = nullptr;
    up_rows = x_RD;
  }
  cuda::grouped_gemm_activation(config.activation, up_rows, list, weights.w1_EFD, weights.v1_EFD,
                                buffers.row_tiles, saved.gate_RF, saved.up_RF, h_RF, stream,
                                weights.b1_EF, weights.bv1_EF);
  const double read = list == nullptr ? s.R : std::min(s.R, s.T);
  told.part("up", 2.0 * s.R * s.D * told.planes() * s.F,
            read * s.D + told.planes() * s.E * s.D * s.F +
                (saved.gate_RF ? told.planes() + 1 : 1) * s.R * s.F);
  for_each_slab(config, [&](std::int64_t begin, std::int64_t width) {
    const TensorView y_RC(buffers.rows_RC, x_TD.dtype, {s.R, width}, x_TD.device);
    cuda::grouped_gemm(h_RF, columns(weights.w2_EFD, begin, width), true, buffers.row_tiles, y_RC,
                       cuda::choose_grouped_gemm(width), stream,
                       bias_columns(weights.b2_ED, begin, width));
    told.product("down", s.F, width);
    cuda::combine(y_RC, data_of<float>(saved.weights_TK), rows_TK, s.K, false,
                  columns(out_TD, begin, width), stream, drops(config));
    told.moved("combine", static_cast<double>(s.R + s.T) * width);
  });
}

void moe_cuda_backward(const MoEConfig& config, const ConstTensorView& x_TD,
                       const MoEWeights& weights, const MoESaved& saved,
                       const ConstTensorView& d_out_TD, const ConstTensorView& d_losses_2,
                       const MoEGradients& grads, void* workspace, Stream stream) {
  const Sizes s(config, x_TD.shape[0]);
  const Told told{s, config.glu, stream};
  const cuda::CurrentDevice device(x_TD.device.index);
  WorkspaceCarver carver(workspace, 0);
  const BackwardBuffers buffers = carve_backward(carver, config, s);
  const TensorView scaled_h_RF(buffers.scaled_h_RF, x_TD.dtype, {s.R, s.F}, x_TD.device);
  const auto* rows_TK = data_of<std::int32_t>(saved.rows_TK);
  const auto* offsets_E1 = data_of<std::int64_t>(saved.offsets_E1);

  const auto* indices_TK = data_of<const std::int32_t>(saved.indices_TK);
  cuda::prepare_backward(data_of<float>(saved.weights_TK), indices_TK, rows_TK, s.R, s.K, s.E,
                         buffers.weights_R, buffers.tokens_R, buffers.tokens_per_expert_E, stream);
  cuda::build_row_tiles(offsets_E1, s.E, kRowTile, buffers.row_tiles, stream);
  told.moved("prepare", 8.0 * s.R);
  cuda::grouped_gemm_activation_grad(config.activation, d_out_TD, buffers.tokens_R, weights.w2_EFD,
                                     buffers.weights_R, buffers.row_tiles, saved.gate_RF,
                                     saved.up_RF, scaled_h_RF, buffers.d_scores_NR, stream);
  told.part("d_activation", 2.0 * s.R * s.D * s.F,
            static_cast<double>(std::min(s.R, s.T)) * s.D + static_cast<double>(s.E) * s.D * s.F +
                (2 * told.planes() + 1) * s.R * s.F);

  const auto bias_gradient = [&](const TensorView& rows, const float* weights_R,
                                 const TensorView& out) {
    cuda::column_sums(rows, weights_R, offsets_E1, buffers.row_tiles, out, buffers.bias_space,
                      stream);
  };
  if (config.expert_bias) {
    cuda::router_logits(d_out_TD, weights.b2_ED, buffers.d_logits_TP, buffers.router_space, stream);
    bias_gradient(saved.gate_RF, nullptr, grads.b1_EF);
    if (config.glu) bias_gradient(saved.up_RF, nullptr, grads.bv1_EF);
    told.part("d_bias", 2.0 * s.T * s.D * s.E,
              static_cast<double>(s.T) * s.D + told.planes() * s.R * s.F);
  }
  cuda::sum_score_gradients(buffers.d_scores_NR, score_parts(s), rows_TK, s.R, s.K,
                            config.expert_bias ? buffers.d_logits_TP : nullptr, s.P, indices_TK,
                            buffers.d_weights_TK, stream);
  told.moved("d_scores", 2.0 * (score_parts(s) + 1) * s.R);
  cuda::router_logits(x_TD, weights.router_ED, buffers.logits_TP, buffers.router_space, stream);
  cuda::route_backward(config.route, buffers.logits_TP, s.P, s.T, s.E, s.K, indices_TK,
                       buffers.tokens_per_expert_E, buffers.d_weights_TK,
                       data_of<const float>(d_losses_2), buffers.d_logits_TP, stream);
  told.part("router", 2.0 * s.T * s.D * s.E, s.T * s.D + s.E * s.D + 6.0 * s.T * s.P);
  cuda::router_backward(x_TD, weights.router_ED, buffers.d_logits_TP, grads.x_TD, grads.router_ED,
                        buffers.router_space, stream);
  told.part("d_router", 4.0 * s.T * s.D * s.E, 2.0 * (s.T + s.E) * s.D + 2.0 * s.T * s.P);

  const std::array<Spare, 2> spare = spare_memory(grads, config.glu, x_TD.dtype);
  void* const spaces[] = {buffers.rows_RC, spare[0].data, spare[1].data, buffers.scaled_h_RF};
  const auto rows_of = [&](const Slab& slab) {
    return TensorView(spaces[static_cast<int>(slab.space)], x_TD.dtype, {s.R, slab.width},
                      x_TD.device);
  };
  const auto gather_of = [&](const std::optional<SlabGather>& gather) {
    if (!gather) return cuda::GatherBeside{};
    const ConstTensorView& from_TD = gather->from == RowSource::kX ? x_TD : d_out_TD;
    return cuda::GatherBeside{columns(from_TD, gather->slab.begin, gather->slab.width), rows_TK,
                              s.K, rows_of(gather->slab)};
  };
  const auto elements_of = [&](const cuda::GatherBeside& gather) {
    return gather ? static_cast<double>(s.T + s.R) * static_cast<double>(gather.x_RD.shape[1]) : 0;
  };
  const auto weight_gradient = [&](const char* name, const TensorView& a_RF, const Slab& slab,
                                   const TensorView& out_EFD,
                                   const cuda::GatherBeside& beside = {}) {
    cuda::grouped_gemm_weight_grad(a_RF, rows_of(slab), offsets_E1,
                                   columns(out_EFD, slab.begin, slab.width),
                                   /*accumulate=*/out_EFD.dtype == DType::kFloat32,
                                   cuda::choose_weight_grad(slab.width), stream, beside);
    // The same three operands as the down's.
    told.product(name, s.F, static_cast<double>(slab.width), elements_of(beside));
  };
  const auto add_d_x = [&](const Slab& slab, const cuda::GatherBeside& beside) {
    const ConstTensorView w1_EFC = columns(weights.w1_EFD, slab.begin, slab.width);
    const cuda::GemmConfig tile = cuda::choose_grouped_gemm(slab.width);
    if (config.glu) {
      cuda::grouped_gemm_two_terms(saved.gate_RF, w1_EFC, saved.up_RF,
                                   columns(weights.v1_EFD, slab.begin, slab.width),
                                   buffers.row_tiles, rows_of(slab), tile, stream, beside);
    } else {
      cuda::grouped_gemm(saved.gate_RF, w1_EFC, true, buffers.row_tiles, rows_of(slab), tile,
                         stream, {}, beside);
    }
    told.product("d_x", told.planes() * s.F, static_cast<double>(slab.width), elements_of(beside));
    cuda::combine(rows_of(slab), nullptr, rows_TK, s.K, true,
                  columns(grads.x_TD, slab.begin, slab.width), stream, drops(config));
    told.moved("add d_x", static_cast<double>(s.R + 2 * s.T) * static_cast<double>(slab.width));
  };

  for (const BackwardStep& step :
       backward_plan(config, s, {spare[0].elements, spare[1].elements})) {
    const Slab& slab = step.slab;
    const cuda::GatherBeside gather = gather_of(step.gather);
    switch (step.product) {
      case SlabProduct::kNone:
        cuda::gather(gather.x_TD, rows_TK, s.K, gather.x_RD, stream);
        told.moved("gather", elements_of(gather));
        break;
      case SlabProduct::kDX:
        add_d_x(slab, gather);
        break;
      case SlabProduct::kDW2:
        weight_gradient("d_w2", scaled_h_RF, slab, grads.w2_EFD, gather);
        if (config.expert_bias) {
          bias_gradient(rows_of(slab), buffers.weights_R,
                        columns(grads.b2_ED, slab.begin, slab.width));
          told.moved("d_bias", static_cast<double>(s.R) * static_cast<double>(slab.width));
        }
        break;
      case SlabProduct::kDW1V1:
        weight_gradient("d_w1", saved.gate_RF, slab, grads.w1_EFD, gather);
        if (config.glu) weight_gradient("d_v1", saved.up_RF, slab, grads.v1_EFD);
        break;
    }
  }
}

}  // namespace dropless
