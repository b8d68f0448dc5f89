// Counts, running sums and copies over threads; what is linear in the number of bins or tiles stays
// with the plain loops.
#include <algorithm>
#include <atomic>

#include "src/common/dispatch.h"
#include "src/common/math.h"
#include "src/cpu/parallel.h"

namespace dropless::cpu {

// Integer additions commute, so that the order in which the threads add does not show.
void histogram(const HistogramArgs& args) {
  std::fill_n(args.counts_E, args.bins, 0);
  constexpr std::int64_t kBins = 512;  // counted on the stack; more bins in passes over the indices
  for (std::int64_t first = 0; first < args.bins; first += kBins) {
    const std::int64_t bins = std::min(kBins, args.bins - first);
    for_token_chunks(args.entries, args.entries,
                     [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                       std::int32_t counts[kBins] = {};
                       for (std::int64_t i = begin; i < end; ++i) {
                         const std::int64_t bin = args.indices_N[i] - first;
                         if (bin >= 0 && bin < bins) counts[bin] += 1;
                       }
                       for (std::int64_t e = 0; e < bins; ++e) {
                         std::atomic_ref(args.counts_E[first + e])
                             .fetch_add(counts[e], std::memory_order_relaxed);
                       }
                     });
  }
}

void cumsum(const CumsumArgs& args) {
  const std::int64_t row_bytes = args.entries * static_cast<std::int64_t>(dtype_bytes(args.dtype));
#pragma omp parallel for schedule(static) if (args.batch * args.entries >= kMinParallelWork)
  for (std::int64_t b = 0; b < args.batch; ++b) {
    CumsumArgs row = args;
    row.batch = 1;
    row.x_BN = static_cast<const char*>(args.x_BN) + b * row_bytes;
    row.out_BN = static_cast<char*>(args.out_BN) + b * row_bytes;
    reference::cumsum(row);
  }
}

void replicate(const ReplicateArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    const std::int64_t pairs = args.batch * args.bins;
#pragma omp parallel for schedule(dynamic, 16) if (args.batch * args.entries >= kMinParallelWork)
    for (std::int64_t i = 0; i < pairs; ++i) {
      const std::int64_t e = i % args.bins;
      S* out_N = static_cast<S*>(args.out_BN) + i / args.bins * args.entries;
      std::fill(out_N + args.offsets_E1[e], out_N + args.offsets_E1[e + 1],
                static_cast<const S*>(args.x_BE)[i]);
    }
  });
}

void replicate_backward(const ReplicateBackwardArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    const std::int64_t pairs = args.batch * args.bins;
#pragma omp parallel for schedule(dynamic, 16) if (args.batch * args.entries >= kMinParallelWork)
    for (std::int64_t i = 0; i < pairs; ++i) {
      const std::int64_t e = i % args.bins;
      const S* d_out_N = static_cast<const S*>(args.d_out_BN) + i / args.bins * args.entries;
      Accumulator<S> sum = 0;
      for (std::int64_t n = args.offsets_E1[e]; n < args.offsets_E1[e + 1]; ++n) {
        sum += to_float(d_out_N[n]);
      }
      static_cast<S*>(args.d_x_BE)[i] = from_float<S>(sum);
    }
  });
}

void assign_slots(const AssignSlotsArgs& args) {
  for_token_chunks(args.entries, args.entries,
                   [&](std::int64_t, std::int64_t begin, std::int64_t end) {
                     AssignSlotsArgs part = args;
                     part.entries = end - begin;
                     part.indices_TK += begin;
                     part.rows_TK += begin;
                     part.slots_TK += begin;
                     reference::assign_slots(part);
                   });
}

}  // namespace dropless::cpu
