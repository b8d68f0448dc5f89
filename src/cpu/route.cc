// Router over threads. Tokens are cut into chunks that depend on T only; each chunk sums its
// softmax rows and counts apart, and the chunks are then added in order.
#include <algorithm>
#include <cstring>

#include "src/common/dispatch.h"
#include "src/common/math.h"
#include "src/common/philox.h"
#include "src/cpu/parallel.h"
#include "src/cpu/simd/table.h"

namespace dropless::cpu {
namespace {

template <class A>
void forward(const RouteForwardArgs& args) {
  const std::int64_t E = args.experts, chunks = ceil_div(args.tokens, token_chunk(args.tokens));
  const std::size_t chunk_bytes = route_chunk_bytes(E, sizeof(A));
  const auto memory = [&](std::int64_t c) {
    return static_cast<char*>(args.partials) + static_cast<std::size_t>(c) * chunk_bytes;
  };
  const auto sums_of = [&](std::int64_t c) { return reinterpret_cast<A*>(memory(c)); };
  const auto counts_of = [&](std::int64_t c) {
    return reinterpret_cast<std::int32_t*>(sums_of(c) + 4 * E + 1);
  };
  const SimdTable& loops = simd();
  for_token_chunks(args.tokens, args.tokens * E,
                   [&](std::int64_t c, std::int64_t begin, std::int64_t end) {
                     std::memset(memory(c), 0, chunk_bytes);
                     A* sums = sums_of(c);
                     std::int32_t* counts = counts_of(c);
                     loops.route_forward(args, begin, end,
                                         {.sums_E1 = sums,
                                          .scores_E = sums + E + 1,
                                          .choice_E = sums + 2 * E + 1,
                                          .values_E = sums + 3 * E + 1,
                                          .counts_E = counts,
                                          .order_E = counts + E,
                                          .marks_E = counts + 2 * E});
                   });

  std::fill_n(args.tokens_per_expert_E, E, 0);
  for (std::int64_t c = 0; c < chunks; ++c) {
    for (std::int64_t e = 0; e < E; ++e) args.tokens_per_expert_E[e] += counts_of(c)[e];
  }
  if (args.losses_2 == nullptr) return;
  A balance = 0, lse2 = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    A sum = 0;
    for (std::int64_t c = 0; c < chunks; ++c) sum += sums_of(c)[e];
    balance += static_cast<A>(args.tokens_per_expert_E[e]) * sum;
  }
  for (std::int64_t c = 0; c < chunks; ++c) lse2 += sums_of(c)[E];
  const A tokens = static_cast<A>(std::max<std::int64_t>(args.tokens, 1));
  A* losses_2 = static_cast<A*>(args.losses_2);
  losses_2[0] = balance / tokens * static_cast<A>(E) / (tokens * static_cast<A>(args.top_k));
  losses_2[1] = lse2 / tokens;
}

// Four elements share one position of the generator.
template <class S>
void jitter(const RouteJitterArgs& args) {
  using A = Accumulator<S>;
  const S* x = static_cast<const S*>(args.x);
  S* out = static_cast<S*>(args.out);
  for_token_chunks(
      ceil_div(args.size, 4), args.size, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
        for (std::int64_t position = begin; position < end; ++position) {
          const auto words = philox(static_cast<std::uint64_t>(position), args.stream, args.seed);
          const std::int64_t last = std::min(4 * position + 4, args.size);
          for (std::int64_t i = 4 * position; i < last; ++i) {
            const double noise = symmetric_unit(words[i % 4]);
            const A factor = static_cast<A>(1 + args.epsilon * noise);
            out[i] = from_float<S>(to_float(x[i]) * factor);
          }
        }
      });
}

}  // namespace

void route_forward(const RouteForwardArgs& args) {
  args.dtype == DType::kFloat64 ? forward<double>(args) : forward<float>(args);
}

void route_backward(const RouteBackwardArgs& args) {
  const SimdTable& loops = simd();
  for_token_chunks(args.tokens, args.tokens * args.experts,
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     loops.route_backward(args, begin, end);
                   });
}

void route_jitter(const RouteJitterArgs& args) {
  visit_floating(args.dtype, [&](auto zero) { jitter<decltype(zero)>(args); });
}

}  // namespace dropless::cpu
