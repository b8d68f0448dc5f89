// The layer as others run it, out of libtorch's operators: `bench moe` times these beside ours, on a GPU and, with --routing,
// on the CPU. (The CPU's own table has rivals of its own: bench_rivals.h.)
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/bench_case.h"

namespace dropless::apps {

enum class RivalProducts {
  kGrouped,  // at::_grouped_mm, of bf16 and d, f in multiples of 8; otherwise as kLoop
  kLoop,     // a product an expert, its rows counted on the host, as MegaBlocks' grouped path does
  kPadded,   // batched, every expert padded to the rows of the fullest, which the host waits for
};

// SwiGLU, softmax scores, plain top-k; no losses. Of `config` num_experts and top_k count. x and the weights are of one type,
// to which the scores are rounded as well. Differentiable once.
at::Tensor rival_layer(RivalProducts products, const MoEConfig& config, const at::Tensor& x_TD,
                       const at::Tensor& router_ED, const at::Tensor& w1_EFD,
                       const at::Tensor& v1_EFD, const at::Tensor& w2_EFD);

struct NamedLayer {
  std::string name;
  LayerFunction layer;
};

// torch, loop and padded.
const std::vector<NamedLayer>& libtorch_rivals();

// How far rivals are from our layer: ||rival - own|| / ||own||, the largest.
struct Agreement {
  std::optional<double> output;      // absent: none had the memory
  std::optional<double> gradients;   // of x, router (from 64 tokens on), w1, v1, w2
  std::vector<std::string> unknown;  // those that had not
};

// Throws Error(kInternal) where a rival is not our layer: one token in twenty, or its gradient, off by more than rounding (1e-3
// in fp32, 0.02 of 16 bits), or the output or a gradient by more than a few tokens make that go elsewhere because their last two
// choices round to the same logit (0.05, 0.3).
Agreement compare_with_rivals(const LayerCase& c,
                              const std::vector<NamedLayer>& rivals = libtorch_rivals());

}  // namespace dropless::apps
