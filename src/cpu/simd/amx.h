// Register tiles of bf16 products on the matrix unit of recent x86-64 servers (AMX): an instruction
// multiplies 16 rows of A by 16 columns of B over 32 of k and adds to 16 x 16 floats. Included by gemm.h
// where the instruction set has it, with packed A always in rows along k, both filled up with zeros to 32
// of k. The tile unit's sums are fp32, its subnormal results zero.
#pragma once

#include <immintrin.h>

#include "src/cpu/simd/vec.h"

namespace dropless::cpu {
namespace {

constexpr int kAmxRows = 16;  // of a tile of A and of the sums; as many columns
constexpr int kAmxDepth = 32;

// While it lives, this thread's eight tiles are of 16 rows of 64 bytes. Other libraries' kernels set them up
// for themselves and look for none of ours.
class AmxTiles {
 public:
  AmxTiles() {
    Config config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = kAmxRows;
    }
    _tile_loadconfig(&config);
  }
  ~AmxTiles() { _tile_release(); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

 private:
  struct alignas(64) Config {
    std::uint8_t palette;
    std::uint8_t start_row;
    std::uint8_t reserved[14];
    std::uint16_t row_bytes[16];
    std::uint8_t rows[16];
  };
  static_assert(sizeof(Config) == 64);
};

// sums [32, 32] = A B over `depth`, a multiple of 32: up to two tiles of rows, `a_stride` elements apart, by
// a panel of 32 columns of B. What is not `two_rows` or `two_cols` is left as it was.
template <bool two_rows, bool two_cols>
void amx_multiply(std::int64_t depth, const BFloat16* a, std::int64_t a_stride, const BFloat16* b,
                  float* sums) {
  const std::int64_t row_bytes = a_stride * 2;
  _tile_zero(0);
  if constexpr (two_cols) _tile_zero(1);
  if constexpr (two_rows) _tile_zero(2);
  if constexpr (two_rows && two_cols) _tile_zero(3);
  for (std::int64_t p = 0; p < depth; p += kAmxDepth) {
    const BFloat16* b_p = b + p * 32;
    _tile_loadd(4, a + p, row_bytes);
    _tile_loadd(6, b_p, 128);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (two_rows) {
      _tile_loadd(5, a + kAmxRows * a_stride + p, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (two_cols) {
      _tile_loadd(7, b_p + 32, 128);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (two_rows) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 128);
  if constexpr (two_cols) _tile_stored(1, sums + 16, 128);
  if constexpr (two_rows) _tile_stored(2, sums + 16 * 32, 128);
  if constexpr (two_rows && two_cols) _tile_stored(3, sums + 16 * 32 + 16, 128);
}

}  // namespace
}  // namespace dropless::cpu
