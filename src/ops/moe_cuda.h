// The layer on a GPU, composed of the kernels in src/cuda. Arguments are checked by the caller
// (moe.cc).
#pragma once

#include <cstddef>
#include <string>

#include "dropless/moe.h"

namespace dropless {

// Why the GPU's kernels cannot run this layer; empty where they can.
std::string moe_cuda_problem(const MoEConfig& config, DType dtype, Device device);

std::size_t moe_cuda_forward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens,
                                             DType dtype, Device device);
std::size_t moe_cuda_backward_workspace_bytes(const MoEConfig& config, std::int64_t num_tokens);

void moe_cuda_forward(const MoEConfig& config, const ConstTensorView& x_TD,
                      const MoEWeights& weights, const TensorView& out_TD,
                      const TensorView& losses_2, const TensorView& tokens_per_expert_E,
                      const MoESaved& saved, void* workspace, Stream stream);
void moe_cuda_backward(const MoEConfig& config, const ConstTensorView& x_TD,
                       const MoEWeights& weights, const MoESaved& saved,
                       const ConstTensorView& d_out_TD, const ConstTensorView& d_losses_2,
                       const MoEGradients& grads, void* workspace, Stream stream);

}  // namespace dropless
