// `bench moe --decode`: the layer's forward for few tokens, where the weights' bytes are the time.
#pragma once

#include <string>
#include <vector>

#include "apps/bench_case.h"

namespace dropless::apps {

// No shapes: OLMoE's and Mixtral's layers, 1 to 256 tokens.
void run_bench_moe_decode(std::vector<LayerShape> shapes, const at::Device& device,
                          const std::string& dtype, int rounds, bool json);

}  // namespace dropless::apps
