// A warp's part of a 128 x 128 tile on the tensor cores, as rungs 3 and 4 share it: 64 rows x 32 columns
// by mma.sync m16n8k16 (PTX ISA, "mma"), operands through ldmatrix.
#pragma once

#include "examples/ladder/row_tile.cuh"
#include "src/cuda/device/ptx.cuh"

namespace dropless::ladder {

inline constexpr int kMmaThreads =
    256;                              // eight warps, two along the rows by four along the columns
inline constexpr int kMmaSlice = 32;  // along k
// Bytes from one row of a slice to the next: 64 and 16 more, so that the eight rows of an ldmatrix
// lie in different banks.
inline constexpr int kMmaPitch = 80;
inline constexpr int kMmaOperandBytes = 128 * kMmaPitch;

class WarpTile {
 public:
  __device__ __forceinline__ WarpTile()
      : warp_(static_cast<int>(threadIdx.x) / 32), lane_(threadIdx.x % 32) {}

  // += x w^T over one slice: 128 rows of each operand in shared memory.
  __device__ __forceinline__ void multiply(std::uint32_t x, std::uint32_t w) {
#pragma unroll
    for (int k = 0; k < kMmaSlice; k += 16) {
      std::uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) cuda::ptx::ldmatrix_x4(place(x, row0() + 16 * i, k), a[i]);
#pragma unroll
      for (int j = 0; j < 2; ++j) cuda::ptx::ldmatrix_x4(place(w, column0() + 16 * j, k), b[j]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) mma(sums_[i][j], a[i], b[j / 2][j % 2], b[j / 2][j % 2 + 2]);
      }
    }
  }

  // Lane l holds rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next, of each 16 x 8 block.
  __device__ __forceinline__ void store(__nv_bfloat16* out, int pitch, int rows) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row0() + 16 * i + 8 * half + lane_ / 4;
        if (row >= rows) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const std::int64_t at =
              static_cast<std::int64_t>(row) * pitch + column0() + 8 * j + 2 * (lane_ % 4);
          *reinterpret_cast<std::uint32_t*>(out + at) =
              cuda::ptx::pack<__nv_bfloat16>(sums_[i][j][2 * half], sums_[i][j][2 * half + 1]);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ int row0() const { return warp_ / 4 * 64; }
  __device__ __forceinline__ int column0() const { return warp_ % 4 * 32; }
  // This lane's row of four 8 x 8 matrices, two along the rows by two along k.
  __device__ __forceinline__ std::uint32_t place(std::uint32_t operand, int row, int k) const {
    return operand + (row + lane_ % 16) * kMmaPitch + k * 2 + lane_ / 16 * 16;
  }
  static __device__ __forceinline__ void mma(float (&d)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }

  float sums_[4][4][4] = {};
  int warp_;
  int lane_;
};

}  // namespace dropless::ladder
