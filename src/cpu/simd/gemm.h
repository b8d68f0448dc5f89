// One block of a matrix product: pack both operands (gemm_pack.h), then run tiles over them
// (gemm_tile.h, amx.h); with few rows of A neither (few_rows.h).
//
// After Goto and van de Geijn (ACM TOMS 34, 2008) and BLIS: k is cut into steps of kStepK so that a panel
// of A stays in the first-level cache and all of packed A and B in the second.
//
// Each output element is a chain of multiply-adds in the order of k within a step, and of additions
// over steps: no result depends on how the output is cut into blocks or which thread takes one.
#pragma once

#include "src/cpu/simd/few_rows.h"
#include "src/cpu/simd/gemm_pack.h"
#include "src/cpu/simd/gemm_tile.h"
#if defined(__AMX_BF16__)
#include "src/cpu/simd/amx.h"
#endif

namespace dropless::cpu {
namespace {

GemmShape gemm_shape(DType operand, DType out) {
  const DType packed = packed_type(operand);
  const bool rounded = dtype_bytes(out) == 2;
  GemmShape shape{.packed = packed,
                  .tile_rows = 0,
                  .tile_cols = 0,
                  .max_rows = rounded ? kMaxRowsRounded : kMaxRows,
                  .max_cols = rounded ? kMaxColsRounded : kMaxCols,
                  .one_step_cols = kMaxCols,
                  .few_rows = kFewRows,
                  .few_rows_cols = kFewCols,
                  .step_k = 0,
                  .packed_row = 0,
                  .group = 0};
  visit_packed(packed, [&](auto zero) {
    using P = decltype(zero);
    shape.tile_rows = kPackedRows<P>;
    shape.tile_cols = kTileCols<P>;
    shape.step_k = kStepK<P>;
    shape.packed_row = kRowStride<P>;
    shape.group = kGroup<P>;
  });
  return shape;
}

void gemm_round(const GemmRound& round) {
  visit_storage<float>(round.out_dtype, [&](auto zero) {
    using S = decltype(zero);
    for (std::int64_t i = 0; i < round.rows; ++i) {
      S* out = static_cast<S*>(round.out) + i * round.out_stride;
      const float* from = round.sums + i * round.sums_stride;
#pragma omp simd
      for (std::int64_t j = 0; j < round.cols; ++j) out[j] = from_float<S>(from[j]);
    }
  });
}

// What comes after the sums [rows, cols] of a block: the bias, and rounding to the output.
template <class T>
void finish_block(const GemmBlock& block, T* sums, std::int64_t stride, bool round) {
  if (block.bias != nullptr) {
    visit_storage<T>(block.b[0].dtype, [&](auto zero) {
      const auto* bias = static_cast<const decltype(zero)*>(block.bias);
      for (std::int64_t i = 0; i < block.rows; ++i) {
#pragma omp simd
        for (std::int64_t j = 0; j < block.cols; ++j) sums[i * stride + j] += to_float(bias[j]);
      }
    });
  }
  if constexpr (std::is_same_v<T, float>) {
    if (round) {
      gemm_round(
          {block.rows, block.cols, sums, stride, block.out, block.out_dtype, block.out_stride});
    }
  }
}

template <class P>
void run_few_rows(const GemmBlock& block) {
  using T = Sum<P>;
  const bool rounded = dtype_bytes(block.out_dtype) == 2;
  T* sums = static_cast<T*>(rounded ? block.slot : block.out);
  P* a = reinterpret_cast<P*>(static_cast<T*>(block.slot) + kFewRows * kFewCols);
  const std::int64_t stride = rounded ? kFewCols : block.out_stride;
  for (int term = 0; term < block.num_terms; ++term) {
    few_rows_product(block.a[term], block.b[term], block.b_layout, static_cast<int>(block.rows),
                     block.cols, block.k, a, sums, stride, term > 0 || block.accumulate);
  }
  finish_block(block, sums, stride, rounded);
}

template <class P>
void run_block(const GemmBlock& block) {
  using T = Sum<P>;
  const bool rounded = dtype_bytes(block.out_dtype) == 2;
  char* slot = static_cast<char*>(block.slot);
  P* a = reinterpret_cast<P*>(slot);
  slot += (rounded ? kMaxRowsRounded : kMaxRows) * kPackedRowBytes;
  P* b = reinterpret_cast<P*>(slot);
  slot += kMaxColsRounded * kPackedColBytes;
  T* sums = rounded ? reinterpret_cast<T*>(slot) : static_cast<T*>(block.out);
  const std::int64_t stride = rounded ? kMaxColsRounded : block.out_stride;
  // Tiles round what they add last, but where a bias comes after.
  const TileOutput<T> to_sums{sums, stride, nullptr, 0, {}};
  const TileOutput<T> to_out{sums, stride, block.out, block.out_stride, block.out_dtype};
  const bool tiles_round = rounded && block.bias == nullptr;
  // Steps of equal length: their number and bounds depend on k alone.
  const std::int64_t steps = (block.k + kStepK<P> - 1) / kStepK<P>;
  const std::int64_t step = whole_groups<P>((block.k + steps - 1) / steps);
  for (int term = 0; term < block.num_terms; ++term) {
    for (std::int64_t first = 0; first < block.k; first += step) {
      const std::int64_t k = block.k - first < step ? block.k - first : step;
      const bool add = term > 0 || first > 0 || block.accumulate;
      pack_b(block.b[term], block.b_layout, block.cols, first, k, b);
      pack_a(block.a[term], block.a_layout, block.rows, first, k, a);
      const bool final = term + 1 == block.num_terms && first + k == block.k;
      run_tiles(block.a_layout, block.rows, block.cols, k, a, b,
                tiles_round && final ? to_out : to_sums, add);
    }
  }
  finish_block(block, sums, stride, rounded && !tiles_round);
}

void gemm_block(const GemmBlock& block) {
  const DType operands = product_type(block.a[0].dtype, block.b[0].dtype);
  const bool few = block.rows <= kFewRows && block.cols <= kFewCols &&
                   block.a_layout == OperandLayout::kAlongK && block.b[0].rows == nullptr;
  visit_packed(packed_type(operands), [&](auto zero) {
    using P = decltype(zero);
    few ? run_few_rows<P>(block) : run_block<P>(block);
  });
}

void gemm_pack_a(const GemmPack& pack) {
  visit_packed(packed_type(pack.operand.dtype), [&](auto zero) {
    pack_a(pack.operand, pack.layout, pack.size, 0, pack.k, static_cast<decltype(zero)*>(pack.to));
  });
}

void gemm_pack_b(const GemmPack& pack) {
  visit_packed(packed_type(pack.operand.dtype), [&](auto zero) {
    pack_b(pack.operand, pack.layout, pack.size, 0, pack.k, static_cast<decltype(zero)*>(pack.to));
  });
}

void gemm_tiles(const GemmTiles& t) {
  visit_packed(t.packed, [&](auto zero) {
    using P = decltype(zero);
    run_tiles(t.a_layout, t.rows, t.cols, t.k, static_cast<const P*>(t.a),
              static_cast<const P*>(t.b),
              TileOutput<Sum<P>>{static_cast<Sum<P>*>(t.out), t.out_stride, nullptr, 0, {}}, t.add);
  });
}

}  // namespace
}  // namespace dropless::cpu
