// `bench moe` on the CPU.
#pragma once

#include <nlohmann/json.hpp>

#include "apps/bench_case.h"

namespace dropless::apps {

// The two rows (forward, forward+backward) of one shape: the layer through the library, with memory
// that is there before as its contract has it, beside its rivals, dense products and a dense model.
std::vector<nlohmann::ordered_json> bench_moe_cpu(const LayerShape& shape, at::ScalarType dtype,
                                                  int rounds);

// The table of such rows.
std::string moe_cpu_table_head();
std::string moe_cpu_table_row(const nlohmann::ordered_json& row);

}  // namespace dropless::apps
