// What rungs 5 and 6 share: tensor maps of the operands and a warpgroup's 64 rows from its accumulators
// to memory.
#pragma once

#include "dropless/view.h"
#include "examples/ladder/row_tile.cuh"
#include "src/cuda/device/ptx.cuh"
#include "src/cuda/device/wgmma.cuh"
#include "src/cuda/tensor_map.h"

namespace dropless::ladder {

inline constexpr int kSlice = 64;  // along k: 128 bytes, what the swizzle spans

// Boxes of `rows` rows by 64 along k.
inline CUtensorMap x_map(const Problem& p, int rows) {
  return cuda::make_tensor_map(
      {.data = p.x_RK, .dims = {p.k, p.rows, 1}, .row_pitch = p.k, .box = {kSlice, rows}});
}
inline CUtensorMap w_map(const Problem& p, int rows) {
  return cuda::make_tensor_map({.data = p.w_ENK,
                                .dims = {p.k, p.n, p.experts},
                                .row_pitch = p.k,
                                .batch_pitch = static_cast<std::int64_t>(p.n) * p.k,
                                .box = {kSlice, rows}});
}

template <int kColumns>
__device__ __forceinline__ void fence(float (&sums)[kColumns / 2]) {
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) cuda::ptx::fence_register(sums[i]);
}

// += x w^T over one slice, 64 rows of x: four wgmmas of 16 along k, issued, not waited for.
template <int kColumns>
__device__ __forceinline__ void multiply_slice(float (&sums)[kColumns / 2], std::uint32_t x,
                                               std::uint32_t w, bool first) {
  using cuda::Major;
  const std::uint64_t a = cuda::wgmma_descriptor<Major::kK>(x);
  const std::uint64_t b = cuda::wgmma_descriptor<Major::kK>(w);
  fence<kColumns>(sums);
  cuda::ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSlice / 16; ++step) {
    cuda::wgmma<__nv_bfloat16, kColumns, Major::kK, Major::kK>(
        sums, a + step * cuda::kWgmmaStepK<Major::kK>, b + step * cuda::kWgmmaStepK<Major::kK>,
        !first || step != 0);
  }
  cuda::ptx::wgmma_commit();
  fence<kColumns>(sums);
}

// Warp w of the warpgroup holds rows 16 w .. 16 w + 15 (wgmma.cuh has the layout). `out`: the
// warpgroup's first row.
template <int kColumns>
__device__ __forceinline__ void store_sums(const float (&sums)[kColumns / 2], __nv_bfloat16* out,
                                           int pitch, int rows) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = static_cast<int>(threadIdx.x) / 32 % 4 * 16 + 8 * half + lane / 4;
    if (row >= rows) continue;
    __nv_bfloat16* at = out + static_cast<std::int64_t>(row) * pitch + 2 * (lane % 4);
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      *reinterpret_cast<std::uint32_t*>(at + 8 * j) =
          cuda::ptx::pack<__nv_bfloat16>(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]);
    }
  }
}

}  // namespace dropless::ladder
