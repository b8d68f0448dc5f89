// The dropless layer as one node of libtorch's autograd graph.
#pragma once

#include <string>

#include "dropless/moe.h"
#include "train/bridge/torch.h"

namespace dropless::train {

struct MoEResult {
  at::Tensor out_TD;
  at::Tensor losses_2;             // fp32: load-balancing loss, z-loss; unweighted, differentiable
  at::Tensor tokens_per_expert_E;  // int32
};

// Why libdropless has no kernels for this layer in `dtype` on `device`; empty where it has.
std::string moe_layer_problem(const MoEConfig& config, at::ScalarType dtype, at::Device device);

// The most rows that an expert keeps of num_tokens tokens' routing; below 0: all.
std::int64_t moe_capacity(const MoEConfig& config, std::int64_t num_tokens);

// x_TD [T, D]; router_ED [E, D]; w1, v1, w2 [E, F, D], v1 undefined for MLP; one element type and
// device; selection_bias_E fp32 (fp64 for fp64 layers) where MoEConfig::selection_bias is set. Keeps x, the weights (by reference) and MoESaved from forward to backward, which on a GPU
// can run once. Formulas: dropless/moe.h.
MoEResult moe_layer(const MoEConfig& config, const at::Tensor& x_TD, const at::Tensor& router_ED,
                    const at::Tensor& w1_EFD, const at::Tensor& v1_EFD, const at::Tensor& w2_EFD,
                    const at::Tensor& selection_bias_E = {});

}  // namespace dropless::train
