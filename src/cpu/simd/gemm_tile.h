// The register tile of a matrix product, and a block's tiles over packed operands (gemm_pack.h).
#pragma once

#include "src/cpu/simd/gemm_pack.h"

namespace dropless::cpu {
namespace {

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

template <class P>
void run_tiles(OperandLayout a_layout, std::int64_t rows, std::int64_t cols, std::int64_t k,
               const P* a, const P* b, const TileOutput<Sum<P>>& out, bool add) {
  a_layout == OperandLayout::kAlongK
      ? run_tiles<P, OperandLayout::kAlongK>(rows, cols, k, a, b, out, add)
      : run_tiles<P, OperandLayout::kAcrossK>(rows, cols, k, a, b, out, add);
}

}  // namespace
}  // namespace dropless::cpu
