// Blocks of few rows of A, as when text is generated: B comes from memory and its bytes are the time.
// It is read once, as it lies; packing it would take longer than the product.
//
// As in gemm.h each output element is a chain of additions in the order of k: lanes of a vector side
// by side where B runs along k.
#pragma once

#include "src/cpu/simd/gemm_tile.h"

namespace dropless::cpu {
namespace {

constexpr int kFewRows = 8;
constexpr std::int64_t kFewDepth = 2048;            // of A's rows that is at hand at a time
constexpr std::int64_t kFewPitch = kFewDepth + 32;  // of those rows
constexpr int kFewCols = 2048;                      // of a block; long runs along B's rows
constexpr int kFewSteps = 8;                        // rows of B across k that are added together
static_assert(kFewRows * (kFewPitch + kFewCols) * 8 <= kGemmSlotBytes);
static_assert(kTouchedRows % kFewSteps == 0 && kFewDepth % kTouchedRows == 0);

template <class T>
[[gnu::always_inline]] inline T sum_lanes(Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps(v);
  if constexpr (sizeof(T) == 8) return _mm512_reduce_add_pd(v);
#endif
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Columns that share a load of A: as many accumulators as registers have room for.
constexpr int few_columns(int rows) {
  return rows * 4 <= kTileRows + 2 ? 4 : rows * 2 <= kTileRows + 2 ? 2 : 1;
}

// One vector of an operand along k, B's widened to A's type P: of kGroup neighbours a lane.
template <class P, class S>
[[gnu::always_inline]] inline auto load_along(const S* p) {
  if constexpr (sizeof(P) == 2) {
    return load_group(p);
  } else {
    return load_as<P>(p);
  }
}

// sums[i, c] (+)= a[i, :k] . b[c, :k] for the first n of `rows` rows of A.
template <class P, class S, int rows, int columns>
void dot_columns(const P* a, int n, const S* b, std::int64_t b_stride, std::int64_t k, Sum<P>* sums,
                 std::int64_t stride, bool add) {
  using T = Sum<P>;
  constexpr int L = kVectorBytes / static_cast<int>(sizeof(P));
  Vec<T> sum[rows][columns] = {};
  std::int64_t p = 0;
  for (; p + L <= k; p += L) {
    decltype(load_along<P>(b)) b_p[columns];
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) b_p[c] = load_along<P>(b + c * b_stride + p);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const auto a_p = load_along<P>(a + i * kFewPitch + p);
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) sum[i][c] = fma(a_p, b_p[c], sum[i][c]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    if (i >= n) break;
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) {
      T total = sum_lanes<T>(sum[i][c]);
      for (std::int64_t q = p; q < k; ++q) {
        total += static_cast<T>(to_float(a[i * kFewPitch + q])) *
                 static_cast<T>(to_float(b[c * b_stride + q]));
      }
      T* at = sums + i * stride + c;
      *at = add ? *at + total : total;
    }
  }
}

template <class P, class S, int rows>
void few_rows_along(const P* a, int n, const GemmOperand& b, std::int64_t cols, std::int64_t first,
                    std::int64_t k, Sum<P>* sums, std::int64_t stride, bool add) {
  constexpr int kColumns = few_columns(rows);
  const S* from = static_cast<const S*>(b.data) + first;
  for (std::int64_t j = 0; j < cols;) {
    touch_ahead<S>(b, j, cols, 0, first, k);
    if (j + kColumns <= cols) {
      dot_columns<P, S, rows, kColumns>(a, n, from + j * b.stride, b.stride, k, sums + j, stride,
                                        add);
      j += kColumns;
    } else {
      dot_columns<P, S, rows, 1>(a, n, from + j * b.stride, b.stride, k, sums + j, stride, add);
      ++j;
    }
  }
}

// sums[i, :] (+)= sum over s < steps of a[i, s] b[s, :]
template <class T, class S, int steps>
void add_steps(const T* a, int n, const S* b, std::int64_t b_stride, std::int64_t cols, T* sums,
               std::int64_t stride, bool add) {
  constexpr int L = kLanes<T>;
  std::int64_t j = 0;
  for (; j + L <= cols; j += L) {
    Vec<T> b_j[steps];
#pragma GCC unroll 8
    for (int s = 0; s < steps; ++s) b_j[s] = load_as<T>(b + s * b_stride + j);
    for (int i = 0; i < n; ++i) {
      T* at = sums + i * stride + j;
      Vec<T> sum = add ? load(at) : Vec<T>{};
#pragma GCC unroll 8
      for (int s = 0; s < steps; ++s) sum = fma(broadcast(a[i * kFewPitch + s]), b_j[s], sum);
      store(at, sum);
    }
  }
  for (; j < cols; ++j) {
    for (int i = 0; i < n; ++i) {
      T* at = sums + i * stride + j;
      T sum = add ? *at : T(0);
      for (int s = 0; s < steps; ++s) {
        sum += a[i * kFewPitch + s] * static_cast<T>(to_float(b[s * b_stride + j]));
      }
      *at = sum;
    }
  }
}

#if defined(__AVX512BF16__)
// Where the pairs of columns 0 to 15, and 16 to 31, stand in two rows of 32.
struct PairOrder {
  alignas(64) std::uint16_t of[2][32] = {};
  constexpr PairOrder() {
    for (int i = 0; i < 32; ++i) {
      of[i / 16][i % 16 * 2] = static_cast<std::uint16_t>(i);
      of[i / 16][i % 16 * 2 + 1] = static_cast<std::uint16_t>(32 + i);
    }
  }
};
constexpr PairOrder kPairOrder;

// The same of bf16: two neighbouring rows of B are made pairs, in the order of columns.
template <class, class, int steps>
void add_steps(const BFloat16* a, int n, const BFloat16* b, std::int64_t b_stride,
               std::int64_t cols, float* sums, std::int64_t stride, bool add) {
  static_assert(steps == 1 || steps % 2 == 0);
  // A single step's pair has a zero of its own: what follows in A may be infinite.
  const auto pair = [](const BFloat16* at) {
    if constexpr (steps > 1) return broadcast_group(at);
    std::uint16_t bits;
    __builtin_memcpy(&bits, at, sizeof(bits));
    return (__m512bh)_mm512_set1_epi32(bits);
  };
  constexpr int kPairs = (steps + 1) / 2;
  const __m512i low = _mm512_load_si512(kPairOrder.of[0]);
  const __m512i high = _mm512_load_si512(kPairOrder.of[1]);
  for (std::int64_t j = 0; j < cols; j += 32) {
    const auto mask = static_cast<__mmask32>(cols - j < 32 ? (1u << (cols - j)) - 1 : ~0u);
    __m512bh b_j[kPairs][2];
#pragma GCC unroll 4
    for (int s = 0; s < kPairs; ++s) {
      const BFloat16* row = b + 2 * s * b_stride + j;
      const __m512i even = _mm512_maskz_loadu_epi16(mask, row);
      const __m512i odd =
          steps == 1 ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(mask, row + b_stride);
      b_j[s][0] = (__m512bh)_mm512_permutex2var_epi16(even, low, odd);
      b_j[s][1] = (__m512bh)_mm512_permutex2var_epi16(even, high, odd);
    }
    const auto left = static_cast<int>(cols - j < 32 ? cols - j : 32);
    for (int i = 0; i < n; ++i) {
      const BFloat16* a_i = a + i * kFewPitch;
      for (int half = 0; half < 2; ++half) {
        const int lanes = left - 16 * half < 16 ? left - 16 * half : 16;
        if (lanes <= 0) break;
        float* at = sums + i * stride + j + 16 * half;
        Vec<float> sum = add ? load_first(at, lanes) : Vec<float>{};
#pragma GCC unroll 4
        for (int s = 0; s < kPairs; ++s) sum = fma(pair(a_i + 2 * s), b_j[s][half], sum);
        store_first(at, sum, lanes);
      }
    }
  }
}
#endif

template <class P, class S>
void few_rows_across(const P* a, int n, const GemmOperand& b, std::int64_t cols, std::int64_t first,
                     std::int64_t k, Sum<P>* sums, std::int64_t stride, bool add) {
  const S* from = static_cast<const S*>(b.data) + first * b.stride;
  for (std::int64_t p = 0; p < k;) {
    touch_ahead<S>(b, p, k, first, 0, cols);
    const bool whole = p + kFewSteps <= k;
    if (whole) {
      add_steps<P, S, kFewSteps>(a + p, n, from + p * b.stride, b.stride, cols, sums, stride,
                                 add || p > 0);
    } else {
      add_steps<P, S, 1>(a + p, n, from + p * b.stride, b.stride, cols, sums, stride, add || p > 0);
    }
    p += whole ? kFewSteps : 1;
  }
}

// Calls visitor with a zero of the storage type of an operand that is multiplied as type P.
template <class P, class Visitor>
void visit_operand(DType dtype, Visitor&& visitor) {
  if constexpr (sizeof(P) == 2) {
    visitor(P{});
  } else {
    visit_storage<P>(dtype, visitor);
  }
}

// sums [n, cols] (+)= the product of n <= kFewRows rows of A (along k) and B; `to`: room for
// kFewRows * kFewPitch of P.
template <class P>
void few_rows_product(const GemmOperand& a, const GemmOperand& b, OperandLayout b_layout, int n,
                      std::int64_t cols, std::int64_t k, P* to, Sum<P>* sums, std::int64_t stride,
                      bool add) {
  const auto rows_of = [&](auto visitor) {
    if (n == 1) return visitor(std::integral_constant<int, 1>{});
    if (n == 2) return visitor(std::integral_constant<int, 2>{});
    if (n <= 4) return visitor(std::integral_constant<int, 4>{});
    visitor(std::integral_constant<int, kFewRows>{});
  };
  for (std::int64_t first = 0; first < k; first += kFewDepth) {
    const std::int64_t depth = k - first < kFewDepth ? k - first : kFewDepth;
    visit_operand<P>(a.dtype, [&](auto zero) {
      using S = decltype(zero);
      for (int i = 0; i < n; ++i) {
        const S* from = static_cast<const S*>(a.data) + source_row(a, i) * a.stride + first;
        if constexpr (sizeof(P) == 2) {
          __builtin_memcpy(to + i * kFewPitch, from, static_cast<std::size_t>(depth) * sizeof(P));
        } else {
          copy_row(from, to + i * kFewPitch, depth);
        }
      }
    });
    // Rows that are multiplied beside the last n are never stored, but must be numbers to be fast.
    for (int i = n; i < kFewRows; ++i) __builtin_memset(to + i * kFewPitch, 0, depth * sizeof(P));
    visit_operand<P>(b.dtype, [&](auto zero) {
      using S = decltype(zero);
      if (b_layout == OperandLayout::kAcrossK) {
        return few_rows_across<P, S>(to, n, b, cols, first, depth, sums, stride, add || first > 0);
      }
      rows_of([&](auto rows) {
        few_rows_along<P, S, rows()>(to, n, b, cols, first, depth, sums, stride, add || first > 0);
      });
    });
  }
}

}  // namespace
}  // namespace dropless::cpu
