// Activation checkpointing: a part of the model whose activations are not kept for backward but
// computed again there (Chen et al. 2016, arXiv:1604.06174).
#pragma once

#include <functional>
#include <vector>

#include "train/bridge/torch.h"

namespace dropless::train {

// What depends on x and on leaf tensors that it captures; called once in forward, without a graph,
// and once in backward, with one. Both calls must compute the same: random numbers come from a seed
// that it sets itself.
using Recomputed = std::function<std::vector<at::Tensor>(const at::Tensor& x)>;

// body(x), with its gradients for x and, added to their .grad(), for the leaf tensors. Autocast is in
// backward what it is now.
std::vector<at::Tensor> recompute_in_backward(const Recomputed& body, const at::Tensor& x);

}  // namespace dropless::train
