// The matrix products' entries: each goes to the implementation that the current device takes.
#include "src/cuda/path.h"

namespace dropless::cuda {

void gather_before(const GatherBeside& job, Stream stream) {
  if (job) gather(job.x_TD, job.rows_TK, job.top_k, job.x_RD, stream);
}

void grouped_gemm(ConstTensorView a_RK, ConstTensorView b, bool b_is_EKN, const void* row_tiles,
                  TensorView out_RN, const GemmConfig& config, Stream stream,
                  ConstTensorView bias_EN, const GatherBeside& beside) {
  if (!portable_path()) {
    sm90::grouped_gemm(a_RK, b, b_is_EKN, row_tiles, out_RN, config, stream, bias_EN, beside);
    return;
  }
  gather_before(beside, stream);
  mma::grouped_gemm(a_RK, b, b_is_EKN, row_tiles, out_RN, config, stream, bias_EN);
}

void grouped_gemm_two_terms(ConstTensorView a_RK, ConstTensorView b_EKN, ConstTensorView a2_RK,
                            ConstTensorView b2_EKN, const void* row_tiles, TensorView out_RN,
                            const GemmConfig& config, Stream stream, const GatherBeside& beside) {
  if (!portable_path()) {
    sm90::grouped_gemm_two_terms(a_RK, b_EKN, a2_RK, b2_EKN, row_tiles, out_RN, config, stream,
                                 beside);
    return;
  }
  gather_before(beside, stream);
  mma::grouped_gemm_two_terms(a_RK, b_EKN, a2_RK, b2_EKN, row_tiles, out_RN, config, stream);
}

void grouped_gemm_weight_grad(ConstTensorView a_RM, ConstTensorView b_RN,
                              const std::int64_t* offsets_E1, TensorView out_EMN, bool accumulate,
                              const GemmConfig& config, Stream stream, const GatherBeside& beside) {
  if (!portable_path()) {
    sm90::grouped_gemm_weight_grad(a_RM, b_RN, offsets_E1, out_EMN, accumulate, config, stream,
                                   beside);
    return;
  }
  gather_before(beside, stream);
  mma::grouped_gemm_weight_grad(a_RM, b_RN, offsets_E1, out_EMN, accumulate, config, stream);
}

void grouped_gemm_activation(Activation activation, ConstTensorView x, const std::int32_t* list_R,
                             ConstTensorView w1_EFD, ConstTensorView v1_EFD, const void* row_tiles,
                             TensorView gate_RF, TensorView up_RF, TensorView act_RF, Stream stream,
                             ConstTensorView b1_EF, ConstTensorView bv1_EF) {
  const auto product =
      portable_path() ? mma::grouped_gemm_activation : sm90::grouped_gemm_activation;
  product(activation, x, list_R, w1_EFD, v1_EFD, row_tiles, gate_RF, up_RF, act_RF, stream, b1_EF,
          bv1_EF);
}

void grouped_gemm_activation_grad(Activation activation, ConstTensorView d_out_TD,
                                  const std::int32_t* tokens_R, ConstTensorView w2_EFD,
                                  const float* scores_R, const void* row_tiles, TensorView gate_RF,
                                  TensorView up_RF, TensorView act_RF, float* d_scores_NR,
                                  Stream stream) {
  const auto product =
      portable_path() ? mma::grouped_gemm_activation_grad : sm90::grouped_gemm_activation_grad;
  product(activation, d_out_TD, tokens_R, w2_EFD, scores_R, row_tiles, gate_RF, up_RF, act_RF,
          d_scores_NR, stream);
}

}  // namespace dropless::cuda
