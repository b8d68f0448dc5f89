#include "apps/bench_moe_rivals.h"

#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "apps/bench_timing.h"
#include "dropless/error.h"
#include "train/base/signals.h"
#include "train/run/memory.h"

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
      if (begin == end) return;
      at::Tensor out = out_RN.slice(0, begin, end);
      at::mm_out(out, rows_RM.slice(0, begin, end), w_EMN[e]);
    });
    return out_RN;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &rows_RM = saved[0], &w_EMN = saved[1], &d_out_RN = grads[0];
    at::Tensor d_rows_RM = at::empty_like(rows_RM), d_w_EMN = at::empty_like(w_EMN);
    for_each_expert(saved[2], [&](std::int64_t e, std::int64_t begin, std::int64_t end) {
      at::Tensor d_w = d_w_EMN[e];
      if (begin == end) {
        d_w.zero_();
        return;
      }
      const at::Tensor d_out = d_out_RN.slice(0, begin, end);
      at::Tensor d_rows = d_rows_RM.slice(0, begin, end);
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
      action(e, begin, ends[e]);
      begin = ends[e];
    }
  }
};

// Where the (token, k) pairs lie in the order of the experts: S slots, one a pair or, padded, C an expert.
struct Slots {
  at::Tensor slots_R;   // of each pair: those of a token stand together
  at::Tensor tokens_S;  // of each slot; 0 where it is empty
  at::Tensor ends_E;    // where an expert's slots end, int32; not of padded ones
};

Slots order_pairs(const at::Tensor& indices_TK, std::int64_t num_experts, bool padded) {
  const std::int64_t E = num_experts, K = indices_TK.size(1);
  // A short key has fewer digits to sort by; the CPU's layer takes more experts than it holds.
  const at::ScalarType key = E <= 1 << 15 ? at::kShort : at::kInt;
  const auto [experts_R, pairs_R] =
      at::sort(indices_TK.reshape({-1}).to(key), /*stable=*/true, 0, /*descending=*/false);
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
    // On an H200 a product of one row by K takes longer than scaling and adding where K is below 4.
    if (K >= 4) return at::bmm(weights.unsqueeze(1), y_TKD).squeeze(1);
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
    const at::Tensor d_out_T1D = d_out_TD.unsqueeze(1);  // as above, but from 2 on
    const at::Tensor d_weights_TK = y_TKD.size(1) == 1
                                        ? (d_out_T1D * y_TKD).sum(-1)
                                        : at::bmm(d_out_T1D, y_TKD.transpose(1, 2)).squeeze(1);
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
  // Of other types and rows libtorch makes a loop itself.
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

namespace {

LayerFunction layer_of(RivalProducts products) {
  return [products](const MoEConfig& config, const at::Tensor& x, const at::Tensor& router,
                    const at::Tensor& w1, const at::Tensor& v1, const at::Tensor& w2) {
    return rival_layer(products, config, x, router, w1, v1, w2);
  };
}

// ||other - own|| / ||own||, over all elements or those of `dims`; 0 where they are equal.
at::Tensor relative_difference(const at::Tensor& other, const at::Tensor& own,
                               at::IntArrayRef dims = {}) {
  const at::Tensor apart = at::norm(other - own, 2, dims, /*keepdim=*/false, at::kFloat);
  const at::Tensor size = at::norm(own, 2, dims, /*keepdim=*/false, at::kFloat);
  return at::where(apart == 0, apart, apart / size);
}

// The output and the gradients of x, router, w1, v1, w2.
std::vector<at::Tensor> results_of(const LayerCase& c, const LayerFunction& layer) {
  std::vector<at::Tensor> results{c.forward(layer)};
  for (at::Tensor& gradient : c.gradients(results[0])) results.push_back(std::move(gradient));
  for (at::Tensor& result : results) result = result.detach();
  return results;
}

}  // namespace

const std::vector<NamedLayer>& libtorch_rivals() {
  static const std::vector<NamedLayer> rivals = {{"torch", layer_of(RivalProducts::kGrouped)},
                                                 {"loop", layer_of(RivalProducts::kLoop)},
                                                 {"padded", layer_of(RivalProducts::kPadded)}};
  return rivals;
}

Agreement compare_with_rivals(const LayerCase& c, const std::vector<NamedLayer>& rivals) {
  const std::vector<at::Tensor> own = results_of(c, own_layer);
  const bool fp32 = own[0].scalar_type() == at::kFloat;
  const double rounding = fp32 ? 1e-3 : 0.02, most = fp32 ? 0.05 : 0.3;
  // The router's gradient of a few tokens is a few numbers, which may cancel to nothing.
  constexpr std::int64_t kTokensOfARouter = 64;
  const bool has_router = own[0].size(0) >= kTokensOfARouter;
  Agreement agreement;
  for (const NamedLayer& rival : rivals) {
    train::check_interrupted();
    try {
      const std::vector<at::Tensor> other = results_of(c, rival.layer);
      std::vector<double> differences;
      bool near = true;  // NaN is far
      for (std::size_t i = 0; i < own.size(); ++i) {
        differences.push_back(relative_difference(other[i], own[i]).item<double>());
        if (i == 2 && !has_router) continue;
        near = near && differences[i] <= most;
      }
      double tokens[2];  // of the output, of x's gradient
      for (std::size_t i : {0, 1}) {
        tokens[i] = relative_difference(other[i], own[i], {-1}).quantile(0.95).item<double>();
        near = near && tokens[i] <= rounding;
      }
      if (!near) {
        throw Error(
            ErrorKind::kInternal,
            fmt::format("dropless and {} differ: one token in twenty by {:.2g} or more, its "
                        "gradient by {:.2g}; all together, with the gradients of x, router, "
                        "w1, v1 and w2, by {:.2g}",
                        rival.name, tokens[0], tokens[1], fmt::join(differences, ", ")),
            "no time of this layer means anything: report it with the command");
      }
      agreement.output = std::max(agreement.output.value_or(0), differences[0]);
      if (!has_router) differences[2] = 0;
      agreement.gradients = std::max(agreement.gradients.value_or(0),
                                     *std::max_element(differences.begin() + 1, differences.end()));
    } catch (const std::exception& error) {
      if (!train::is_out_of_memory(error)) throw;
      agreement.unknown.push_back(rival.name);
      train::release_cached_memory(own[0].device());
    }
  }
  return agreement;
}

}  // namespace dropless::apps
