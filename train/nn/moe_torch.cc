#include "train/nn/moe_torch.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "train/bridge/views.h"
#include "train/nn/ffn.h"
#include "train/nn/precision.h"

namespace dropless::train {
namespace {

// rows_RM x w_e for each expert's range of rows; w_EMN, ends_E int32 cumulative row counts.
at::Tensor grouped_product(const at::Tensor& rows_RM, const at::Tensor& w_EMN,
                           const at::Tensor& ends_E) {
  // _grouped_mm wants bf16 and 16-byte rows; elsewhere (and for fp32, fp16) one product an expert.
  const bool aligned = rows_RM.size(1) % 8 == 0 && w_EMN.size(2) % 8 == 0;
  if (rows_RM.scalar_type() == at::kBFloat16 && aligned) {
    return at::_grouped_mm(rows_RM, w_EMN, ends_E);
  }
  const at::Tensor ends = ends_E.cpu();
  const std::int32_t* end = ends.const_data_ptr<std::int32_t>();
  std::vector<at::Tensor> parts;
  std::int64_t begin = 0;
  for (std::int64_t e = 0; e < w_EMN.size(0); ++e) {
    parts.push_back(at::matmul(rows_RM.slice(0, begin, end[e]), w_EMN[e]));
    begin = end[e];
  }
  return at::cat(parts, 0);
}

struct Routing {
  at::Tensor indices_TK, weights_TK;
  at::Tensor logits_TE, probabilities_TE;  // for the losses
};

// x / sum of a row's x^q to the 1/q; rows of next to nothing as they are (dropless/route.h).
at::Tensor divide_by_norm(const at::Tensor& x, double q) {
  const at::Tensor norm = at::norm(x, q, {-1}, /*keepdim=*/true);
  return x / at::where(norm < 1e-30, at::ones_like(norm), norm);
}

// c of dropless/route.h with -inf outside the group_top_k best groups.
at::Tensor within_groups(const at::Tensor& c_TE, const RouteConfig& route) {
  if (route.group_top_k == route.num_groups) return c_TE;
  const std::int64_t T = c_TE.size(0), E = c_TE.size(1), size = E / route.num_groups;
  const at::Tensor c_TGS = c_TE.view({T, route.num_groups, size});
  const std::int64_t best = std::min<std::int64_t>(size, 2);
  const at::Tensor value_TG = std::get<0>(c_TGS.topk(best, -1)).sum(-1);
  const at::Tensor order =
      std::get<1>(at::sort(value_TG, /*stable=*/true, -1, /*descending=*/true));
  at::Tensor eligible_TG = at::zeros({T, route.num_groups}, c_TE.options().dtype(at::kBool));
  eligible_TG.scatter_(1, order.narrow(1, 0, route.group_top_k), true);
  return c_TGS.masked_fill(~eligible_TG.unsqueeze(-1), -std::numeric_limits<double>::infinity())
      .view({T, E});
}

at::Tensor choose_experts(const MoEConfig& config, const Routing& routing,
                          const at::Tensor& scores_TE, const at::Tensor& bias_E) {
  const std::int64_t T = scores_TE.size(0), E = config.num_experts, K = config.top_k;
  const auto options = scores_TE.options().dtype(at::kLong);
  if (config.route.selection == RouteSelection::kUniform) {
    return at::arange(T * K, options).remainder(E).view({T, K});
  }
  const bool plain = !bias_E.defined() && config.route.group_top_k == config.route.num_groups;
  at::Tensor c_TE = plain ? routing.logits_TE.detach() : scores_TE.detach();
  if (bias_E.defined()) c_TE = c_TE + bias_E.to(c_TE.scalar_type());
  // A stable sort keeps the lowest expert first among equals; topk promises no order.
  return std::get<1>(at::sort(within_groups(c_TE, config.route), /*stable=*/true, -1,
                              /*descending=*/true))
      .narrow(1, 0, K);
}

Routing route(const MoEConfig& config, const at::Tensor& x_TD, const at::Tensor& router_ED,
              const at::Tensor& bias_E, at::ScalarType type) {
  Routing routing;
  routing.logits_TE = at::linear(x_TD.to(type), router_ED.to(type));
  const bool sigmoid = config.route.score == RouteScore::kSigmoid;
  const at::Tensor scores_TE =
      sigmoid ? at::sigmoid(routing.logits_TE) : at::softmax(routing.logits_TE, -1);
  routing.probabilities_TE = sigmoid ? divide_by_norm(scores_TE, 1) : scores_TE;
  routing.indices_TK = choose_experts(config, routing, scores_TE, bias_E);
  at::Tensor weights_TK = scores_TE.gather(1, routing.indices_TK);
  if (config.route.normalize_p > 0) {
    weights_TK = divide_by_norm(weights_TK, config.route.normalize_p);
  }
  if (config.route.scaling_factor != 1) weights_TK = weights_TK * config.route.scaling_factor;
  routing.weights_TK = weights_TK;
  return routing;
}

at::Tensor router_losses(const Routing& routing, const at::Tensor& tokens_per_expert_E) {
  const std::int64_t T = routing.logits_TE.size(0), E = routing.logits_TE.size(1);
  if (T == 0) return at::zeros({2}, routing.logits_TE.options());
  const at::Tensor& p_TE = routing.probabilities_TE;
  const at::Tensor balance =
      (p_TE.mean(0) * tokens_per_expert_E.to(p_TE.scalar_type())).sum() *
      (static_cast<double>(E) / static_cast<double>(T * routing.indices_TK.size(1)));
  const at::Tensor z = at::logsumexp(routing.logits_TE, {1}).square().mean();
  return at::stack({balance, z});
}

// Which (token, k) pairs are rows, sorted by expert, and where each expert's rows end.
struct Rows {
  at::Tensor order_R, ends_E;
};

// An expert with more rows than its capacity keeps the first of them.
Rows sort_rows(const MoEConfig& config, const at::Tensor& flat_TK, std::int64_t T,
               const at::Tensor& tokens_per_expert_E) {
  at::Tensor order = at::argsort(flat_TK, /*stable=*/true, 0);
  at::Tensor count_E = tokens_per_expert_E;
  const std::int64_t capacity = moe_capacity(config, T);
  if (capacity >= 0) {
    const at::Tensor begins_E = count_E.cumsum(0) - count_E;
    const at::Tensor place = at::arange(order.size(0), order.options()) -
                             begins_E.index_select(0, flat_TK.index_select(0, order));
    order = order.masked_select(place < capacity);
    count_E = count_E.clamp_max(capacity);
  }
  return {order, count_E.cumsum(0).to(at::kInt)};
}

}  // namespace

MoEResult moe_layer_torch(const MoEConfig& config, const at::Tensor& x_TD,
                          const at::Tensor& router_ED, const at::Tensor& w1_EFD,
                          const at::Tensor& v1_EFD, const at::Tensor& w2_EFD,
                          const at::Tensor& selection_bias_E, double jitter_eps,
                          const ExpertAdapters& adapters, bool training) {
  const std::int64_t T = x_TD.size(0), D = x_TD.size(1), E = config.num_experts, K = config.top_k;
  // The router and the combination are fp32 whatever autocast says; fp64 stays fp64.
  const NoAutocastGuard no_autocast(x_TD.device());
  const auto type = sum_type(x_TD.scalar_type());
  const at::Tensor router_x_TD =
      jitter_eps > 0 ? x_TD * at::empty_like(x_TD).uniform_(1 - jitter_eps, 1 + jitter_eps) : x_TD;
  const Routing routing = route(config, router_x_TD, router_ED, selection_bias_E, type);

  const at::Tensor flat_TK = routing.indices_TK.reshape({-1});
  const at::Tensor tokens_per_expert_E = at::bincount(flat_TK, {}, E);
  const Rows rows = sort_rows(config, flat_TK, T, tokens_per_expert_E);
  const at::Tensor rows_RD = x_TD.index_select(0, at::floor_divide(rows.order_R, K));
  const auto product = [&](const at::Tensor& in, const at::Tensor& w_EMN,
                           const ExpertAdapter& adapter) {
    const at::Tensor out = grouped_product(in, w_EMN, rows.ends_E);
    if (!adapter.a.defined()) return out;
    const double p = training ? adapters.dropout : 0;
    const at::Tensor dropped = p > 0 ? at::dropout(in, p, /*train=*/true) : in;
    const at::Tensor low = grouped_product(dropped, adapter.a.transpose(1, 2), rows.ends_E);
    return out + grouped_product(low, adapter.b.transpose(1, 2), rows.ends_E) * adapters.scale;
  };
  const at::Tensor gate_RF = product(rows_RD, w1_EFD.transpose(1, 2), adapters.w1);
  const at::Tensor up_RF =
      config.glu ? product(rows_RD, v1_EFD.transpose(1, 2), adapters.v1) : at::Tensor();
  const at::Tensor a_RF = apply_activation(config.activation, gate_RF, up_RF);
  at::Tensor y_RD = product(a_RF, w2_EFD, adapters.w2);

  const std::int64_t R = rows.order_R.size(0);
  at::Tensor row_of_TK = at::full({T * K}, R, rows.order_R.options());
  row_of_TK.scatter_(0, rows.order_R, at::arange(R, rows.order_R.options()));
  // A pair that was dropped takes a row of zeros.
  if (R < T * K) y_RD = at::cat({y_RD, at::zeros({1, D}, y_RD.options())});
  const at::Tensor y_TKD = y_RD.index_select(0, row_of_TK).view({T, K, D});
  const at::Tensor out_TD =
      (y_TKD.to(type) * routing.weights_TK.unsqueeze(-1)).sum(1).to(x_TD.scalar_type());
  return {out_TD, router_losses(routing, tokens_per_expert_E), tokens_per_expert_E.to(at::kInt)};
}

}  // namespace dropless::train
