// Counts, running sums, padding and tiles, plain loops. The contract is include/dropless/index.h.
#include <algorithm>

#include "src/common/dispatch.h"
#include "src/common/math.h"
#include "src/cpu/kernels.h"

namespace dropless::cpu::reference {
namespace {

template <class Integer>
void running_sums(const CumsumArgs& args) {
  for (std::int64_t b = 0; b < args.batch; ++b) {
    const Integer* x_N = static_cast<const Integer*>(args.x_BN) + b * args.entries;
    Integer* out_N = static_cast<Integer*>(args.out_BN) + b * args.entries;
    Integer sum = 0;
    for (std::int64_t i = 0; i < args.entries; ++i) {
      const Integer before = sum;
      sum += x_N[i];
      out_N[i] = args.inclusive ? sum : before;
    }
  }
}

}  // namespace

void histogram(const HistogramArgs& args) {
  std::fill_n(args.counts_E, args.bins, 0);
  for (std::int64_t i = 0; i < args.entries; ++i) args.counts_E[args.indices_N[i]] += 1;
}

void cumsum(const CumsumArgs& args) {
  args.dtype == DType::kInt64 ? running_sums<std::int64_t>(args) : running_sums<std::int32_t>(args);
}

void padded_offsets(const PaddedOffsetsArgs& args) {
  args.padded_E1[0] = 0;
  for (std::int64_t e = 0; e < args.bins; ++e) {
    const std::int64_t size = args.offsets_E1[e + 1] - args.offsets_E1[e];
    args.padded_E1[e + 1] = args.padded_E1[e] + round_up(size, args.block_size);
  }
}

void tile_table(const TileTableArgs& args) {
  std::int32_t* tile = args.tiles_N3;
  for (std::int64_t e = 0; e < args.bins; ++e) {
    const std::int64_t end = args.offsets_E1[e + 1];
    for (std::int64_t row = args.offsets_E1[e]; row < end; row += args.tile_rows, tile += 3) {
      tile[0] = static_cast<std::int32_t>(e);
      tile[1] = static_cast<std::int32_t>(row);
      tile[2] = static_cast<std::int32_t>(std::min(args.tile_rows, end - row));
    }
  }
}

void replicate(const ReplicateArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    for (std::int64_t b = 0; b < args.batch; ++b) {
      for (std::int64_t e = 0; e < args.bins; ++e) {
        const S value = static_cast<const S*>(args.x_BE)[b * args.bins + e];
        for (std::int64_t i = args.offsets_E1[e]; i < args.offsets_E1[e + 1]; ++i) {
          static_cast<S*>(args.out_BN)[b * args.entries + i] = value;
        }
      }
    }
  });
}

void replicate_backward(const ReplicateBackwardArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    for (std::int64_t b = 0; b < args.batch; ++b) {
      for (std::int64_t e = 0; e < args.bins; ++e) {
        Accumulator<S> sum = 0;
        for (std::int64_t i = args.offsets_E1[e]; i < args.offsets_E1[e + 1]; ++i) {
          sum += to_float(static_cast<const S*>(args.d_out_BN)[b * args.entries + i]);
        }
        static_cast<S*>(args.d_x_BE)[b * args.bins + e] = from_float<S>(sum);
      }
    }
  });
}

// Row r of expert e is the (r - offsets[e])-th of e's slots; where e has no more slots, it is
// dropped: the first rows, which are the earliest tokens, keep theirs.
void assign_slots(const AssignSlotsArgs& args) {
  for (std::int64_t i = 0; i < args.entries; ++i) {
    const std::int64_t e = args.indices_TK[i], row = args.rows_TK[i];
    const std::int64_t first = args.slot_offsets_E1 ? args.slot_offsets_E1[e] : e * args.capacity;
    const std::int64_t size =
        args.slot_offsets_E1 ? args.slot_offsets_E1[e + 1] - first : args.capacity;
    const std::int64_t position = row - args.offsets_E1[e];
    args.slots_TK[i] =
        row >= 0 && position < size ? static_cast<std::int32_t>(first + position) : -1;
  }
}

}  // namespace dropless::cpu::reference
