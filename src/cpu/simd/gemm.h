// One block of a matrix product: pack both operands, then run register tiles over them.
//
// After Goto and van de Geijn (ACM TOMS 34, 2008) and BLIS: B is packed in panels of kTileCols
// columns, k after k; A in rows (kAlongK) or in panels of kTileRows rows, k after k (kAcrossK), so
// that neither needs a transposition in registers except B when its columns run along k. Packing
// also gathers rows and widens 16-bit storage to float, from there on everything is float or double;
// but with AVX-512 BF16 two bf16 operands stay as they are, in pairs of neighbouring k that one
// instruction multiplies and adds to a float, and where there is a matrix unit it multiplies 32 (amx.h).
// k is cut into steps of kStepK so that a panel of A stays in the first-level cache and all of packed A
// and B in the second.
//
// Each output element is a chain of multiply-adds in the order of k within a step, and of additions
// over steps: no result depends on how the output is cut into blocks or which thread takes one.
#pragma once

#include "src/cpu/simd/table.h"
#include "src/cpu/simd/vec.h"
#if defined(__AMX_BF16__)
#include "src/cpu/simd/amx.h"
#endif

namespace dropless::cpu {
namespace {

// Registers: kTileRows x 2 accumulators, 2 of B, 1 of A, out of 32 (AVX-512), 16 (AVX2), 16 or
// more.
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif
// Rows of A that are packed together.
template <class P>
#if defined(__AMX_BF16__)
constexpr int kPackedRows = sizeof(P) == 2 ? kAmxRows : kTileRows;
#else
constexpr int kPackedRows = kTileRows;
#endif

// P is the type of packed operands: float, double or, in pairs, BFloat16. Sums are of type Sum<P>.
template <class P>
using Sum = Accumulator<P>;
// Neighbours along k that are multiplied by one instruction; the last group is filled with zeros.
template <class P>
#if defined(__AMX_BF16__)
constexpr int kGroup = sizeof(P) == 2 ? kAmxDepth : 1;
#else
constexpr int kGroup = sizeof(P) == 2 ? 2 : 1;
#endif
template <class P>
constexpr int kTileCols = 2 * kLanes<Sum<P>>;
template <class P>
constexpr int kStepK = 1024 / sizeof(P);
// Odd in cache lines, so that the rows of a tile do not fall into one cache set.
template <class P>
constexpr int kRowStride = kStepK<P> + 64 / sizeof(P);

template <class P>
std::int64_t whole_groups(std::int64_t k) {
  return (k + kGroup<P> - 1) / kGroup<P> * kGroup<P>;
}

// Rows of a B panel fetched ahead of use: B comes from the second-level cache.
constexpr int kPrefetch = 12;

// With 16-bit outputs the block's sums live in the slot too, hence smaller blocks.
constexpr int kMaxRows = 672, kMaxCols = 512;
constexpr int kMaxRowsRounded = 336, kMaxColsRounded = 256;
constexpr int kPackedRowBytes = kRowStride<float> * 4, kPackedColBytes = kStepK<float> * 4;
static_assert(kMaxRows * kPackedRowBytes + kMaxCols * kPackedColBytes <= kGemmSlotBytes);
static_assert(kMaxRows % kTileRows == 0 && kMaxRowsRounded % kTileRows == 0);
static_assert(kMaxRowsRounded * kPackedRowBytes + kMaxColsRounded * kPackedColBytes +
                  kMaxRowsRounded * kMaxColsRounded * 4 <=
              kGemmSlotBytes);
static_assert(kMaxRowsRounded * kPackedRowBytes + kMaxCols * kPackedColBytes <= kGemmSlotBytes);

// visitor(zero of the packed type)
template <class Visitor>
void visit_packed(DType packed, Visitor&& visitor) {
  if (packed == DType::kFloat64) return visitor(double{});
#if defined(__AVX512BF16__)
  if (packed == DType::kBFloat16) return visitor(BFloat16{});
#endif
  visitor(float{});
}

DType packed_type(DType operand) {
#if defined(__AVX512BF16__)
  if (operand == DType::kBFloat16) return operand;
#endif
  return operand == DType::kFloat64 ? operand : DType::kFloat32;
}

GemmShape gemm_shape(DType operand, DType out) {
  const DType packed = packed_type(operand);
  const bool rounded = dtype_bytes(out) == 2;
  GemmShape shape{.packed = packed,
                  .tile_rows = 0,
                  .tile_cols = 0,
                  .max_rows = rounded ? kMaxRowsRounded : kMaxRows,
                  .max_cols = rounded ? kMaxColsRounded : kMaxCols,
                  .one_step_cols = kMaxCols,
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

// Packing reads rows some lines at a time, many rows side by side: an order in which operands come
// slowly from memory (5 GB/s where 33 were possible on the machine of docs/benchmarks.md, and
// prefetch instructions change little: they do not wait for a page's translation). Hence each group
// of rows is read once in the order of memory, by loads nobody waits for, before it is packed.
constexpr int kTouchedRows = 16;

// The `size` elements from `first` on of rows [begin, end) of the operand.
template <class S>
void touch_rows(const GemmOperand& operand, std::int64_t begin, std::int64_t end,
                std::int64_t first, std::int64_t size) {
  unsigned sum = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    const auto* row = reinterpret_cast<const unsigned char*>(
        static_cast<const S*>(operand.data) + source_row(operand, i) * operand.stride + first);
    const auto bytes = size * static_cast<std::int64_t>(sizeof(S));
    for (std::int64_t p = 0; p < bytes; p += 64) sum += row[p];
  }
  asm volatile("" : : "r"(sum));
}

// The same before row i of [0, rows) is packed, where a group begins.
template <class S>
[[gnu::always_inline]] inline void touch_ahead(const GemmOperand& operand, std::int64_t i,
                                               std::int64_t rows, std::int64_t base,
                                               std::int64_t first, std::int64_t size) {
  if (i % kTouchedRows != 0) return;
  const std::int64_t end = i + kTouchedRows < rows ? i + kTouchedRows : rows;
  touch_rows<S>(operand, base + i, base + end, first, size);
}

// to[i * kRowStride + p] = a[i, first + p]
template <class T, class S>
void pack_a_along(const GemmOperand& a, std::int64_t rows, std::int64_t first, std::int64_t k,
                  T* to) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const S* from = static_cast<const S*>(a.data) + source_row(a, i) * a.stride + first;
    touch_ahead<S>(a, i, rows, 0, first, k);
    copy_row(from, to + i * kRowStride<T>, k);
  }
}

// Panels of kTileRows: to[(panel * k + p) * kTileRows + i] = a[panel * kTileRows + i, first + p]
template <class T, class S>
void pack_a_across(const GemmOperand& a, std::int64_t rows, std::int64_t first, std::int64_t k,
                   T* to) {
  for (std::int64_t p = 0; p < k; ++p) {
    const S* from = static_cast<const S*>(a.data) + source_row(a, first + p) * a.stride;
    touch_ahead<S>(a, p, k, first, 0, rows);
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
    touch_ahead<S>(b, p, k, first, 0, cols);
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
    touch_rows<S>(b, j, j + n, first, k);
    std::int64_t p = 0;
    for (; n == L && p + L <= k; p += L) {
      Vec<T> block[L];
      for (int r = 0; r < L; ++r) {
        block[r] = load_as<T>(row(r) + p);
      }
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

#if defined(__AVX512BF16__)

// The same four for bf16 as it is. A lane of 32 bits is a pair (k, k + 1).

// Lanes {low[i], high[i]} for i < n <= 16, else 0; a null `high` counts as zeros.
[[gnu::always_inline]] inline __m512i pairs(const BFloat16* low, const BFloat16* high, int n) {
  typedef std::uint16_t Half __attribute__((vector_size(32)));
  typedef std::uint32_t Word __attribute__((vector_size(64)));
  const auto mask = static_cast<__mmask16>((1u << n) - 1);
  const auto words = [&](const BFloat16* p) {
    return __builtin_convertvector((Half)_mm256_maskz_loadu_epi16(mask, p), Word);
  };
  return (__m512i)(high == nullptr ? words(low) : words(low) | words(high) << 16);
}

void pack_a_along(const GemmOperand& a, std::int64_t rows, std::int64_t first, std::int64_t k,
                  BFloat16* to) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto* from = static_cast<const BFloat16*>(a.data) + source_row(a, i) * a.stride + first;
    BFloat16* row = to + i * kRowStride<BFloat16>;
    touch_ahead<BFloat16>(a, i, rows, 0, first, k);
    __builtin_memcpy(row, from, static_cast<std::size_t>(k) * 2);
    for (std::int64_t p = k; p < whole_groups<BFloat16>(k); ++p) row[p] = {};
  }
}

// Calls line(p, row k = p, row k = p + 1 or null) for the pairs of an operand across k.
template <class Line>
void for_pairs_across(const GemmOperand& operand, std::int64_t size, std::int64_t first,
                      std::int64_t k, Line&& line) {
  const auto row = [&](std::int64_t p) {
    return static_cast<const BFloat16*>(operand.data) +
           source_row(operand, first + p) * operand.stride;
  };
  for (std::int64_t p = 0; p < k; p += 2) {
    touch_ahead<BFloat16>(operand, p, k, first, 0, size);
    line(p, row(p), p + 1 < k ? row(p + 1) : nullptr);
  }
}

#if defined(__AMX_BF16__)
// In rows as well: transposed through registers, 16 rows by 32 of k at a time.
void pack_a_across(const GemmOperand& a, std::int64_t rows, std::int64_t first, std::int64_t k,
                   BFloat16* to) {
  const auto row = [&](std::int64_t p) {
    return static_cast<const BFloat16*>(a.data) + source_row(a, first + p) * a.stride;
  };
  for (std::int64_t p = 0; p < k; p += kAmxDepth) {
    touch_rows<BFloat16>(a, first + p, first + (p + kAmxDepth < k ? p + kAmxDepth : k), 0, rows);
    for (std::int64_t i = 0; i < rows; i += 16) {
      const int n = static_cast<int>(rows - i < 16 ? rows - i : 16);
      Vec<float> block[16] = {};
      for (int r = 0; r < 16 && p + 2 * r < k; ++r) {
        const std::int64_t low = p + 2 * r;
        block[r] =
            _mm512_castsi512_ps(pairs(row(low) + i, low + 1 < k ? row(low + 1) + i : nullptr, n));
      }
      transpose<float>(block);
      for (int r = 0; r < n; ++r) {
        _mm512_storeu_ps(to + (i + r) * kRowStride<BFloat16> + p, block[r]);
      }
    }
  }
}
#else
void pack_a_across(const GemmOperand& a, std::int64_t rows, std::int64_t first, std::int64_t k,
                   BFloat16* to) {
  static_assert(kTileRows <= 16);
  const std::int64_t depth = whole_groups<BFloat16>(k);
  for_pairs_across(
      a, rows, first, k, [&](std::int64_t p, const BFloat16* low, const BFloat16* high) {
        for (std::int64_t i = 0; i < rows; i += kTileRows) {
          const int n = static_cast<int>(rows - i < kTileRows ? rows - i : kTileRows);
          const __m512i lanes = pairs(low + i, high == nullptr ? nullptr : high + i, n);
          _mm512_mask_storeu_epi32(to + i * depth + p * kTileRows,
                                   static_cast<__mmask16>((1u << kTileRows) - 1), lanes);
        }
      });
}
#endif

void pack_b_across(const GemmOperand& b, std::int64_t cols, std::int64_t first, std::int64_t k,
                   BFloat16* to) {
  const std::int64_t depth = whole_groups<BFloat16>(k);
  for_pairs_across(
      b, cols, first, k, [&](std::int64_t p, const BFloat16* low, const BFloat16* high) {
        for (std::int64_t j = 0; j < cols; j += 16) {
          const int n = static_cast<int>(cols - j < 16 ? cols - j : 16);
          const __m512i lanes = pairs(low + j, high == nullptr ? nullptr : high + j, n);
          _mm512_storeu_si512(to + j / 32 * 32 * depth + p * 32 + j % 32 * 2, lanes);
          if (j + 16 >= cols && j % 32 == 0) {  // the panel's other half
            _mm512_storeu_si512(to + j * depth + p * 32 + 32, _mm512_setzero_si512());
          }
        }
      });
  const std::int64_t packed = (k + 1) / 2 * 2;
  for (std::int64_t j = 0; packed < depth && j < cols; j += 32) {
    __builtin_memset(to + j * depth + packed * 32, 0,
                     static_cast<std::size_t>(depth - packed) * 64);
  }
}

void pack_b_along(const GemmOperand& b, std::int64_t cols, std::int64_t first, std::int64_t k,
                  BFloat16* to) {
  const std::int64_t depth = whole_groups<BFloat16>(k);
  for (std::int64_t j = 0; j < cols; j += 16) {
    BFloat16* panel = to + j / 32 * 32 * depth + j % 32 * 2;
    const int n = static_cast<int>(cols - j < 16 ? cols - j : 16);
    touch_rows<BFloat16>(b, j, j + n, first, k);
    for (std::int64_t p = 0; p < k; p += 32) {
      const auto mask = static_cast<__mmask32>(k - p < 32 ? (1u << (k - p)) - 1 : ~0u);
      Vec<float> block[16] = {};
      for (int r = 0; r < n; ++r) {
        const auto* row = static_cast<const BFloat16*>(b.data) + source_row(b, j + r) * b.stride;
        block[r] = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, row + first + p));
      }
      transpose<float>(block);
      const std::int64_t left = (depth - p) / 2;
      for (int r = 0; r < 16 && r < left; ++r) {
        _mm512_storeu_si512(panel + (p + 2 * r) * 32, _mm512_castps_si512(block[r]));
      }
    }
  }
}

#endif

// ---- register tile
// ------------------------------------------------------------------------------------

// A group of A in all lanes; a group of each column of B; fma of both is summed per lane.
template <class P>
[[gnu::always_inline]] inline Vec<P> broadcast_group(const P* a) {
  return broadcast(*a);
}
template <class P>
[[gnu::always_inline]] inline Vec<P> load_group(const P* b) {
  return load(b);
}
#if defined(__AVX512BF16__)
[[gnu::always_inline]] inline __m512bh broadcast_group(const BFloat16* a) {
  std::int32_t pair;
  __builtin_memcpy(&pair, a, 4);
  return (__m512bh)_mm512_set1_epi32(pair);
}
[[gnu::always_inline]] inline __m512bh load_group(const BFloat16* b) {
  return (__m512bh)_mm512_loadu_si512(b);
}
[[gnu::always_inline]] inline Vec<float> fma(__m512bh a, __m512bh b, Vec<float> sum) {
  return _mm512_dpbf16_ps(sum, a, b);
}
#endif

// The first n lanes, rounded to S.
template <class S>
[[gnu::always_inline]] inline void store_rounded(S* p, Vec<float> v, int n) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<S, BFloat16>) {
    const auto mask = static_cast<__mmask16>((1u << n) - 1);
    return _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
  }
#endif
  S rounded[kLanes<float>];
  for (int i = 0; i < kLanes<float>; ++i) rounded[i] = from_float<S>(v[i]);
  if (n == kLanes<float>) {
    __builtin_memcpy(p, rounded, sizeof(rounded));
  } else {
    for (int i = 0; i < n; ++i) p[i] = rounded[i];
  }
}

// Where a product's sums go: to memory of their own type, or with `rounded` to a 16-bit output.
template <class T>
struct TileOutput {
  T* sums;
  std::int64_t sums_stride;
  void* rounded;
  std::int64_t rounded_stride;
  DType rounded_type;

  TileOutput at(std::int64_t i, std::int64_t j) const {
    TileOutput there = *this;
    there.sums = sums + i * sums_stride + j;
    if (rounded != nullptr) {
      there.rounded = static_cast<std::uint16_t*>(rounded) + i * rounded_stride + j;
    }
    return there;
  }
};

// [rows, (vectors - 1) * kLanes + last] (+)= A B over k, where (+) adds to the sums. `vectors` of B's
// two are used, `last` lanes of the last one are stored.
template <class P, OperandLayout a_layout, int rows, int vectors>
void tile(std::int64_t k, const P* a, const P* b, const TileOutput<Sum<P>>& out, int last,
          bool add) {
  using T = Sum<P>;
  constexpr int L = kLanes<T>, kG = kGroup<P>, kCols = kTileCols<P>;
  constexpr int kRow = a_layout == OperandLayout::kAlongK ? kRowStride<P> : kG;
  constexpr int kStep = a_layout == OperandLayout::kAlongK ? kG : kTileRows * kG;
  Vec<T> sum[rows][vectors] = {};
  for (int i = 0; i < rows; ++i) {
    if (out.rounded != nullptr) {
      __builtin_prefetch(static_cast<std::uint16_t*>(out.rounded) + i * out.rounded_stride, 1);
    }
    if (out.rounded != nullptr && !add) continue;
    for (int v = 0; v < vectors; ++v) {
      __builtin_prefetch(out.sums + i * out.sums_stride + v * L, 1);
    }
  }
  const std::int64_t groups = (k + kG - 1) / kG;
  for (std::int64_t p = 0; p < groups; ++p) {
    decltype(load_group(b)) b_p[vectors];
    for (int v = 0; v < vectors; ++v) {
      b_p[v] = load_group(b + (p * kCols + v * L) * kG);
      __builtin_prefetch(b + ((p + kPrefetch) * kCols + v * L) * kG);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const auto a_ip = broadcast_group(a + i * kRow + p * kStep);
      for (int v = 0; v < vectors; ++v) sum[i][v] = fma(a_ip, b_p[v], sum[i][v]);
    }
  }
  const auto lanes = [&](int v) { return v + 1 < vectors ? L : last; };
  if (add) {
    for (int i = 0; i < rows; ++i) {
      for (int v = 0; v < vectors; ++v) {
        const T* at = out.sums + i * out.sums_stride + v * L;
        sum[i][v] += lanes(v) == L ? load(at) : load_first(at, lanes(v));
      }
    }
  }
  if constexpr (std::is_same_v<T, float>) {
    if (out.rounded != nullptr) {
      const auto store_as = [&](auto zero) {
        for (int i = 0; i < rows; ++i) {
          for (int v = 0; v < vectors; ++v) {
            auto* at = static_cast<decltype(zero)*>(out.rounded) + i * out.rounded_stride + v * L;
            store_rounded(at, sum[i][v], lanes(v));
          }
        }
      };
      return out.rounded_type == DType::kBFloat16 ? store_as(BFloat16{}) : store_as(Float16{});
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int v = 0; v < vectors; ++v) {
      T* at = out.sums + i * out.sums_stride + v * L;
      if (lanes(v) == L) {
        store(at, sum[i][v]);
      } else {
        store_first(at, sum[i][v], lanes(v));
      }
    }
  }
}

template <class P>
using Tile = void (*)(std::int64_t, const P*, const P*, const TileOutput<Sum<P>>&, int, bool);

template <class P, OperandLayout a_layout>
struct Tiles {
  Tile<P> of[kTileRows][2];  // [rows - 1][vectors - 1]
};

template <class P, OperandLayout a_layout, int... i>
constexpr Tiles<P, a_layout> make_tiles(std::integer_sequence<int, i...>) {
  return {{{tile<P, a_layout, i + 1, 1>, tile<P, a_layout, i + 1, 2>}...}};
}

template <class P, OperandLayout a_layout>
constexpr Tiles<P, a_layout> kTiles =
    make_tiles<P, a_layout>(std::make_integer_sequence<int, kTileRows>{});

// out [rows, cols] (+)= packed A times packed B.
template <class P, OperandLayout a_layout>
void run_tiles(std::int64_t rows, std::int64_t cols, std::int64_t k, const P* a, const P* b,
               const TileOutput<Sum<P>>& out, bool add) {
  constexpr int L = kLanes<Sum<P>>, kCols = kTileCols<P>;
  constexpr bool kAlong = a_layout == OperandLayout::kAlongK;
  const std::int64_t depth = whole_groups<P>(k);
  for (std::int64_t i = 0; i < rows; i += kTileRows) {
    const int n_rows = static_cast<int>(rows - i < kTileRows ? rows - i : kTileRows);
    const P* a_panel = a + i * (kAlong ? kRowStride<P> : depth);
    for (std::int64_t j = 0; j < cols; j += kCols) {
      const int n_cols = static_cast<int>(cols - j < kCols ? cols - j : kCols);
      const int vectors = n_cols > L ? 2 : 1;
      kTiles<P, a_layout>.of[n_rows - 1][vectors - 1](k, a_panel, b + j * depth, out.at(i, j),
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

template <class P>
void pack_a(const GemmOperand& a, OperandLayout layout, std::int64_t rows, std::int64_t first,
            std::int64_t k, P* to) {
  const bool along = layout == OperandLayout::kAlongK;
  if constexpr (sizeof(P) == 2) {
    along ? pack_a_along(a, rows, first, k, to) : pack_a_across(a, rows, first, k, to);
  } else {
    visit_storage<P>(a.dtype, [&](auto zero) {
      using S = decltype(zero);
      along ? pack_a_along<P, S>(a, rows, first, k, to)
            : pack_a_across<P, S>(a, rows, first, k, to);
    });
  }
}

template <class P>
void pack_b(const GemmOperand& b, OperandLayout layout, std::int64_t cols, std::int64_t first,
            std::int64_t k, P* to) {
  const bool along = layout == OperandLayout::kAlongK;
  if constexpr (sizeof(P) == 2) {
    along ? pack_b_along(b, cols, first, k, to) : pack_b_across(b, cols, first, k, to);
  } else {
    visit_storage<P>(b.dtype, [&](auto zero) {
      using S = decltype(zero);
      along ? pack_b_along<P, S>(b, cols, first, k, to)
            : pack_b_across<P, S>(b, cols, first, k, to);
    });
  }
}

#if defined(__AMX_BF16__)
// The sums of 32 x 32 elements, [32, 32], to where they go.
void store_sums(int rows, int cols, const float* sums, const TileOutput<float>& out, bool add) {
  const auto for_vectors = [&](auto&& put) {
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < cols; j += 16) {
        const int n = cols - j < 16 ? cols - j : 16;
        Vec<float> v = load(sums + i * 32 + j);
        if (add) v += load_first(out.sums + i * out.sums_stride + j, n);
        put(i, j, v, n);
      }
    }
  };
  const auto store_as = [&](auto zero) {
    for_vectors([&](int i, int j, Vec<float> v, int n) {
      store_rounded(static_cast<decltype(zero)*>(out.rounded) + i * out.rounded_stride + j, v, n);
    });
  };
  if (out.rounded == nullptr) {
    for_vectors([&](int i, int j, Vec<float> v, int n) {
      store_first(out.sums + i * out.sums_stride + j, v, n);
    });
  } else {
    out.rounded_type == DType::kBFloat16 ? store_as(BFloat16{}) : store_as(Float16{});
  }
}

void run_tiles(OperandLayout, std::int64_t rows, std::int64_t cols, std::int64_t k,
               const BFloat16* a, const BFloat16* b, const TileOutput<float>& out, bool add) {
  constexpr std::int64_t kStride = kRowStride<BFloat16>;
  const AmxTiles tiles;
  const std::int64_t depth = whole_groups<BFloat16>(k);
  alignas(64) float sums[32 * 32];
  for (std::int64_t i = 0; i < rows; i += 32) {
    const int n_rows = static_cast<int>(rows - i < 32 ? rows - i : 32);
    for (std::int64_t j = 0; j < cols; j += 32) {
      const int n_cols = static_cast<int>(cols - j < 32 ? cols - j : 32);
      const auto multiply =
          n_rows > 16 ? (n_cols > 16 ? amx_multiply<true, true> : amx_multiply<true, false>)
                      : (n_cols > 16 ? amx_multiply<false, true> : amx_multiply<false, false>);
      multiply(depth, a + i * kStride, kStride, b + j * depth, sums);
      store_sums(n_rows, n_cols, sums, out.at(i, j), add);
    }
  }
}
#endif

template <class P>
void run_tiles(OperandLayout a_layout, std::int64_t rows, std::int64_t cols, std::int64_t k,
               const P* a, const P* b, const TileOutput<Sum<P>>& out, bool add) {
  a_layout == OperandLayout::kAlongK
      ? run_tiles<P, OperandLayout::kAlongK>(rows, cols, k, a, b, out, add)
      : run_tiles<P, OperandLayout::kAcrossK>(rows, cols, k, a, b, out, add);
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
    if (rounded && !tiles_round) {
      gemm_round(
          {block.rows, block.cols, sums, stride, block.out, block.out_dtype, block.out_stride});
    }
  }
}

void gemm_block(const GemmBlock& block) {
  const DType operands = product_type(block.a[0].dtype, block.b[0].dtype);
  visit_packed(packed_type(operands), [&](auto zero) { run_block<decltype(zero)>(block); });
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
