// Activations over threads.
#include <algorithm>

#include "src/common/math.h"
#include "src/cpu/simd/table.h"

namespace dropless::cpu {
namespace {

constexpr std::int64_t kGrain = 16 * 1024;  // elements: some microseconds of work

template <class Body>
void for_ranges(std::int64_t size, Body&& body) {
  const std::int64_t ranges = ceil_div(size, kGrain);
#pragma omp parallel for schedule(static) if (ranges > 1)
  for (std::int64_t i = 0; i < ranges; ++i) body(i * kGrain, std::min((i + 1) * kGrain, size));
}

}  // namespace

void activation_forward(const ActivationForwardArgs& args) {
  for_ranges(args.size, [&](std::int64_t begin, std::int64_t end) {
    simd().activation_forward(args, begin, end);
  });
}

void activation_backward(const ActivationBackwardArgs& args) {
  for_ranges(args.size, [&](std::int64_t begin, std::int64_t end) {
    simd().activation_backward(args, begin, end);
  });
}

void expert_backward(const ExpertBackwardArgs& args) {
  const std::int64_t chunk = token_chunk(args.tokens), chunks = ceil_div(args.tokens, chunk);
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (std::int64_t c = 0; c < chunks; ++c) {
    simd().expert_backward(args, c * chunk, std::min((c + 1) * chunk, args.tokens));
  }
}

}  // namespace dropless::cpu
