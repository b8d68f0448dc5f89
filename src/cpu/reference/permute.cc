// Dispatch order, gather and combine, plain loops. The contract is include/dropless/permute.h.
#include <algorithm>

#include "src/common/dispatch.h"
#include "src/cpu/kernels.h"

namespace dropless::cpu::reference {

// Counting sort: count, exclusive prefix sum, then place in token order, which makes it stable.
void dispatch_order(const DispatchOrderArgs& args) {
  const std::int64_t T = args.tokens, E = args.experts, K = args.top_k;
  std::int32_t* next_E = args.partials;  // next free row of each expert
  std::fill_n(args.offsets_E1, E + 1, 0);
  for (std::int64_t i = 0; i < T * K; ++i) args.offsets_E1[args.indices_TK[i] + 1] += 1;
  for (std::int64_t e = 0; e < E; ++e) {
    const std::int64_t count = args.offsets_E1[e + 1];
    const std::int64_t kept = args.capacity < 0 ? count : std::min(count, args.capacity);
    args.offsets_E1[e + 1] = args.offsets_E1[e] + kept;
    next_E[e] = static_cast<std::int32_t>(args.offsets_E1[e]);
  }
  for (std::int64_t i = 0; i < T * K; ++i) {
    const std::int64_t e = args.indices_TK[i];
    const std::int32_t row = next_E[e] < args.offsets_E1[e + 1] ? next_E[e]++ : -1;
    args.rows_TK[i] = row;
    if (row >= 0 && args.tokens_R != nullptr) args.tokens_R[row] = static_cast<std::int32_t>(i / K);
  }
}

void invert_rows(const InvertRowsArgs& args) {
  for (std::int64_t i = 0; i < args.tokens * args.top_k; ++i) {
    if (args.rows_TK[i] < 0) continue;
    args.tokens_R[args.rows_TK[i]] = static_cast<std::int32_t>(i / args.top_k);
  }
}

void gather(const GatherArgs& args) {
  const std::size_t row_bytes = static_cast<std::size_t>(args.width) * dtype_bytes(args.dtype);
  std::fill_n(static_cast<char*>(args.x_RD), args.zero_rows * row_bytes, 0);
  for (std::int64_t i = 0; i < args.tokens * args.top_k; ++i) {
    if (args.rows_TK[i] < 0) continue;
    const char* from = static_cast<const char*>(args.x_TD) + i / args.top_k * row_bytes;
    std::copy_n(from, row_bytes, static_cast<char*>(args.x_RD) + args.rows_TK[i] * row_bytes);
  }
}

void combine(const CombineArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Accumulator<S>;
    const std::int64_t K = args.top_k, D = args.width;
    for (std::int64_t t = 0; t < args.tokens; ++t) {
      for (std::int64_t d = 0; d < D; ++d) {
        A sum = 0;
        for (std::int64_t k = 0; k < K; ++k) {
          if (args.rows_TK[t * K + k] < 0) continue;
          const A y = to_float(static_cast<const S*>(args.y_RD)[args.rows_TK[t * K + k] * D + d]);
          sum += args.weights_TK == nullptr ? y
                                            : static_cast<const A*>(args.weights_TK)[t * K + k] * y;
        }
        if (args.base_TD != nullptr)
          sum += static_cast<A>(args.base_scale) * static_cast<const A*>(args.base_TD)[t * D + d];
        static_cast<S*>(args.out_TD)[t * D + d] = from_float<S>(sum);
      }
    }
  });
}

void combine_backward(const CombineBackwardArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Accumulator<S>;
    const std::int64_t K = args.top_k, D = args.width;
    std::fill_n(static_cast<S*>(args.d_y_RD), args.zero_rows * D, S{});
    for (std::int64_t i = 0; i < args.tokens * K; ++i) {
      if (args.rows_TK[i] < 0) {
        static_cast<A*>(args.d_weights_TK)[i] = 0;
        continue;
      }
      const A weight = static_cast<const A*>(args.weights_TK)[i];
      const S* d_out_D = static_cast<const S*>(args.d_out_TD) + i / K * D;
      const S* y_D = static_cast<const S*>(args.y_RD) + args.rows_TK[i] * D;
      S* d_y_D = static_cast<S*>(args.d_y_RD) + args.rows_TK[i] * D;
      A dot = 0;
      for (std::int64_t d = 0; d < D; ++d) {
        dot += to_float(y_D[d]) * to_float(d_out_D[d]);
        d_y_D[d] = from_float<S>(weight * to_float(d_out_D[d]));
      }
      static_cast<A*>(args.d_weights_TK)[i] = dot;
    }
  });
}

}  // namespace dropless::cpu::reference
