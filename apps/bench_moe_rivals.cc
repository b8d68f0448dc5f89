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

}  // namespace

at::Tensor rival_layer(RivalProducts products, const MoEConfig& config, const at::Tensor& x_TD,
                       const at::Tensor& router_ED, const at::Tensor& w1_EFD,
                       const at::Tensor& v1_EFD, const at::Tensor& w2_EFD) {
  const std::int64_t T = x_TD.size(0), D = x_TD.size(1), E = config.num_experts, K = config.top_k;
  const at::Tensor scores_TE =
      at::softmax(at::linear(x_TD.to(at::kFloat), router_ED.to(at::kFloat)), -1);
  const auto [weights_TK, indices_TK] = at::topk(scores_TE, K);
  const at::Tensor flat_R = indices_TK.reshape({-1});
  const at::Tensor order_R = at::argsort(flat_R, /*stable=*/true, 0);
  const at::Tensor tokens_R = at::floor_divide(order_R, K);
  const at::Tensor counts_E = at::bincount(flat_R, {}, E);
  const at::Tensor ends_E = counts_E.cumsum(0);

  // Where each sorted row lies: in order, or in its expert's block of C rows.
  const bool padded = products == RivalProducts::kPadded;
  const std::int64_t C = padded ? counts_E.max().item<std::int64_t>() : 0;
  at::Tensor place_R = at::arange(T * K, order_R.options());
  at::Tensor rows_RD;
  if (padded) {
    const at::Tensor experts_R = flat_R.index_select(0, order_R);
    place_R = place_R + experts_R * C - (ends_E - counts_E).index_select(0, experts_R);
    // Empty places hold a token of zeros behind the last.
    const at::Tensor tokens =
        at::full({E * C}, T, order_R.options()).scatter_(0, place_R, tokens_R);
    rows_RD = at::constant_pad_nd(x_TD, {0, 0, 0, 1}).index_select(0, tokens);
  } else {
    rows_RD = x_TD.index_select(0, tokens_R);
  }
  const at::Tensor host_ends_E = padded ? at::Tensor() : ends_E.to(at::kInt).cpu();
  const auto product = [&](const at::Tensor& rows, const at::Tensor& w_EMN) {
    if (!padded) return LoopProduct::apply(rows, w_EMN, host_ends_E);
    return at::bmm(rows.view({E, C, rows.size(1)}), w_EMN).view({E * C, w_EMN.size(2)});
  };
  const at::Tensor gate_RF = product(rows_RD, w1_EFD.transpose(1, 2));
  const at::Tensor up_RF = product(rows_RD, v1_EFD.transpose(1, 2));
  const at::Tensor y_RD = product(at::silu(gate_RF).mul(up_RF), w2_EFD);

  at::Tensor row_of_R = at::empty_like(order_R);
  row_of_R.scatter_(0, order_R, place_R);
  const at::Tensor y_TKD = y_RD.index_select(0, row_of_R).view({T, K, D});
  return (y_TKD.to(at::kFloat) * weights_TK.unsqueeze(-1)).sum(1).to(x_TD.scalar_type());
}

}  // namespace dropless::apps
