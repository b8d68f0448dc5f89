// One block of a matrix product: pack both operands, then run register tiles over them.
//
// After Goto and van de Geijn (ACM TOMS 34, 2008) and BLIS: B is packed in panels of kTileCols
// columns, k after k; A in rows (kAlongK) or in panels of kTileRows rows, k after k (kAcrossK), so
// that neither needs a transposition in registers except B when its columns run along k. Packing
// also gathers rows and widens 16-bit storage to float; from there on everything is float or
// double. k is cut into steps of kStepK so that a panel of A stays in the first-level cache and all
// of packed A and B in the second.
//
// Each output element is a chain of multiply-adds in the order of k within a step, and of additions
// over steps: no result depends on how the output is cut into blocks or which thread takes one.
#pragma once

#include "src/cpu/simd/table.h"
#include "src/cpu/simd/vec.h"

namespace dropless::cpu {
namespace {

// Registers: kTileRows x 2 accumulators, 2 of B, 1 of A, out of 32 (AVX-512), 16 (AVX2), 16 or
// more.
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif
template <class T>
constexpr int kTileCols = 2 * kLanes<T>;
template <class T>
constexpr int kStepK = 1024 / sizeof(T);
// Odd in cache lines, so that the rows of a tile do not fall into one cache set.
template <class T>
constexpr int kRowStride = kStepK<T> + 64 / sizeof(T);

// Rows of a B panel fetched ahead of use: B comes from the second-level cache.
constexpr int kPrefetch = 12;

// With 16-bit outputs the block's sums live in the slot too, hence smaller blocks.
constexpr int kMaxRows = 672, kMaxCols = 512;
constexpr int kMaxRowsRounded = 336, kMaxColsRounded = 256;
constexpr int kABytes = kMaxRows * kRowStride<float> * 4;
constexpr int kBBytes = kMaxCols * kStepK<float> * 4;
static_assert(kABytes + kBBytes <= kGemmSlotBytes);
static_assert(kMaxRows % kTileRows == 0 && kMaxRowsRounded % kTileRows == 0);
static_assert((kMaxRowsRounded * kRowStride<float> + kMaxColsRounded * kStepK<float> +
               kMaxRowsRounded * kMaxColsRounded) *
                  4 <=
              kGemmSlotBytes);

bool rounds_output(DType accumulator, DType out) { return accumulator != out; }

GemmShape gemm_shape(DType accumulator, DType out) {
  const bool rounded = rounds_output(accumulator, out);
  return {.tile_rows = kTileRows,
          .tile_cols = accumulator == DType::kFloat64 ? kTileCols<double> : kTileCols<float>,
          .max_rows = rounded ? kMaxRowsRounded : kMaxRows,
          .max_cols = rounded ? kMaxColsRounded : kMaxCols,
          .step_k = accumulator == DType::kFloat64 ? kStepK<double> : kStepK<float>,
          .packed_row = accumulator == DType::kFloat64 ? kRowStride<double> : kRowStride<float>};
}

// ---- packing
// ------------------------------------------------------------------------------------------

template <class T, class S>
void copy_row(const S* from, T* to, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(to + i, load_as<T>(from + i));
  for (; i < n; ++i) to[i] = to_float(from[i]);
}

std::int64_t source_row(const GemmOperand& operand, std::int64_t i) {
  return operand.rows == nullptr ? i : operand.rows[i];
}

// to[i * kRowStride + p] = a[i, first + p]
template <class T, class S>
void pack_a_along(const GemmOperand& a, std::int64_t rows, std::int64_t first, std::int64_t k,
                  T* to) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const S* from = static_cast<const S*>(a.data) + source_row(a, i) * a.stride + first;
    copy_row(from, to + i * kRowStride<T>, k);
  }
}

// Panels of kTileRows: to[(panel * k + p) * kTileRows + i] = a[panel * kTileRows + i, first + p]
template <class T, class S>
void pack_a_across(const GemmOperand& a, std::int64_t rows, std::int64_t first, std::int64_t k,
                   T* to) {
  for (std::int64_t p = 0; p < k; ++p) {
    const S* from = static_cast<const S*>(a.data) + source_row(a, first + p) * a.stride;
    for (std::int64_t i = 0; i < rows; i += kTileRows) {
      T* panel = to + i * k + p * kTileRows;
      const std::int64_t n = rows - i < kTileRows ? rows - i : kTileRows;
      if (n == kTileRows && kTileRows <= kLanes<T> && i + kLanes<T> <= rows) {
        store_first(panel, load_as<T>(from + i), kTileRows);
      } else {
        for (std::int64_t j = 0; j < n; ++j) panel[j] = to_float(from[i + j]);
      }
    }
  }
}

// Panels of kTileCols: to[(panel * k + p) * kTileCols + j] = b[first + p, panel * kTileCols + j], 0
// beyond.
template <class T, class S>
void pack_b_across(const GemmOperand& b, std::int64_t cols, std::int64_t first, std::int64_t k,
                   T* to) {
  constexpr int kCols = kTileCols<T>;
  for (std::int64_t p = 0; p < k; ++p) {
    const S* from = static_cast<const S*>(b.data) + source_row(b, first + p) * b.stride;
    std::int64_t j = 0;
    for (; j + kCols <= cols; j += kCols) {
      T* panel = to + j * k + p * kCols;
      store(panel, load_as<T>(from + j));
      store(panel + kLanes<T>, load_as<T>(from + j + kLanes<T>));
    }
    if (j < cols) {
      T* panel = to + j * k + p * kCols;
      for (std::int64_t c = 0; c < kCols; ++c)
        panel[c] = j + c < cols ? T(to_float(from[j + c])) : T(0);
    }
  }
}

// The same from b[j, first + p]: transposed through registers.
template <class T, class S>
void pack_b_along(const GemmOperand& b, std::int64_t cols, std::int64_t first, std::int64_t k,
                  T* to) {
  constexpr int L = kLanes<T>, kCols = kTileCols<T>;
  for (std::int64_t j = 0; j < cols; j += L) {
    T* panel = to + j / kCols * kCols * k + j % kCols;
    const std::int64_t n = cols - j < L ? cols - j : L;
    const auto row = [&](std::int64_t r) {
      return static_cast<const S*>(b.data) + source_row(b, j + r) * b.stride + first;
    };
    std::int64_t p = 0;
    for (; n == L && p + L <= k; p += L) {
      Vec<T> block[L];
      for (int r = 0; r < L; ++r) block[r] = load_as<T>(row(r) + p);
      transpose<T>(block);
      for (int r = 0; r < L; ++r) store(panel + (p + r) * kCols, block[r]);
    }
    for (; p < k; ++p) {
      for (std::int64_t r = 0; r < L; ++r) {
        panel[p * kCols + r] = r < n ? T(to_float(row(r)[p])) : T(0);
      }
    }
  }
}

// ---- register tile
// ------------------------------------------------------------------------------------

// c [rows, (vectors - 1) * kLanes + last] (+)= A B over k. `vectors` of B's two are used, `last`
// lanes of the last one are stored.
template <class T, OperandLayout a_layout, int rows, int vectors>
void tile(std::int64_t k, const T* a, const T* b, T* c, std::int64_t c_stride, int last, bool add) {
  constexpr int L = kLanes<T>;
  constexpr int kRow = a_layout == OperandLayout::kAlongK ? kRowStride<T> : 1;
  constexpr int kStep = a_layout == OperandLayout::kAlongK ? 1 : kTileRows;
  Vec<T> sum[rows][vectors] = {};
  for (int i = 0; i < rows; ++i) {
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(c + i * c_stride + v * L, 1);
  }
  for (std::int64_t p = 0; p < k; ++p) {
    Vec<T> b_p[vectors];
    for (int v = 0; v < vectors; ++v) {
      b_p[v] = load(b + p * kTileCols<T> + v * L);
      __builtin_prefetch(b + (p + kPrefetch) * kTileCols<T> + v * L);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Vec<T> a_ip = broadcast(a[i * kRow + p * kStep]);
      for (int v = 0; v < vectors; ++v) sum[i][v] = fma(a_ip, b_p[v], sum[i][v]);
    }
  }
  if (add) {
    for (int i = 0; i < rows; ++i) {
      for (int v = 0; v < vectors; ++v) {
        const T* at = c + i * c_stride + v * L;
        sum[i][v] += v + 1 < vectors || last == L ? load(at) : load_first(at, last);
      }
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int v = 0; v < vectors; ++v) {
      T* at = c + i * c_stride + v * L;
      if (v + 1 < vectors || last == L) {
        store(at, sum[i][v]);
      } else {
        store_first(at, sum[i][v], last);
      }
    }
  }
}

template <class T>
using Tile = void (*)(std::int64_t, const T*, const T*, T*, std::int64_t, int, bool);

template <class T, OperandLayout a_layout>
struct Tiles {
  Tile<T> of[kTileRows][2];  // [rows - 1][vectors - 1]
};

template <class T, OperandLayout a_layout, int... i>
constexpr Tiles<T, a_layout> make_tiles(std::integer_sequence<int, i...>) {
  return {{{tile<T, a_layout, i + 1, 1>, tile<T, a_layout, i + 1, 2>}...}};
}

template <class T, OperandLayout a_layout>
constexpr Tiles<T, a_layout> kTiles =
    make_tiles<T, a_layout>(std::make_integer_sequence<int, kTileRows>{});

// out [rows, cols] (+)= packed A times packed B.
template <class T, OperandLayout a_layout>
void run_tiles(std::int64_t rows, std::int64_t cols, std::int64_t k, const T* a, const T* b, T* out,
               std::int64_t out_stride, bool add) {
  constexpr int L = kLanes<T>, kCols = kTileCols<T>;
  constexpr bool kAlong = a_layout == OperandLayout::kAlongK;
  for (std::int64_t i = 0; i < rows; i += kTileRows) {
    const int n_rows = static_cast<int>(rows - i < kTileRows ? rows - i : kTileRows);
    const T* a_panel = a + (kAlong ? i * kRowStride<T> : i * k);
    for (std::int64_t j = 0; j < cols; j += kCols) {
      const int n_cols = static_cast<int>(cols - j < kCols ? cols - j : kCols);
      const int vectors = n_cols > L ? 2 : 1;
      kTiles<T, a_layout>.of[n_rows - 1][vectors - 1](k, a_panel, b + j * k,
                                                      out + i * out_stride + j, out_stride,
                                                      n_cols - (vectors - 1) * L, add);
    }
  }
}

// ---- block
// --------------------------------------------------------------------------------------------

// Calls visitor with a zero of the operand's storage type, which is that of the accumulator T or 16
// bits.
template <class T, class Visitor>
void visit_storage(DType dtype, Visitor&& visitor) {
  if constexpr (std::is_same_v<T, float>) {
    if (dtype == DType::kBFloat16) return visitor(BFloat16{});
    if (dtype == DType::kFloat16) return visitor(Float16{});
  }
  visitor(T{});
}

template <class T>
void pack_a(const GemmOperand& a, OperandLayout layout, std::int64_t rows, std::int64_t first,
            std::int64_t k, T* to) {
  visit_storage<T>(a.dtype, [&](auto zero) {
    using S = decltype(zero);
    layout == OperandLayout::kAlongK ? pack_a_along<T, S>(a, rows, first, k, to)
                                     : pack_a_across<T, S>(a, rows, first, k, to);
  });
}

template <class T>
void pack_b(const GemmOperand& b, OperandLayout layout, std::int64_t cols, std::int64_t first,
            std::int64_t k, T* to) {
  visit_storage<T>(b.dtype, [&](auto zero) {
    using S = decltype(zero);
    layout == OperandLayout::kAlongK ? pack_b_along<T, S>(b, cols, first, k, to)
                                     : pack_b_across<T, S>(b, cols, first, k, to);
  });
}

template <class T>
void run_tiles(OperandLayout a_layout, std::int64_t rows, std::int64_t cols, std::int64_t k,
               const T* a, const T* b, T* out, std::int64_t out_stride, bool add) {
  a_layout == OperandLayout::kAlongK
      ? run_tiles<T, OperandLayout::kAlongK>(rows, cols, k, a, b, out, out_stride, add)
      : run_tiles<T, OperandLayout::kAcrossK>(rows, cols, k, a, b, out, out_stride, add);
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

template <class T>
void run_block(const GemmBlock& block, bool rounded) {
  T* a = static_cast<T*>(block.slot);
  T* b = a + (rounded ? kMaxRowsRounded : kMaxRows) * (kABytes / kMaxRows) / sizeof(T);
  T* sums = rounded ? b + kMaxColsRounded * kStepK<T> : static_cast<T*>(block.out);
  const std::int64_t stride = rounded ? kMaxColsRounded : block.out_stride;
  // Steps of equal length: their number and bounds depend on k alone.
  const std::int64_t steps = (block.k + kStepK<T> - 1) / kStepK<T>;
  const std::int64_t step = (block.k + steps - 1) / steps;
  for (int term = 0; term < block.num_terms; ++term) {
    for (std::int64_t first = 0; first < block.k; first += step) {
      const std::int64_t k = block.k - first < step ? block.k - first : step;
      const bool add = term > 0 || first > 0 || block.accumulate;
      pack_b(block.b[term], block.b_layout, block.cols, first, k, b);
      pack_a(block.a[term], block.a_layout, block.rows, first, k, a);
      run_tiles(block.a_layout, block.rows, block.cols, k, a, b, sums, stride, add);
    }
  }
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
    if (rounded) {
      gemm_round(
          {block.rows, block.cols, sums, stride, block.out, block.out_dtype, block.out_stride});
    }
  }
}

void gemm_block(const GemmBlock& block) {
  const bool wide = block.b[0].dtype == DType::kFloat64;
  const DType accumulator = wide ? DType::kFloat64 : DType::kFloat32;
  const bool rounded = rounds_output(accumulator, block.out_dtype);
  wide ? run_block<double>(block, false) : run_block<float>(block, rounded);
}

void gemm_pack_a(const GemmPack& pack) {
  pack.operand.dtype == DType::kFloat64
      ? pack_a(pack.operand, pack.layout, pack.size, 0, pack.k, static_cast<double*>(pack.to))
      : pack_a(pack.operand, pack.layout, pack.size, 0, pack.k, static_cast<float*>(pack.to));
}

void gemm_pack_b(const GemmPack& pack) {
  pack.operand.dtype == DType::kFloat64
      ? pack_b(pack.operand, pack.layout, pack.size, 0, pack.k, static_cast<double*>(pack.to))
      : pack_b(pack.operand, pack.layout, pack.size, 0, pack.k, static_cast<float*>(pack.to));
}

template <class T>
void run_tiles(const GemmTiles& t) {
  run_tiles(t.a_layout, t.rows, t.cols, t.k, static_cast<const T*>(t.a), static_cast<const T*>(t.b),
            static_cast<T*>(t.out), t.out_stride, t.add);
}

void gemm_tiles(const GemmTiles& tiles) {
  tiles.accumulator == DType::kFloat64 ? run_tiles<double>(tiles) : run_tiles<float>(tiles);
}

}  // namespace
}  // namespace dropless::cpu
