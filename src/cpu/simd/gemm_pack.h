// Packed operands of a matrix product: their layout, and how they get there.
//
// B is packed in panels of kTileCols columns, k after k; A in rows (kAlongK) or in panels of kTileRows
// rows, k after k (kAcrossK), so that neither needs a transposition in registers except B when its
// columns run along k. Packing also gathers rows and widens 16-bit storage to float, from there on
// everything is float or double; but with AVX-512 BF16 two bf16 operands stay as they are, in pairs of
// neighbouring k that one instruction multiplies and adds to a float. Where there is a matrix unit
// (amx.h) bf16's A is in rows always, and k is filled up with zeros to a whole tile's.
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

// Of the matrix unit that multiplies bf16, where there is one: rows of a tile of A, and its k.
#if defined(__AMX_BF16__)
constexpr bool kMatrixUnit = true;
#else
constexpr bool kMatrixUnit = false;
#endif
constexpr int kUnitRows = 16, kUnitDepth = 32;

// P is the type of packed operands: float, double or, as it is, BFloat16. Sums are of type Sum<P>.
template <class P>
using Sum = Accumulator<P>;
// Rows of A that are packed together.
template <class P>
constexpr int kPackedRows = kMatrixUnit && sizeof(P) == 2 ? kUnitRows : kTileRows;
// Neighbours along k that are multiplied by one instruction; the last group is filled with zeros.
template <class P>
constexpr int kGroup = sizeof(P) != 2 ? 1
                       : kMatrixUnit  ? kUnitDepth
                                      : 2;
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
static_assert(kMaxRows % kUnitRows == 0 && kMaxRowsRounded % kUnitRows == 0);
static_assert(kStepK<BFloat16> % kUnitDepth == 0);
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

// Before elements [first, first + k) of rows that lie along k are packed: where a step begins a page's worth of
// GemmOperand::whole_k, all of that is read, in longer runs than a step's.
template <class S>
void touch_pages(const GemmOperand& operand, std::int64_t begin, std::int64_t end,
                 std::int64_t first, std::int64_t k) {
  constexpr std::int64_t kPage = 4096 / sizeof(S);
  if (operand.whole_k <= k) return touch_rows<S>(operand, begin, end, first, k);
  const std::int64_t page = (first + k - 1) / kPage * kPage;  // the last begun within the step
  if (first != 0 && page < first) return;
  const std::int64_t from = first == 0 ? 0 : page;
  const std::int64_t to = page + kPage < operand.whole_k ? page + kPage : operand.whole_k;
  touch_rows<S>(operand, begin, end, from, to - from);
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
    touch_pages<S>(b, j, j + n, first, k);
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
  for (std::int64_t p = 0; p < k; p += kUnitDepth) {
    touch_rows<BFloat16>(a, first + p, first + (p + kUnitDepth < k ? p + kUnitDepth : k), 0, rows);
    for (std::int64_t i = 0; i < rows; i += kUnitRows) {
      const int n = static_cast<int>(rows - i < kUnitRows ? rows - i : kUnitRows);
      Vec<float> block[16] = {};  // pairs of k by rows, then rows by pairs
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
    touch_pages<BFloat16>(b, j, j + n, first, k);
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

}  // namespace
}  // namespace dropless::cpu
