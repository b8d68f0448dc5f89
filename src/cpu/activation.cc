// Activations over threads.
#include <algorithm>

#include "src/common/math.h"
#include "src/cpu/parallel.h"
#include "src/cpu/simd/table.h"

namespace dropless::cpu {
namespace {

constexpr std::int64_t kGrain = 16 * 1024;  // elements: some microseconds of work

template <class Body>
void for_ranges(std::int64_t size, Body&& body) {
  const std::int64_t ranges = ceil_div(size, kGrain);
#pragma omp parallel for schedule(static) if (size >= kMinParallelWork)
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
  for_token_chunks(args.tokens, args.tokens * args.top_k * args.width,
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     simd().expert_backward(args, begin, end);
                   });
}

}  // namespace dropless::cpu
