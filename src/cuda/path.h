// The two implementations of the matrix products in kernels.h, and which of them a GPU takes.
//
//   sm90   Hopper's own instructions (TMA, wgmma): compute capability 9.0
//   mma    mma.sync and cp.async: every GPU since compute capability 8.0
#pragma once

#include <string>

#include "dropless/error.h"
#include "src/cuda/kernels.h"

namespace dropless::cuda {

// Whether the current device takes `mma`: where it is no Hopper, and everywhere with the environment
// variable DROPLESS_CUDA_PATH=portable (to test and compare both on one card), read once. Of another
// device: kernels.h.
bool portable_path();

// What the variable's value asks for; null where it is not set.
inline bool asks_for_portable(const char* value) {
  const std::string path = value == nullptr ? "" : value;
  if (path.empty() || path == "portable") return !path.empty();
  throw Error(ErrorKind::kInvalidArgument, "DROPLESS_CUDA_PATH is '" + path + "', not 'portable'",
              "unset it to let the GPU decide", __FILE__, __LINE__);
}

// For products that have no idle warps, and for none at all.
void gather_before(const GatherBeside& job, Stream stream);

namespace sm90 {
decltype(cuda::grouped_gemm) grouped_gemm;
decltype(cuda::grouped_gemm_two_terms) grouped_gemm_two_terms;
decltype(cuda::grouped_gemm_weight_grad) grouped_gemm_weight_grad;
decltype(cuda::grouped_gemm_activation) grouped_gemm_activation;
decltype(cuda::grouped_gemm_activation_grad) grouped_gemm_activation_grad;

// Both products of router_backward in one pass over x, for at most kMostRouterExperts. split_T2P: [hi | lo] of d_logits
// in x's type, P = router_pitch(E); partials_SPD: fp32, d_router of each of `chunks` chunks of `chunk` tokens, a multiple of 64.
inline constexpr std::int64_t kMostRouterExperts = 128;
std::int64_t router_gradient_chunks(std::int64_t num_tokens, std::int64_t d_model,
                                    std::int64_t num_experts);
void router_gradients(ConstTensorView x_TD, ConstTensorView router_ED, const void* split_T2P,
                      std::int64_t chunk, std::int64_t chunks, TensorView d_x_TD,
                      float* partials_SPD, Stream stream);
}  // namespace sm90

namespace mma {
void grouped_gemm(ConstTensorView a_RK, ConstTensorView b, bool b_is_EKN, const void* row_tiles,
                  TensorView out_RN, const GemmConfig& config, Stream stream,
                  ConstTensorView bias_EN);
void grouped_gemm_two_terms(ConstTensorView a_RK, ConstTensorView b_EKN, ConstTensorView a2_RK,
                            ConstTensorView b2_EKN, const void* row_tiles, TensorView out_RN,
                            const GemmConfig& config, Stream stream);
void grouped_gemm_weight_grad(ConstTensorView a_RM, ConstTensorView b_RN,
                              const std::int64_t* offsets_E1, TensorView out_EMN, bool accumulate,
                              const GemmConfig& config, Stream stream);
decltype(cuda::grouped_gemm_activation) grouped_gemm_activation;
decltype(cuda::grouped_gemm_activation_grad) grouped_gemm_activation_grad;
}  // namespace mma

}  // namespace dropless::cuda
