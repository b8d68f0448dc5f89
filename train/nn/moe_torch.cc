#include "train/nn/moe_torch.h"

#include <vector>

#include "dropless/error.h"
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

at::Tensor router_losses(const at::Tensor& logits_TE, const at::Tensor& scores_TE,
                         const at::Tensor& tokens_per_expert_E, std::int64_t top_k) {
  const std::int64_t T = logits_TE.size(0), E = logits_TE.size(1);
  if (T == 0) return at::zeros({2}, logits_TE.options());
  const at::Tensor balance =
      (scores_TE.mean(0) * tokens_per_expert_E.to(scores_TE.scalar_type())).sum() *
      (static_cast<double>(E) / static_cast<double>(T * top_k));
  const at::Tensor z = at::logsumexp(logits_TE, {1}).square().mean();
  return at::stack({balance, z});
}

}  // namespace

std::string moe_torch_problem(const MoEConfig& config) {
  if (config.route != RouteConfig{.normalize_p = config.route.normalize_p} ||
      config.selection_bias) {
    return "libtorch's layer routes by softmax scores and plain top-k only";
  }
  if (config.expert_bias || config.capacity_factor != 0 || config.shared_d_ffn != 0) {
    return "libtorch's layer has no expert bias, capacity factor or shared expert";
  }
  return "";
}

MoEResult moe_layer_torch(const MoEConfig& config, const at::Tensor& x_TD,
                          const at::Tensor& router_ED, const at::Tensor& w1_EFD,
                          const at::Tensor& v1_EFD, const at::Tensor& w2_EFD) {
  if (const std::string problem = moe_torch_problem(config); !problem.empty()) {
    throw Error(ErrorKind::kUnsupported, problem,
                "run the layer on the CPU, where libdropless has every option");
  }
  const std::int64_t T = x_TD.size(0), E = config.num_experts, K = config.top_k;
  // The router and the combination are fp32 whatever autocast says; fp64 stays fp64.
  const NoAutocastGuard no_autocast(x_TD.device());
  const auto router_type = x_TD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor logits_TE = at::linear(x_TD.to(router_type), router_ED.to(router_type));
  const at::Tensor scores_TE = at::softmax(logits_TE, -1);
  // A stable sort keeps the lowest expert first among equal scores; topk promises no order.
  const at::Tensor indices_TK =
      std::get<1>(at::sort(scores_TE.detach(), /*stable=*/true, -1, /*descending=*/true))
          .narrow(1, 0, K);
  at::Tensor weights_TK = scores_TE.gather(1, indices_TK);
  if (config.route.normalize_p > 0) {
    weights_TK =
        weights_TK / at::norm(weights_TK, config.route.normalize_p, {-1}, /*keepdim=*/true);
  }

  const at::Tensor flat_R = indices_TK.reshape({-1});
  const at::Tensor order_R = at::argsort(flat_R, /*stable=*/true, 0);
  const at::Tensor tokens_per_expert_E = at::bincount(flat_R, {}, E);
  const at::Tensor ends_E = tokens_per_expert_E.cumsum(0).to(at::kInt);
  const at::Tensor rows_RD = x_TD.index_select(0, at::floor_divide(order_R, K));
  const at::Tensor gate_RF = grouped_product(rows_RD, w1_EFD.transpose(1, 2), ends_E);
  const at::Tensor up_RF =
      config.glu ? grouped_product(rows_RD, v1_EFD.transpose(1, 2), ends_E) : at::Tensor();
  const at::Tensor a_RF = apply_activation(config.activation, gate_RF, up_RF);
  const at::Tensor y_RD = grouped_product(a_RF, w2_EFD, ends_E);

  at::Tensor row_of_R = at::empty_like(order_R);
  row_of_R.scatter_(0, order_R, at::arange(T * K, order_R.options()));
  const at::Tensor y_TKD = y_RD.index_select(0, row_of_R).view({T, K, x_TD.size(1)});
  at::Tensor out_TD =
      (y_TKD.to(router_type) * weights_TK.unsqueeze(-1)).sum(1).to(x_TD.scalar_type());
  at::Tensor losses_2 = router_losses(logits_TE, scores_TE, tokens_per_expert_E, K);
  return {out_TD, losses_2, tokens_per_expert_E.to(at::kInt)};
}

}  // namespace dropless::train
