// Dispatch order, gather and combine over threads.
#include <algorithm>
#include <cstring>

#include "src/common/math.h"
#include "src/cpu/parallel.h"
#include "src/cpu/simd/table.h"

namespace dropless::cpu {

// Stable counting sort in three passes: each chunk of tokens counts its experts; a scan over
// experts, then chunks, turns the counts into each chunk's first row per expert; each chunk places
// its own tokens.
void dispatch_order(const DispatchOrderArgs& args) {
  const std::int64_t E = args.experts, K = args.top_k;
  const std::int64_t chunks = ceil_div(args.tokens, token_chunk(args.tokens));
  for_token_chunks(args.tokens, args.tokens * K,
                   [&](std::int64_t c, std::int64_t begin, std::int64_t end) {
                     std::int32_t* counts_E = args.partials + c * E;
                     std::fill_n(counts_E, E, 0);
                     for (std::int64_t i = begin * K; i < end * K; ++i)
                       counts_E[args.indices_TK[i]] += 1;
                   });
  std::int32_t row = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    args.offsets_E1[e] = row;
    for (std::int64_t c = 0; c < chunks; ++c) {
      const std::int32_t count = args.partials[c * E + e];
      args.partials[c * E + e] = row;
      row += count;
    }
  }
  args.offsets_E1[E] = row;
  for_token_chunks(args.tokens, args.tokens * K,
                   [&](std::int64_t c, std::int64_t begin, std::int64_t end) {
                     std::int32_t* next_E = args.partials + c * E;
                     for (std::int64_t i = begin * K; i < end * K; ++i) {
                       const std::int32_t to = next_E[args.indices_TK[i]]++;
                       args.rows_TK[i] = to;
                       if (args.tokens_R != nullptr)
                         args.tokens_R[to] = static_cast<std::int32_t>(i / K);
                     }
                   });
}

void invert_rows(const InvertRowsArgs& args) {
  const std::int64_t K = args.top_k;
  for_token_chunks(args.tokens, args.tokens * K,
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     for (std::int64_t i = begin * K; i < end * K; ++i) {
                       args.tokens_R[args.rows_TK[i]] = static_cast<std::int32_t>(i / K);
                     }
                   });
}

void gather(const GatherArgs& args) {
  const std::size_t row_bytes = static_cast<std::size_t>(args.width) * dtype_bytes(args.dtype);
  const std::int64_t K = args.top_k;
  for_token_chunks(args.tokens, args.tokens * K * args.width,
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     for (std::int64_t i = begin * K; i < end * K; ++i) {
                       std::memcpy(static_cast<char*>(args.x_RD) + args.rows_TK[i] * row_bytes,
                                   static_cast<const char*>(args.x_TD) + i / K * row_bytes,
                                   row_bytes);
                     }
                   });
}

void combine(const CombineArgs& args) {
  for_token_chunks(args.tokens, args.tokens * args.top_k * args.width,
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     simd().combine(args, begin, end);
                   });
}

void combine_backward(const CombineBackwardArgs& args) {
  for_token_chunks(args.tokens, args.tokens * args.top_k * args.width,
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     simd().combine_backward(args, begin, end);
                   });
}

}  // namespace dropless::cpu
