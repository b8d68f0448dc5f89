// Dispatch order, gather and combine over threads.
#include <algorithm>
#include <cstring>

#include "src/common/math.h"
#include "src/cpu/parallel.h"
#include "src/cpu/simd/table.h"

namespace dropless::cpu {
namespace {

void fill_zero(void* to, std::int64_t rows, std::size_t row_bytes) {
  for_token_chunks(rows, rows * static_cast<std::int64_t>(row_bytes),
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     std::memset(static_cast<char*>(to) + begin * row_bytes, 0,
                                 (end - begin) * row_bytes);
                   });
}

}  // namespace

// Stable counting sort in three passes: each chunk of tokens counts its experts; a scan over
// experts, then chunks, turns the counts into each chunk's first place among each expert's rows;
// each chunk places its own tokens.
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
  args.offsets_E1[0] = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    std::int32_t place = 0;
    for (std::int64_t c = 0; c < chunks; ++c) {
      const std::int32_t count = args.partials[c * E + e];
      args.partials[c * E + e] = place;
      place += count;
    }
    const std::int64_t kept =
        args.capacity < 0 ? place : std::min<std::int64_t>(place, args.capacity);
    args.offsets_E1[e + 1] = args.offsets_E1[e] + kept;
  }
  for_token_chunks(args.tokens, args.tokens * K,
                   [&](std::int64_t c, std::int64_t begin, std::int64_t end) {
                     std::int32_t* next_E = args.partials + c * E;
                     for (std::int64_t i = begin * K; i < end * K; ++i) {
                       const std::int64_t e = args.indices_TK[i];
                       const std::int64_t to = args.offsets_E1[e] + next_E[e]++;
                       const bool kept = to < args.offsets_E1[e + 1];
                       args.rows_TK[i] = kept ? static_cast<std::int32_t>(to) : -1;
                       if (kept && args.tokens_R != nullptr)
                         args.tokens_R[to] = static_cast<std::int32_t>(i / K);
                     }
                   });
}

void invert_rows(const InvertRowsArgs& args) {
  const std::int64_t K = args.top_k;
  for_token_chunks(args.tokens, args.tokens * K,
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     for (std::int64_t i = begin * K; i < end * K; ++i) {
                       if (args.rows_TK[i] < 0) continue;
                       args.tokens_R[args.rows_TK[i]] = static_cast<std::int32_t>(i / K);
                     }
                   });
}

void gather(const GatherArgs& args) {
  const std::size_t row_bytes = static_cast<std::size_t>(args.width) * dtype_bytes(args.dtype);
  fill_zero(args.x_RD, args.zero_rows, row_bytes);
  const std::int64_t K = args.top_k;
  for_token_chunks(args.tokens, args.tokens * K * args.width,
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     for (std::int64_t i = begin * K; i < end * K; ++i) {
                       if (args.rows_TK[i] < 0) continue;
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
  fill_zero(args.d_y_RD, args.zero_rows,
            static_cast<std::size_t>(args.width) * dtype_bytes(args.dtype));
  for_token_chunks(args.tokens, args.tokens * args.top_k * args.width,
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     simd().combine_backward(args, begin, end);
                   });
}

}  // namespace dropless::cpu
