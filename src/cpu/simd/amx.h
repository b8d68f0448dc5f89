// bf16 products on the matrix unit of recent x86-64 servers (AMX): an instruction multiplies 16 rows of A by
// 16 columns of B over 32 of k and adds to 16 x 16 floats. Included by gemm.h where the instruction set has
// it. Sums are fp32; subnormal operands and results count as zero.
//
// Tiles are multiplied whole. Past the last row of A lies what the slot held before, in sums that nobody
// stores; k and the columns of B are filled up with zeros.
#pragma once

#include <immintrin.h>

#include "src/cpu/simd/gemm_tile.h"

namespace dropless::cpu {
namespace {

constexpr int kUnitCols = kUnitRows;        // of a tile of sums
constexpr int kPairRows = 2 * kUnitRows;    // of two tiles of A, multiplied together
constexpr int kPairCols = 2 * kUnitCols;    // of two tiles of B: a panel
constexpr int kSumBytes = kPairCols * 4;    // from row to row of the sums
constexpr int kPanelBytes = kPairCols * 4;  // from pair to pair of k in a panel of B
static_assert(kPairCols == kTileCols<BFloat16>);

// The tile registers are one thread's, and another library's kernels may not be using them at the same time:
// what they have set up is lost. Each sets them up for itself, as oneDNN and MKL do.
struct alignas(64) AmxConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {kUnitRows, kUnitRows, kUnitRows, kUnitRows,
                           kUnitRows, kUnitRows, kUnitRows, kUnitRows};
};
static_assert(sizeof(AmxConfig) == 64);
constexpr AmxConfig kAmxConfig = {};

// While it lives, this thread has eight tiles of 16 rows of 64 bytes.
class AmxTiles {
 public:
  AmxTiles() {
    _tile_loadconfig(&kAmxConfig);
    // GCC 12 does not know that tile loads read memory: what was packed must be there.
    asm volatile("" ::: "memory");
  }
  ~AmxTiles() { _tile_release(); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
};

// sums [32, 32] = A B over `depth`, a multiple of 32: one or two tiles of rows by those of a panel of B. What
// is not `two_rows` or `two_cols` is left as it was.
template <bool two_rows, bool two_cols>
void amx_multiply(std::int64_t depth, const BFloat16* a, const BFloat16* b, float* sums) {
  constexpr std::int64_t kRow = kRowStride<BFloat16>;
  _tile_zero(0);
  if constexpr (two_cols) _tile_zero(1);
  if constexpr (two_rows) _tile_zero(2);
  if constexpr (two_rows && two_cols) _tile_zero(3);
  for (std::int64_t p = 0; p < depth; p += kUnitDepth) {
    const BFloat16* b_p = b + p * kPairCols;
    _tile_loadd(4, a + p, kRow * 2);
    _tile_loadd(6, b_p, kPanelBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (two_rows) {
      _tile_loadd(5, a + kUnitRows * kRow + p, kRow * 2);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (two_cols) {
      _tile_loadd(7, b_p + 2 * kUnitCols, kPanelBytes);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (two_rows) _tile_dpbf16ps(3, 5, 7);
    }
  }
  float* lower = sums + kUnitRows * kPairCols;
  _tile_stored(0, sums, kSumBytes);
  if constexpr (two_cols) _tile_stored(1, sums + kUnitCols, kSumBytes);
  if constexpr (two_rows) _tile_stored(2, lower, kSumBytes);
  if constexpr (two_rows && two_cols) _tile_stored(3, lower + kUnitCols, kSumBytes);
}

// Of sums [32, 32] the first rows and columns, to where they go.
void store_sums(int rows, int cols, const float* sums, const TileOutput<float>& out, bool add) {
  const auto for_vectors = [&](auto&& put) {
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < cols; j += kUnitCols) {
        const int n = cols - j < kUnitCols ? cols - j : kUnitCols;
        Vec<float> v = load(sums + i * kPairCols + j);
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

// out [rows, cols] (+)= packed A times packed B.
void run_tiles(OperandLayout, std::int64_t rows, std::int64_t cols, std::int64_t k,
               const BFloat16* a, const BFloat16* b, const TileOutput<float>& out, bool add) {
  const AmxTiles tiles;
  const std::int64_t depth = whole_groups<BFloat16>(k);
  alignas(64) float sums[kPairRows * kPairCols];
  for (std::int64_t i = 0; i < rows; i += kPairRows) {
    const int n_rows = static_cast<int>(rows - i < kPairRows ? rows - i : kPairRows);
    for (std::int64_t j = 0; j < cols; j += kPairCols) {
      const int n_cols = static_cast<int>(cols - j < kPairCols ? cols - j : kPairCols);
      const bool two_rows = n_rows > kUnitRows, two_cols = n_cols > kUnitCols;
      const auto multiply = two_rows
                                ? two_cols ? amx_multiply<true, true> : amx_multiply<true, false>
                            : two_cols ? amx_multiply<false, true>
                                       : amx_multiply<false, false>;
      multiply(depth, a + i * kRowStride<BFloat16>, b + j * depth, sums);
      store_sums(n_rows, n_cols, sums, out.at(i, j), add);
    }
  }
}

}  // namespace
}  // namespace dropless::cpu
