// The contracts are in src/cuda/kernels.h. Sums are in float, results rounded where the kernels round theirs. Every entry
// overwrites all of its workspace, as a kernel may; no two workspaces are as large for the same sizes in another order.
#include "tests/ops/plain_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dropless/activation.h"
#include "dropless/error.h"
#include "dropless/permute.h"
#include "src/common/dispatch.h"
#include "src/cuda/kernels.h"
#include "src/cuda/small_batch.h"
#include "tests/ops/tensor.h"

namespace dropless::testing {

PlainKernels& plain_kernels() {
  static PlainKernels settings;
  return settings;
}

}  // namespace dropless::testing

namespace dropless::cuda {
namespace {

using Floats = std::vector<float>;

int devices_current = 0;

void expect(bool holds, const char* what) {
  if (!holds) throw Error(ErrorKind::kInternal, std::string("kernels.h is broken: ") + what);
}

// Of every entry; `matrices`: whose rows go by 16 bytes, of 16-bit elements of one type.
void expect_call(Stream stream, std::initializer_list<ConstTensorView> matrices = {}) {
  expect(devices_current > 0, "the device is not current");
  expect(stream == testing::plain_kernels().stream, "another stream");
  DType type = DType::kFloat32;
  for (const ConstTensorView& m : matrices) {
    if (!m) continue;
    expect(dtype_bytes(m.dtype) == 2, "a matrix of another width than 16 bits");
    expect(type == DType::kFloat32 || type == m.dtype, "matrices of two types");
    type = m.dtype;
    expect(reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0, "a matrix that is not aligned");
    expect(m.shape[m.rank - 1] % 8 == 0, "a width that is no multiple of 8");
    for (int i = 0; i + 1 < m.rank; ++i) expect(m.stride[i] % 8 == 0, "a pitch that is none");
  }
}

// A workspace is as many bytes as it says, all of them overwritten: poison, and a look at its bounds by AddressSanitizer.
void poison(void* workspace, std::size_t bytes) { std::memset(workspace, 0xff, bytes); }

Floats row_of(const ConstTensorView& matrix, std::int64_t row) {
  Floats values(static_cast<std::size_t>(matrix.shape[1]));
  visit_floating(matrix.dtype, [&](auto zero) {
    using S = decltype(zero);
    const S* from = static_cast<const S*>(matrix.data) + row * matrix.stride[0];
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(to_float(from[i]));
  });
  return values;
}

void store_row(const TensorView& matrix, std::int64_t row, const Floats& values) {
  visit_floating(matrix.dtype, [&](auto zero) {
    using S = decltype(zero);
    S* to = static_cast<S*>(matrix.data) + row * matrix.stride[0];
    for (std::size_t i = 0; i < values.size(); ++i) to[i] = from_float<S>(values[i]);
  });
}

// Rounded as in memory of `dtype`.
float rounded(float value, DType dtype) {
  return visit_floating(dtype, [&](auto zero) {
    return static_cast<float>(to_float(from_float<decltype(zero)>(value)));
  });
}

// One expert's matrix of [E, rows, columns].
template <class View>
View matrix_of(View tensor, std::int64_t expert) {
  const std::int64_t bytes = static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
  using Bytes = std::conditional_t<std::is_same_v<View, TensorView>, char*, const char*>;
  tensor.data = static_cast<Bytes>(tensor.data) + expert * tensor.stride[0] * bytes;
  tensor.rank = 2;
  for (int i = 0; i < 2; ++i) {
    tensor.shape[i] = tensor.shape[i + 1];
    tensor.stride[i] = tensor.stride[i + 1];
  }
  return tensor;
}

std::vector<Floats> rows_of(const ConstTensorView& matrix) {
  std::vector<Floats> rows;
  for (std::int64_t i = 0; i < matrix.shape[0]; ++i) rows.push_back(row_of(matrix, i));
  return rows;
}

float dot(const Floats& a, const Floats& b) {
  float sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

void add_scaled(Floats& sums, float scale, const Floats& values) {
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += scale * values[i];
}

// A table of row tiles is here: block_m, the number of experts, their offsets.
std::vector<std::int64_t> offsets_of(const void* row_tiles, int block_m) {
  expect(row_tiles != nullptr, "no row tiles");
  const auto* table = static_cast<const std::int64_t*>(row_tiles);
  expect(table[0] == block_m, "row tiles of another kernel");
  return {table + 2, table + 3 + table[1]};
}

// action(expert, first row, end), of experts that have rows.
template <class Action>
void for_each_expert(const void* row_tiles, int block_m, Action action) {
  const std::vector<std::int64_t> offsets = offsets_of(row_tiles, block_m);
  for (std::size_t e = 0; e + 1 < offsets.size(); ++e) {
    if (offsets[e + 1] > offsets[e]) {
      action(static_cast<std::int64_t>(e), offsets[e], offsets[e + 1]);
    }
  }
}

template <std::size_t kSize>
void expect_variant(const GemmConfig (&variants)[kSize], const GemmConfig& config) {
  expect(std::any_of(variants, variants + kSize,
                     [&](const GemmConfig& variant) { return variant.same_kernel(config); }),
         "a tile that is not compiled");
}

template <class Product>
void with_gather(const GatherBeside& beside, Product product) {
  const auto carry_out = [&] {
    if (!beside) return;
    gather(beside.x_TD, beside.rows_TK, beside.top_k, beside.x_RD, testing::plain_kernels().stream);
  };
  const bool after = testing::plain_kernels().gather_after_products;
  if (!after) carry_out();
  product();
  if (after) carry_out();
}

// out_RN = sum over the pairs (a_RK, b_EKN) of a_RK b_e, + bias.
void multiply_rows(const std::vector<std::pair<ConstTensorView, ConstTensorView>>& terms,
                   const void* row_tiles, const TensorView& out_RN, const GemmConfig& config,
                   const ConstTensorView& bias_EN) {
  expect_variant(kGroupedGemmVariants, config);
  for_each_expert(row_tiles, config.block_m,
                  [&](std::int64_t e, std::int64_t begin, std::int64_t end) {
                    std::vector<Floats> sums(static_cast<std::size_t>(end - begin),
                                             Floats(static_cast<std::size_t>(out_RN.shape[1])));
                    for (const auto& [a_RK, b_EKN] : terms) {
                      const std::vector<Floats> b = rows_of(matrix_of(b_EKN, e));
                      for (std::int64_t r = begin; r < end; ++r) {
                        const Floats a = row_of(a_RK, r);
                        for (std::size_t k = 0; k < a.size(); ++k)
                          add_scaled(sums[r - begin], a[k], b[k]);
                      }
                    }
                    for (std::int64_t r = begin; r < end; ++r) {
                      if (bias_EN) add_scaled(sums[r - begin], 1, row_of(bias_EN, e));
                      store_row(out_RN, r, sums[r - begin]);
                    }
                  });
}

// As a matrix of one row, for the library's ops; absent where there are no values.
TensorView one_row(Floats& values) {
  if (values.empty()) return {};
  return {values.data(), DType::kFloat32, {1, static_cast<std::int64_t>(values.size())}};
}

// [T, E] without the gaps between rows of `pitch`.
Floats without_gaps(const float* logits_TE, std::int64_t pitch, std::int64_t tokens,
                    std::int64_t experts) {
  Floats dense(static_cast<std::size_t>(tokens * experts));
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::copy_n(logits_TE + t * pitch, experts, dense.data() + t * experts);
  }
  return dense;
}

bool is_expert(std::int32_t index, std::int64_t experts) { return index >= 0 && index < experts; }

// The op on the CPU refuses given indices of no expert: those are expert 0's meanwhile.
std::vector<std::int32_t> experts_only(const std::int32_t* indices_TK, std::int64_t entries,
                                       std::int64_t experts) {
  std::vector<std::int32_t> indices(indices_TK, indices_TK + entries);
  for (std::int32_t& index : indices) index = is_expert(index, experts) ? index : 0;
  return indices;
}

}  // namespace

// ---- router, dispatch order, permute, combine

std::size_t route_workspace_bytes(std::int64_t num_tokens, std::int64_t num_experts) {
  return static_cast<std::size_t>(3 * num_tokens + 7 * num_experts);
}

void route_forward(const RouteConfig& config, const float* bias_E, const float* logits_TE,
                   std::int64_t pitch, std::int64_t num_tokens, std::int64_t num_experts,
                   std::int64_t top_k, float* weights_TK, std::int32_t* indices_TK, float* losses_2,
                   std::int32_t* tokens_per_expert_E, void* workspace, Stream stream) {
  expect_call(stream);
  poison(workspace, route_workspace_bytes(num_tokens, num_experts));
  const Floats logits = without_gaps(logits_TE, pitch, num_tokens, num_experts);
  testing::Workspace space(
      dropless::route_workspace_bytes(num_tokens, num_experts, DType::kFloat32));
  const auto optional = [](auto* data, DType dtype, std::int64_t size) {
    return data == nullptr ? TensorView() : TensorView(data, dtype, {size});
  };
  const bool given = config.selection == RouteSelection::kGiven;
  std::vector<std::int32_t> indices =
      given ? experts_only(indices_TK, num_tokens * top_k, num_experts)
            : std::vector<std::int32_t>(static_cast<std::size_t>(num_tokens * top_k));
  dropless::route_forward(
      config, {logits.data(), DType::kFloat32, {num_tokens, num_experts}},
      bias_E == nullptr ? ConstTensorView()
                        : ConstTensorView(bias_E, DType::kFloat32, {num_experts}),
      {weights_TK, DType::kFloat32, {num_tokens, top_k}},
      {indices.data(), DType::kInt32, {num_tokens, top_k}}, optional(losses_2, DType::kFloat32, 2),
      optional(tokens_per_expert_E, DType::kInt32, num_experts), space.data(), space.bytes());
  for (std::int64_t i = 0; i < num_tokens * top_k; ++i) {
    if (!given) indices_TK[i] = indices[i];
    if (!is_expert(indices_TK[i], num_experts)) weights_TK[i] = 0;
  }
}

void route_backward(const RouteConfig& config, const float* logits_TE, std::int64_t pitch,
                    std::int64_t num_tokens, std::int64_t num_experts, std::int64_t top_k,
                    const std::int32_t* indices_TK, const std::int32_t* tokens_per_expert_E,
                    const float* d_weights_TK, const float* d_losses_2, float* d_logits_TE,
                    Stream stream) {
  expect_call(stream);
  expect(num_tokens == 0 || logits_TE != d_logits_TE, "gradients over the logits");
  const Floats logits = without_gaps(logits_TE, pitch, num_tokens, num_experts);
  Floats d_logits(logits.size());
  const std::vector<std::int32_t> indices =
      experts_only(indices_TK, num_tokens * top_k, num_experts);
  dropless::route_backward(
      config, {logits.data(), DType::kFloat32, {num_tokens, num_experts}},
      {indices.data(), DType::kInt32, {num_tokens, top_k}},
      {tokens_per_expert_E, DType::kInt32, {num_experts}},
      {d_weights_TK, DType::kFloat32, {num_tokens, top_k}},
      d_losses_2 == nullptr ? ConstTensorView() : ConstTensorView(d_losses_2, DType::kFloat32, {2}),
      {d_logits.data(), DType::kFloat32, {num_tokens, num_experts}});
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    std::copy_n(d_logits.data() + t * num_experts, num_experts, d_logits_TE + t * pitch);
  }
}

std::size_t dispatch_order_workspace_bytes(std::int64_t num_tokens, std::int64_t top_k,
                                           std::int64_t num_experts) {
  return static_cast<std::size_t>(5 * num_tokens + 11 * top_k + 13 * num_experts);
}

void dispatch_order(const std::int32_t* indices_TK, const float* weights_TK,
                    std::int64_t num_tokens, std::int64_t top_k, std::int64_t num_experts,
                    std::int32_t* rows_TK, std::int64_t* offsets_E1, std::int32_t* tokens_R,
                    float* weights_R, void* workspace, Stream stream, std::int64_t capacity) {
  expect_call(stream);
  poison(workspace, dispatch_order_workspace_bytes(num_tokens, top_k, num_experts));
  const std::int64_t entries = num_tokens * top_k;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(num_experts));
  // The entry's place among its expert's rows; -1: it has none.
  std::vector<std::int64_t> places(static_cast<std::size_t>(entries), -1);
  for (std::int64_t i = 0; i < entries; ++i) {
    if (!is_expert(indices_TK[i], num_experts)) continue;
    std::int64_t& count = counts[indices_TK[i]];
    if (capacity < 0 || count < capacity) places[i] = count++;
  }
  offsets_E1[0] = 0;
  for (std::int64_t e = 0; e < num_experts; ++e) offsets_E1[e + 1] = offsets_E1[e] + counts[e];
  for (std::int64_t i = 0; i < entries; ++i) {
    rows_TK[i] = -1;
    if (places[i] < 0) continue;
    rows_TK[i] = static_cast<std::int32_t>(offsets_E1[indices_TK[i]] + places[i]);
    if (tokens_R != nullptr) tokens_R[rows_TK[i]] = static_cast<std::int32_t>(i / top_k);
    if (weights_R != nullptr) weights_R[rows_TK[i]] = weights_TK[i];
  }
}

void gather(ConstTensorView x_TD, const std::int32_t* rows_TK, std::int64_t top_k, TensorView x_RD,
            Stream stream) {
  expect_call(stream, {x_TD, x_RD});
  expect(x_RD.contiguous() && x_RD.shape[1] == x_TD.shape[1], "rows with gaps");
  for (std::int64_t i = 0; i < x_TD.shape[0] * top_k; ++i) {
    if (rows_TK[i] >= 0) store_row(x_RD, rows_TK[i], row_of(x_TD, i / top_k));
  }
}

void combine(ConstTensorView y_RD, const float* weights_TK, const std::int32_t* rows_TK,
             std::int64_t top_k, bool add, TensorView out_TD, Stream stream, bool dropped) {
  expect_call(stream, {y_RD, out_TD});
  expect(y_RD.contiguous() && y_RD.shape[1] == out_TD.shape[1], "rows with gaps");
  for (std::int64_t t = 0; t < out_TD.shape[0]; ++t) {
    Floats sums = add ? row_of(out_TD, t) : Floats(static_cast<std::size_t>(out_TD.shape[1]));
    for (std::int64_t i = t * top_k; i < (t + 1) * top_k; ++i) {
      expect(dropped || rows_TK[i] >= 0, "a row that is not there");
      if (rows_TK[i] < 0) continue;
      add_scaled(sums, weights_TK == nullptr ? 1 : weights_TK[i], row_of(y_RD, rows_TK[i]));
    }
    store_row(out_TD, t, sums);
  }
}

// ---- matrix products

std::size_t row_tiles_bytes(std::int64_t max_rows, std::int64_t num_experts, int block_m) {
  return 8 * static_cast<std::size_t>(3 + num_experts + max_rows / block_m);
}

void build_row_tiles(const std::int64_t* offsets_E1, std::int64_t num_experts, int block_m,
                     void* row_tiles, Stream stream) {
  expect_call(stream);
  poison(row_tiles, row_tiles_bytes(offsets_E1[num_experts], num_experts, block_m));
  auto* table = static_cast<std::int64_t*>(row_tiles);
  table[0] = block_m, table[1] = num_experts;
  std::copy_n(offsets_E1, num_experts + 1, table + 2);
}

void grouped_gemm(ConstTensorView a_RK, ConstTensorView b, bool b_is_EKN, const void* row_tiles,
                  TensorView out_RN, const GemmConfig& config, Stream stream,
                  ConstTensorView bias_EN, const GatherBeside& beside) {
  expect_call(stream, {a_RK, b, out_RN, bias_EN});
  expect(b_is_EKN, "the layer multiplies weights [E, K, N] only");
  with_gather(beside, [&] { multiply_rows({{a_RK, b}}, row_tiles, out_RN, config, bias_EN); });
}

void grouped_gemm_two_terms(ConstTensorView a_RK, ConstTensorView b_EKN, ConstTensorView a2_RK,
                            ConstTensorView b2_EKN, const void* row_tiles, TensorView out_RN,
                            const GemmConfig& config, Stream stream, const GatherBeside& beside) {
  expect_call(stream, {a_RK, b_EKN, a2_RK, b2_EKN, out_RN});
  with_gather(beside, [&] {
    multiply_rows({{a_RK, b_EKN}, {a2_RK, b2_EKN}}, row_tiles, out_RN, config, {});
  });
}

void grouped_gemm_weight_grad(ConstTensorView a_RM, ConstTensorView b_RN,
                              const std::int64_t* offsets_E1, TensorView out_EMN, bool accumulate,
                              const GemmConfig& config, Stream stream, const GatherBeside& beside) {
  expect_call(stream, {a_RM, b_RN});
  if (out_EMN.dtype != DType::kFloat32) expect_call(stream, {a_RM, out_EMN});
  expect_variant(kWeightGradVariants, config);
  expect(!accumulate || out_EMN.dtype == DType::kFloat32, "sums added in 16 bits");
  with_gather(beside, [&] {
    for (std::int64_t e = 0; e < out_EMN.shape[0]; ++e) {
      const TensorView out_MN = matrix_of(out_EMN, e);
      std::vector<Floats> sums(static_cast<std::size_t>(out_MN.shape[0]),
                               Floats(static_cast<std::size_t>(out_MN.shape[1])));
      for (std::int64_t r = offsets_E1[e]; r < offsets_E1[e + 1]; ++r) {
        const Floats a = row_of(a_RM, r), b = row_of(b_RN, r);
        for (std::size_t m = 0; m < a.size(); ++m) add_scaled(sums[m], a[m], b);
      }
      for (std::int64_t m = 0; m < out_MN.shape[0]; ++m) {
        if (accumulate) add_scaled(sums[m], 1, row_of(out_MN, m));
        store_row(out_MN, m, sums[m]);
      }
    }
  });
}

void grouped_gemm_activation(Activation activation, ConstTensorView x, const std::int32_t* list_R,
                             ConstTensorView w1_EFD, ConstTensorView v1_EFD, const void* row_tiles,
                             TensorView gate_RF, TensorView up_RF, TensorView act_RF, Stream stream,
                             ConstTensorView b1_EF, ConstTensorView bv1_EF) {
  expect_call(stream, {x, w1_EFD, v1_EFD, gate_RF, up_RF, act_RF, b1_EF, bv1_EF});
  expect(list_R == nullptr || x.contiguous(), "listed rows with gaps");
  const auto F = static_cast<std::size_t>(act_RF.shape[1]);
  for_each_expert(row_tiles, 128, [&](std::int64_t e, std::int64_t begin, std::int64_t end) {
    const std::vector<Floats> w1 = rows_of(matrix_of(w1_EFD, e));
    const std::vector<Floats> v1 = v1_EFD ? rows_of(matrix_of(v1_EFD, e)) : std::vector<Floats>();
    for (std::int64_t r = begin; r < end; ++r) {
      const Floats from = row_of(x, list_R == nullptr ? r : list_R[r]);
      Floats gate = b1_EF ? row_of(b1_EF, e) : Floats(F), act(F);
      Floats up = bv1_EF ? row_of(bv1_EF, e) : Floats(v1.size());
      for (std::size_t f = 0; f < F; ++f)
        gate[f] = rounded(gate[f] + dot(from, w1[f]), act_RF.dtype);
      for (std::size_t f = 0; f < up.size(); ++f)
        up[f] = rounded(up[f] + dot(from, v1[f]), act_RF.dtype);
      activation_forward(activation, one_row(gate), one_row(up), one_row(act));
      if (gate_RF) store_row(gate_RF, r, gate);
      if (gate_RF && up_RF) store_row(up_RF, r, up);
      store_row(act_RF, r, act);
    }
  });
}

void grouped_gemm_activation_grad(Activation activation, ConstTensorView d_out_TD,
                                  const std::int32_t* tokens_R, ConstTensorView w2_EFD,
                                  const float* scores_R, const void* row_tiles, TensorView gate_RF,
                                  TensorView up_RF, TensorView act_RF, float* d_scores_NR,
                                  Stream stream) {
  expect_call(stream, {d_out_TD, w2_EFD, gate_RF, up_RF, act_RF});
  expect(d_out_TD.contiguous(), "listed rows with gaps");
  const std::int64_t rows = act_RF.shape[0];
  const auto F = static_cast<std::size_t>(act_RF.shape[1]);
  for_each_expert(row_tiles, 128, [&](std::int64_t e, std::int64_t begin, std::int64_t end) {
    const std::vector<Floats> w2 = rows_of(matrix_of(w2_EFD, e));
    for (std::int64_t r = begin; r < end; ++r) {
      const Floats d_out = row_of(d_out_TD, tokens_R[r]);
      Floats gate = row_of(gate_RF, r), up = up_RF ? row_of(up_RF, r) : Floats(), act(F), d_act(F);
      Floats parts((F + kActivationGradColumns - 1) / kActivationGradColumns);
      activation_forward(activation, one_row(gate), one_row(up), one_row(act));
      for (std::size_t f = 0; f < F; ++f) {
        const float t = dot(d_out, w2[f]);
        parts[f / kActivationGradColumns] += t * act[f];
        d_act[f] = scores_R[r] * t;
        act[f] *= scores_R[r];
      }
      activation_backward(activation, one_row(gate), one_row(up), one_row(d_act), one_row(gate),
                          one_row(up));
      for (std::size_t i = 0; i < parts.size(); ++i) {
        d_scores_NR[static_cast<std::int64_t>(i) * rows + r] = parts[i];
      }
      store_row(gate_RF, r, gate);
      if (up_RF) store_row(up_RF, r, up);
      store_row(act_RF, r, act);
    }
  });
}

// ---- router products

std::size_t router_workspace_bytes(std::int64_t num_tokens, std::int64_t d_model,
                                   std::int64_t num_experts) {
  return static_cast<std::size_t>(17 * num_tokens + 19 * d_model + 23 * num_experts);
}

void router_logits(ConstTensorView x_TD, ConstTensorView router_ED, float* logits_TP,
                   void* workspace, Stream stream) {
  expect_call(stream, {x_TD, router_ED});
  const std::int64_t experts = router_ED.shape[0], pitch = router_pitch(experts);
  poison(workspace, router_workspace_bytes(x_TD.shape[0], x_TD.shape[1], experts));
  const std::vector<Floats> router = rows_of(router_ED);
  for (std::int64_t t = 0; t < x_TD.shape[0]; ++t) {
    const Floats x = row_of(x_TD, t);
    for (std::int64_t e = 0; e < experts; ++e) logits_TP[t * pitch + e] = dot(x, router[e]);
  }
}

void router_backward(ConstTensorView x_TD, ConstTensorView router_ED, const float* d_logits_TP,
                     TensorView d_x_TD, TensorView d_router_ED, void* workspace, Stream stream) {
  expect_call(stream, {x_TD, router_ED, d_x_TD, d_router_ED});
  const std::int64_t experts = router_ED.shape[0], pitch = router_pitch(experts);
  poison(workspace, router_workspace_bytes(x_TD.shape[0], x_TD.shape[1], experts));
  const std::vector<Floats> router = rows_of(router_ED);
  std::vector<Floats> d_router(static_cast<std::size_t>(experts),
                               Floats(static_cast<std::size_t>(x_TD.shape[1])));
  for (std::int64_t t = 0; t < x_TD.shape[0]; ++t) {
    const Floats x = row_of(x_TD, t);
    Floats d_x(x.size());
    for (std::int64_t e = 0; e < experts; ++e) {
      add_scaled(d_x, d_logits_TP[t * pitch + e], router[e]);
      add_scaled(d_router[e], d_logits_TP[t * pitch + e], x);
    }
    store_row(d_x_TD, t, d_x);
  }
  for (std::int64_t e = 0; e < experts; ++e) store_row(d_router_ED, e, d_router[e]);
}

// ---- between the parts of the layer's backward pass

void prepare_backward(const float* weights_TK, const std::int32_t* indices_TK,
                      const std::int32_t* rows_TK, std::int64_t num_rows, std::int64_t top_k,
                      std::int64_t num_experts, float* weights_R, std::int32_t* tokens_R,
                      std::int32_t* tokens_per_expert_E, Stream stream) {
  expect_call(stream);
  std::fill_n(tokens_per_expert_E, num_experts, 0);
  for (std::int64_t i = 0; i < num_rows; ++i) {
    if (is_expert(indices_TK[i], num_experts)) ++tokens_per_expert_E[indices_TK[i]];
    if (rows_TK[i] < 0) continue;
    weights_R[rows_TK[i]] = weights_TK[i];
    tokens_R[rows_TK[i]] = static_cast<std::int32_t>(i / top_k);
  }
}

void sum_score_gradients(const float* d_scores_NR, std::int64_t parts, const std::int32_t* rows_TK,
                         std::int64_t num_rows, std::int64_t top_k, const float* added_TP,
                         std::int64_t pitch, const std::int32_t* indices_TK, float* d_weights_TK,
                         Stream stream) {
  expect_call(stream);
  for (std::int64_t i = 0; i < num_rows; ++i) {
    d_weights_TK[i] = 0;
    if (rows_TK[i] < 0) continue;
    if (added_TP != nullptr) d_weights_TK[i] = added_TP[i / top_k * pitch + indices_TK[i]];
    for (std::int64_t part = 0; part < parts; ++part) {
      d_weights_TK[i] += d_scores_NR[part * num_rows + rows_TK[i]];
    }
  }
}

std::size_t column_sums_workspace_bytes(std::int64_t max_rows, std::int64_t num_experts,
                                        std::int64_t width) {
  return static_cast<std::size_t>(4 * (max_rows / kColumnSumRows + num_experts) * width);
}

void column_sums(ConstTensorView rows_RN, const float* weights_R, const std::int64_t* offsets_E1,
                 const void* row_tiles, TensorView out_EN, void* workspace, Stream stream) {
  expect_call(stream, {rows_RN, out_EN});
  expect(rows_RN.contiguous(), "rows with gaps");
  expect(std::equal(offsets_E1, offsets_E1 + out_EN.shape[0] + 1,
                    offsets_of(row_tiles, kColumnSumRows).begin()),
         "row tiles of other offsets");
  poison(workspace,
         column_sums_workspace_bytes(rows_RN.shape[0], out_EN.shape[0], rows_RN.shape[1]));
  for (std::int64_t e = 0; e < out_EN.shape[0]; ++e) {
    Floats sums(static_cast<std::size_t>(out_EN.shape[1]));
    for (std::int64_t r = offsets_E1[e]; r < offsets_E1[e + 1]; ++r) {
      add_scaled(sums, weights_R == nullptr ? 1 : weights_R[r], row_of(rows_RN, r));
    }
    store_row(out_EN, e, sums);
  }
}

// ---- device

CurrentDevice::CurrentDevice(int index) : index_(index), previous_(index) { ++devices_current; }
CurrentDevice::~CurrentDevice() { --devices_current; }
std::string device_problem(int /*index*/) { return ""; }
bool portable_path(int /*index*/) { return false; }

// ---- few tokens: the same layer, step by step

bool small_batch_fits(std::int64_t /*tokens*/, std::int64_t /*num_experts*/,
                      std::int64_t /*top_k*/) {
  return testing::plain_kernels().small_batches;
}

std::size_t small_batch_workspace_bytes(const SmallBatchPlan& plan, std::int64_t tokens,
                                        std::int64_t top_k, std::int64_t d_model,
                                        std::int64_t d_ffn, std::int64_t num_experts) {
  return static_cast<std::size_t>(plan.rows + 3 * tokens + 5 * top_k + 7 * d_model + 11 * d_ffn +
                                  13 * num_experts);
}

void small_batch_forward(const SmallBatchPlan& plan, const SmallBatch& layer, void* workspace,
                         Stream stream) {
  const std::int64_t T = layer.tokens, K = layer.top_k, E = layer.num_experts, R = T * K;
  expect_call(stream, {layer.x_TD, layer.router_ED, layer.w1_EFD, layer.v1_EFD, layer.w2_EFD,
                       layer.gate_RF, layer.up_RF, layer.out_TD});
  poison(workspace, small_batch_workspace_bytes(plan, T, K, layer.d_model, layer.d_ffn, E));
  testing::Workspace space(router_workspace_bytes(T, layer.d_model, E) +
                           route_workspace_bytes(T, E) + dispatch_order_workspace_bytes(T, K, E));
  testing::Workspace tiles(row_tiles_bytes(R, E, 128));
  Floats logits(static_cast<std::size_t>(T * router_pitch(E)));
  std::vector<std::int32_t> tokens_R(static_cast<std::size_t>(R));
  testing::Tensor h_RF(layer.x_TD.dtype, {R, layer.d_ffn});
  testing::Tensor y_RD(layer.x_TD.dtype, {R, layer.d_model});
  router_logits(layer.x_TD, layer.router_ED, logits.data(), space.data(), stream);
  route_forward({.normalize_p = layer.normalize ? 1.0 : 0.0}, nullptr, logits.data(),
                router_pitch(E), T, E, K, layer.weights_TK, layer.indices_TK, layer.losses_2,
                layer.tokens_per_expert_E, space.data(), stream);
  dispatch_order(layer.indices_TK, nullptr, T, K, E, layer.rows_TK, layer.offsets_E1,
                 tokens_R.data(), nullptr, space.data(), stream, -1);
  build_row_tiles(layer.offsets_E1, E, 128, tiles.data(), stream);
  grouped_gemm_activation(layer.activation, layer.x_TD, tokens_R.data(), layer.w1_EFD,
                          layer.glu ? layer.v1_EFD : ConstTensorView(), tiles.data(), layer.gate_RF,
                          layer.up_RF, h_RF, stream, {}, {});
  grouped_gemm(h_RF, layer.w2_EFD, true, tiles.data(), y_RD, choose_grouped_gemm(layer.d_model),
               stream, {}, {});
  combine(y_RD, layer.weights_TK, layer.rows_TK, K, false, layer.out_TD, stream, false);
}

}  // namespace dropless::cuda
