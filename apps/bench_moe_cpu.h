// `bench moe` on the CPU: the layer through the library, with memory that is there before as its
// contract has it, beside its rivals, dense products and a dense model.
#pragma once

#include <string>
#include <vector>

#include "apps/bench_case.h"

namespace dropless::apps {

// No shapes: four small ones. `dtype`: bf16, fp32, or empty for both.
void run_bench_moe_cpu(std::vector<LayerShape> shapes, const std::string& dtype, int rounds,
                       bool json);

}  // namespace dropless::apps
