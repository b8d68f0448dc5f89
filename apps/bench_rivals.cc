// The contract is bench_rivals.h.
#include "apps/bench_rivals.h"

namespace dropless::apps {
namespace {

// Rows sorted by expert.
struct Routing {
  at::Tensor weights_TK, order_R, tokens_R, ends_E;
  std::vector<std::int64_t> sizes_E;  // of the loop, which needs them on the host
};

Routing route(const RivalInputs& in, std::int64_t top_k) {
  const at::Tensor logits_TE = at::linear(in.x_TD, in.router_ED).to(at::kFloat);
  const auto [weights_TK, indices_TK] = at::topk(at::softmax(logits_TE, -1), top_k, -1);
  const at::Tensor flat_R = indices_TK.reshape({-1});
  Routing routing{weights_TK, at::argsort(flat_R, /*stable=*/true, 0), {}, {}, {}};
  routing.tokens_R = at::floor_divide(routing.order_R, top_k);
  const at::Tensor counts_E = at::bincount(flat_R, {}, in.router_ED.size(0));
  routing.ends_E = counts_E.cumsum(0).to(at::kInt);
  const auto* counts = counts_E.const_data_ptr<std::int64_t>();
  routing.sizes_E.assign(counts, counts + counts_E.numel());
  return routing;
}

// rows_RM w_e for each expert's rows; w_EMN.
at::Tensor product(ExpertProducts kind, const at::Tensor& rows_RM, const at::Tensor& w_EMN,
                   const Routing& routing) {
  if (kind == ExpertProducts::kGroupedMm) return at::_grouped_mm(rows_RM, w_EMN, routing.ends_E);
  std::vector<at::Tensor> parts;
  const std::vector<at::Tensor> rows = rows_RM.split_with_sizes(routing.sizes_E);
  const std::vector<at::Tensor> weights = w_EMN.unbind(0);
  for (std::size_t e = 0; e < rows.size(); ++e) parts.push_back(at::mm(rows[e], weights[e]));
  return at::cat(parts, 0);
}

at::Tensor combine(Combination kind, const at::Tensor& y_RD, const Routing& routing,
                   const at::Tensor& x_TD) {
  const std::int64_t T = x_TD.size(0), D = x_TD.size(1), K = routing.weights_TK.size(1);
  if (kind == Combination::kIndexAdd) {
    const at::Tensor weights_R = routing.weights_TK.reshape({-1}).index_select(0, routing.order_R);
    return at::zeros_like(x_TD).index_add(0, routing.tokens_R,
                                          y_RD * weights_R.to(y_RD.scalar_type()).unsqueeze(1));
  }
  at::Tensor row_of_R = at::empty_like(routing.order_R);
  row_of_R.scatter_(0, routing.order_R, at::arange(T * K, routing.order_R.options()));
  const at::Tensor y_TKD = y_RD.index_select(0, row_of_R).view({T, K, D});
  const at::Tensor weights_TK = routing.weights_TK.to(x_TD.scalar_type());
  if (kind == Combination::kUnpermute) return (y_TKD * weights_TK.unsqueeze(-1)).sum(1);
  return at::bmm(weights_TK.unsqueeze(1), y_TKD).squeeze(1);
}

}  // namespace

std::vector<RivalLayer> rival_layers() {
  std::vector<RivalLayer> layers;
  for (const ExpertProducts products : {ExpertProducts::kGroupedMm, ExpertProducts::kLoop}) {
    const std::string name = products == ExpertProducts::kLoop ? "loop" : "grouped_mm";
    layers.push_back({name + ", index_add", products, Combination::kIndexAdd});
    layers.push_back({name + ", unpermute", products, Combination::kUnpermute});
    layers.push_back({name + ", merged", products, Combination::kMergedBmm});
  }
  return layers;
}

at::Tensor rival_forward(const RivalLayer& layer, const RivalInputs& in, std::int64_t top_k) {
  const Routing routing = route(in, top_k);
  const at::Tensor rows_RD = in.x_TD.index_select(0, routing.tokens_R);
  const auto up = [&](const at::Tensor& w_EFD) {
    return product(layer.products, rows_RD, w_EFD.transpose(1, 2), routing);
  };
  at::Tensor a_RF;
  if (layer.combination == Combination::kMergedBmm) {
    const std::vector<at::Tensor> halves = up(in.w13_E2FD).chunk(2, -1);
    a_RF = at::silu(halves[0]) * halves[1];
  } else {
    a_RF = at::silu(up(in.w1_EFD)) * up(in.v1_EFD);
  }
  return combine(layer.combination, product(layer.products, a_RF, in.w2_EFD, routing), routing,
                 in.x_TD);
}

}  // namespace dropless::apps
