// Router over threads. Tokens are cut into chunks that depend on T only; each chunk sums its
// softmax rows and counts apart, and the chunks are then added in order.
#include <algorithm>
#include <cstring>

#include "src/common/math.h"
#include "src/cpu/parallel.h"
#include "src/cpu/simd/table.h"

namespace dropless::cpu {
namespace {

// Of one chunk: [sums E + 1 | scratch E] accumulators, then [counts E].
struct Partials {
  char* base;
  std::int64_t experts;
  std::size_t sum_bytes;

  char* chunk(std::int64_t c) const {
    return base + static_cast<std::size_t>(c) * (route_chunk_bytes(experts, sum_bytes));
  }
  template <class A>
  A* sums(std::int64_t c) const {
    return reinterpret_cast<A*>(chunk(c));
  }
  void* scratch(std::int64_t c) const { return chunk(c) + (experts + 1) * sum_bytes; }
  std::int32_t* counts(std::int64_t c) const {
    return reinterpret_cast<std::int32_t*>(chunk(c) + (2 * experts + 1) * sum_bytes);
  }
};

template <class A>
void add_chunks(const RouteForwardArgs& args, const Partials& partials, std::int64_t chunks) {
  const std::int64_t E = args.experts;
  std::fill_n(args.tokens_per_expert_E, E, 0);
  for (std::int64_t c = 0; c < chunks; ++c) {
    for (std::int64_t e = 0; e < E; ++e) args.tokens_per_expert_E[e] += partials.counts(c)[e];
  }
  if (args.losses_2 == nullptr) return;
  A balance = 0, lse2 = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    A sum = 0;
    for (std::int64_t c = 0; c < chunks; ++c) sum += partials.sums<A>(c)[e];
    balance += static_cast<A>(args.tokens_per_expert_E[e]) * sum;
  }
  for (std::int64_t c = 0; c < chunks; ++c) lse2 += partials.sums<A>(c)[E];
  const A tokens = static_cast<A>(std::max<std::int64_t>(args.tokens, 1));
  A* losses_2 = static_cast<A*>(args.losses_2);
  losses_2[0] = balance / tokens * static_cast<A>(E) / (tokens * static_cast<A>(args.top_k));
  losses_2[1] = lse2 / tokens;
}

}  // namespace

void route_forward(const RouteForwardArgs& args) {
  const std::size_t sum_bytes = dtype_bytes(args.dtype);
  const Partials partials{static_cast<char*>(args.partials), args.experts, sum_bytes};
  const SimdTable& loops = simd();
  for_token_chunks(args.tokens, args.tokens * args.experts,
                   [&](std::int64_t c, std::int64_t begin, std::int64_t end) {
                     std::memset(partials.chunk(c), 0, route_chunk_bytes(args.experts, sum_bytes));
                     loops.route_forward(args, begin, end, partials.sums<char>(c),
                                         partials.scratch(c), partials.counts(c));
                   });
  const std::int64_t chunks = ceil_div(args.tokens, token_chunk(args.tokens));
  args.dtype == DType::kFloat64 ? add_chunks<double>(args, partials, chunks)
                                : add_chunks<float>(args, partials, chunks);
}

void route_backward(const RouteBackwardArgs& args) {
  const SimdTable& loops = simd();
  for_token_chunks(args.tokens, args.tokens * args.experts,
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     loops.route_backward(args, begin, end);
                   });
}

}  // namespace dropless::cpu
