// `bench moe --kernels`: the layer's time part by part, as it queues them.
#pragma once

#include <nlohmann/json.hpp>

#include "apps/bench_case.h"

namespace dropless::apps {

// One object a part, in order of first appearance: part, calls in a pass, ms of all of them (median
// over `rounds` passes), share of the pass, tflops, gb_per_s, of_roofline: the time that its
// operations take at the rate of the layer's dense products, or its bytes at the rate of a copy,
// whichever is longer, over its time. The card is kept busy before each pass, so that no part waits
// for the host.
nlohmann::ordered_json time_kernels(const LayerCase& c, bool backward, const at::Device& device,
                                    int rounds);

void print_kernels(const nlohmann::ordered_json& parts);

}  // namespace dropless::apps
