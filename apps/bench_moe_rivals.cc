#include "apps/bench_moe_rivals.h"

#include <torch/csrc/autograd/custom_function.h>

namespace dropless::apps {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// rows_RM w_e for each expert's range of rows, one product an expert straight into its place.
// ends_E: int32 cumulative row counts, on the host.
struct LoopProduct : torch::autograd::Function<LoopProduct> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows_RM,
                            const at::Tensor& w_EMN, const at::Tensor& ends_E) {
    ctx->save_for_backward({rows_RM, w_EMN, ends_E});
    at::Tensor out_RN = at::empty({rows_RM.size(0), w_EMN.size(2)}, rows_RM.options());
    for_each_expert(ends_E, [&](std::int64_t e, std::int64_t begin, std::int64_t end) {
      at::Tensor out = out_RN.slice(0, begin, end);
      at::mm_out(out, rows_RM.slice(0, begin, end), w_EMN[e]);
    });
    return out_RN;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &rows_RM = saved[0], &w_EMN = saved[1], &d_out_RN = grads[0];
    at::Tensor d_rows_RM = at::empty_like(rows_RM), d_w_EMN = at::zeros_like(w_EMN);
    for_each_expert(saved[2], [&](std::int64_t e, std::int64_t begin, std::int64_t end) {
      const at::Tensor d_out = d_out_RN.slice(0, begin, end);
      at::Tensor d_rows = d_rows_RM.slice(0, begin, end), d_w = d_w_EMN[e];
      at::mm_out(d_rows, d_out, w_EMN[e].t());
      at::mm_out(d_w, rows_RM.slice(0, begin, end).t(), d_out);
    });
    return {d_rows_RM, d_w_EMN, at::Tensor()};
  }

 private:
  template <class Action>
  static void for_each_expert(const at::Tensor& ends_E, Action action) {
    const std::int32_t* ends = ends_E.const_data_ptr<std::int32_t>();
    std::int64_t begin = 0;
    for (std::int64_t e = 0; e < ends_E.size(0); ++e) {
      if (ends[e] > begin) action(e, begin, ends[e]);
      begin = ends[e];
    }
  }
};

// Where the (token, k) pairs lie in the order of the experts: S slots, one a pair or, padded, C an expert.
struct Slots {
  at::Tensor slots_R;   // of each pair: those of a token stand together
  at::Tensor tokens_S;  // of each slot; 0 where it is empty
  at::Tensor ends_E;    // where an expert's slots end, int32
};

Slots order_pairs(const at::Tensor& indices_TK, std::int64_t num_experts, bool padded) {
  const std::int64_t E = num_experts, K = indices_TK.size(1);
  // A short key has fewer digits to sort by.
  const auto [experts_R, pairs_R] =
      at::sort(indices_TK.reshape({-1}).to(at::kShort), /*stable=*/true, 0, /*descending=*/false);
  const at::Tensor tokens_R = at::floor_divide(pairs_R, K);
  const at::Tensor ends_E =
      at::searchsorted(experts_R, at::arange(E, experts_R.options()), /*out_int32=*/true,
                       /*right=*/true);
  at::Tensor place_R = at::arange(pairs_R.size(0), pairs_R.options());
  Slots result{at::empty_like(pairs_R), tokens_R, ends_E};
  if (padded) {
    const at::Tensor begins_E = at::constant_pad_nd(ends_E, {1, -1}).to(at::kLong);
    const std::int64_t C = (ends_E - begins_E).max().item<std::int64_t>();
    const at::Tensor experts = experts_R.to(at::kLong);
    place_R = place_R + experts * C - begins_E.index_select(0, experts);
    result.tokens_S = at::zeros({E * C}, tokens_R.options()).scatter_(0, place_R, tokens_R);
    result.ends_E = at::arange(1, E + 1, ends_E.options()) * C;
  }
  result.slots_R.scatter_(0, pairs_R, place_R);
  return result;
}

// x's rows in the slots. Its gradient is a sum of k rows a token: reading them is 4 times as fast as index_add, which autograd
// would take.
struct GatherRows : torch::autograd::Function<GatherRows> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const Slots& slots) {
    ctx->save_for_backward({slots.slots_R});
    ctx->saved_data["T"] = x_TD.size(0);
    return x_TD.index_select(0, slots.tokens_S);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const std::int64_t T = ctx->saved_data["T"].toInt();
    const at::Tensor rows_RD = grads[0].index_select(0, ctx->get_saved_variables()[0]);
    const at::Tensor rows_TKD = rows_RD.view({T, -1, rows_RD.size(1)});
    return {rows_TKD.size(1) == 1 ? rows_RD : rows_TKD.sum(1), at::Tensor()};
  }
};

// sum_k weights[t, k] y[slots[t, k]]. An empty slot has weight 0, so that nothing of it comes into a gradient.
struct CombineRows : torch::autograd::Function<CombineRows> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& y_SD,
                            const at::Tensor& weights_TK, const Slots& slots) {
    const std::int64_t T = weights_TK.size(0), K = weights_TK.size(1);
    const at::Tensor y_TKD = y_SD.index_select(0, slots.slots_R).view({T, K, y_SD.size(1)});
    ctx->save_for_backward({y_TKD, weights_TK, slots.slots_R, slots.tokens_S});
    const at::Tensor weights = weights_TK.to(y_SD.scalar_type());
    // The faster on an H200: products of one row are slow to start, of few k.
    constexpr std::int64_t kFew = 4;
    if (K >= kFew) return at::bmm(weights.unsqueeze(1), y_TKD).squeeze(1);
    const at::Tensor scaled_TKD = y_TKD * weights.unsqueeze(-1);
    return K == 1 ? scaled_TKD.squeeze(1) : scaled_TKD.sum(1);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &y_TKD = saved[0], &weights_TK = saved[1], &d_out_TD = grads[0];
    const at::Tensor weights_S = at::zeros({saved[3].size(0)}, weights_TK.options())
                                     .scatter_(0, saved[2], weights_TK.reshape({-1}));
    at::Tensor d_y_SD = d_out_TD.index_select(0, saved[3]);
    d_y_SD.mul_(weights_S.to(d_y_SD.scalar_type()).unsqueeze(1));
    const at::Tensor d_weights_TK =
        at::bmm(d_out_TD.unsqueeze(1), y_TKD.transpose(1, 2)).squeeze(1);
    return {d_y_SD, d_weights_TK.to(weights_TK.scalar_type()), at::Tensor()};
  }
};

}  // namespace

at::Tensor rival_layer(RivalProducts products, const MoEConfig& config, const at::Tensor& x_TD,
                       const at::Tensor& router_ED, const at::Tensor& w1_EFD,
                       const at::Tensor& v1_EFD, const at::Tensor& w2_EFD) {
  const std::int64_t E = config.num_experts;
  const at::Tensor scores_TE =
      at::softmax(at::linear(x_TD.to(at::kFloat), router_ED.to(at::kFloat)), -1);
  const auto [weights_TK, indices_TK] = at::topk(scores_TE, config.top_k);
  const Slots slots = order_pairs(indices_TK, E, products == RivalProducts::kPadded);
  // _grouped_mm takes bf16 and rows of whole 16 bytes.
  const bool grouped = products == RivalProducts::kGrouped && x_TD.scalar_type() == at::kBFloat16 &&
                       x_TD.size(1) % 8 == 0 && w1_EFD.size(1) % 8 == 0;
  const bool loop = products != RivalProducts::kPadded && !grouped;
  const at::Tensor host_ends_E = loop ? slots.ends_E.cpu() : at::Tensor();
  const auto product = [&](const at::Tensor& rows_SM, const at::Tensor& w_EMN) {
    if (grouped) return at::_grouped_mm(rows_SM, w_EMN, slots.ends_E);
    if (loop) return LoopProduct::apply(rows_SM, w_EMN, host_ends_E);
    return at::bmm(rows_SM.view({E, -1, rows_SM.size(1)}), w_EMN).flatten(0, 1);
  };
  const at::Tensor rows_SD = GatherRows::apply(x_TD, slots);
  const at::Tensor gate_SF = product(rows_SD, w1_EFD.transpose(1, 2));
  const at::Tensor up_SF = product(rows_SD, v1_EFD.transpose(1, 2));
  const at::Tensor y_SD = product(at::silu(gate_SF).mul(up_SF), w2_EFD);
  return CombineRows::apply(y_SD, weights_TK, slots);
}

}  // namespace dropless::apps
