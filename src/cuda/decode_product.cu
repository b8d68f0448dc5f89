// The product of up to eight rows with a matrix, which takes as long as the matrix takes to be
// read. The first loads do not wait for the kernel before this one, which is short and leaves
// memory idle. Formula: include/dropless/decode.h.
//
//   one row     a warp has a row of the matrix at a time, 2,048 columns in flight; fma, the row of x from
//               shared memory
//   more rows   a CTA has 16 rows of the matrix at a time, its warps a part of the columns each, by mma.sync
//               m16n8k16 with x as the 8 columns; the warps' sums are added in shared memory
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "src/common/decode_args.h"
#include "src/cuda/decode.cuh"
#include "src/cuda/decode.h"
#include "src/cuda/device/mma_ptx.cuh"
#include "src/cuda/element.h"

namespace dropless::cuda {
namespace {

constexpr int kCtas = 2;    // of a multiprocessor
constexpr int kLoads = 8;   // of a lane at a time, from one row of the matrix
constexpr int kVector = 8;  // elements of a load

template <class Element>
struct Product {
  const Element *x_BK, *w_NK;
  const float* bias_N;
  Element* out_BN;
  int rows, n, k;
};

// Read once.
__device__ __forceinline__ uint4 load_streamed(const void* from) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
}

template <class Element>
__device__ __forceinline__ float add_products(uint4 x, uint4 y, float sum) {
  const auto *a = reinterpret_cast<const Element*>(&x), *b = reinterpret_cast<const Element*>(&y);
#pragma unroll
  for (int i = 0; i < kVector; i += 2) {
    const float2 p = two_floats(a + i), q = two_floats(b + i);
    sum = fmaf(p.y, q.y, fmaf(p.x, q.x, sum));
  }
  return sum;
}

constexpr int kRowThreads = 512;
constexpr int kRowWarps = kRowThreads / 32;

template <class Element>
__global__ void __launch_bounds__(kRowThreads, kCtas) row_kernel(Product<Element> p) {
  extern __shared__ uint4 x[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int vectors = p.k / kVector;
  uint4 w[kLoads];
  const auto load = [&](int n, int first) {
    const auto* from = reinterpret_cast<const uint4*>(p.w_NK + static_cast<std::int64_t>(n) * p.k);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = first + lane + 32 * i;
      w[i] = at < vectors ? load_streamed(from + at) : make_uint4(0, 0, 0, 0);
    }
  };
  ptx::launch_dependents();
  int n = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  bool loaded = n < p.n;
  if (loaded) load(n, 0);
  ptx::dependency_wait();
  for (int i = threadIdx.x; i < vectors; i += kRowThreads) {
    x[i] = reinterpret_cast<const uint4*>(p.x_BK)[i];
  }
  __syncthreads();
  for (; n < p.n; n += kRowWarps * static_cast<int>(gridDim.x)) {
    float sum = 0.0f;
    for (int first = 0; first < vectors; first += 32 * kLoads) {
      if (!loaded) load(n, first);
      loaded = false;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int at = first + lane + 32 * i;
        if (at < vectors) sum = add_products<Element>(x[at], w[i], sum);
      }
    }
    sum = warp_sum(sum) + (p.bias_N == nullptr ? 0.0f : p.bias_N[n]);
    if (lane == 0) p.out_BN[n] = element<Element>(sum);
  }
}

constexpr int kRowsThreads = 256;
constexpr int kRowsWarps = kRowsThreads / 32;
constexpr int kTile = 16;  // rows of the matrix
// Columns of a fragment pair: a lane has 8 neighbours of them where m16n8k16 wants 2 and 2 of 16,
// twice. The order of columns is free, as long as both operands have the same.
constexpr int kBlock = 32;

template <class Element>
__global__ void __launch_bounds__(kRowsThreads, kCtas) rows_kernel(Product<Element> p) {
  __shared__ float parts[2][kRowsWarps][8 * kTile];  // in turns: one barrier a tile
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tiles = (p.n + kTile - 1) / kTile;
  const auto column = [&](int first, int i) {
    return first + (warp * kLoads + i) * kBlock + lane % 4 * kVector;
  };
  uint4 low[kLoads], high[kLoads];
  const auto load = [&](int tile, int first) {
    const int n = tile * kTile + lane / 4;
    const Element* from = p.w_NK + static_cast<std::int64_t>(n) * p.k;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = column(first, i);
      low[i] = n < p.n && k < p.k ? load_streamed(from + k) : make_uint4(0, 0, 0, 0);
      high[i] = n + 8 < p.n && k < p.k ? load_streamed(from + std::int64_t{8} * p.k + k)
                                       : make_uint4(0, 0, 0, 0);
    }
  };
  ptx::launch_dependents();
  int tile = static_cast<int>(blockIdx.x);  // there are no more CTAs than tiles
  load(tile, 0);
  ptx::dependency_wait();
  for (int turn = 0; tile < tiles; turn ^= 1) {
    float sums[4] = {};
    for (int first = 0; first < p.k; first += kRowsWarps * kLoads * kBlock) {
      if (first > 0) load(tile, first);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int k = column(first, i), row = lane / 4;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (row < p.rows && k < p.k) {
          x = *reinterpret_cast<const uint4*>(p.x_BK + static_cast<std::int64_t>(row) * p.k + k);
        }
        const std::uint32_t a[2][4] = {{low[i].x, high[i].x, low[i].y, high[i].y},
                                       {low[i].z, high[i].z, low[i].w, high[i].w}};
        ptx::mma(sums, a[0], x.x, x.y, Element{});
        ptx::mma(sums, a[1], x.z, x.w, Element{});
      }
    }
    const int done = tile;
    tile += static_cast<int>(gridDim.x);
    if (tile < tiles) load(tile, 0);  // under way while the sums are added
    // [row of x][row of the matrix]
    float* part = parts[turn][warp] + lane % 4 * 2 * kTile + lane / 4;
    part[0] = sums[0];
    part[kTile] = sums[1];
    part[8] = sums[2];
    part[kTile + 8] = sums[3];
    __syncthreads();
    const int row = static_cast<int>(threadIdx.x) / kTile;
    const int n = done * kTile + static_cast<int>(threadIdx.x) % kTile;
    if (row >= p.rows || n >= p.n) continue;
    float sum = p.bias_N == nullptr ? 0.0f : p.bias_N[n];
#pragma unroll
    for (int w = 0; w < kRowsWarps; ++w) sum += parts[turn][w][threadIdx.x];
    p.out_BN[static_cast<std::int64_t>(row) * p.n + n] = element<Element>(sum);
  }
}

}  // namespace

void decode_product(const DecodeProductArgs& args, Stream stream) {
  for_16_bit(args.dtype, "decode_product", [&](auto type) {
    using Element = decltype(type);
    const Product<Element> product{static_cast<const Element*>(args.x_BK),
                                   static_cast<const Element*>(args.w_NK),
                                   args.bias_N,
                                   static_cast<Element*>(args.out_BN),
                                   static_cast<int>(args.rows),
                                   static_cast<int>(args.n),
                                   static_cast<int>(args.k)};
    const auto ctas = [&](std::int64_t rows_of_a_cta) {
      return std::min<std::int64_t>(kCtas * multiprocessors(),
                                    (args.n + rows_of_a_cta - 1) / rows_of_a_cta);
    };
    if (args.rows == 1) {
      const auto shared_bytes =
          static_cast<int>(args.k * static_cast<std::int64_t>(sizeof(Element)));
      launch_soon(row_kernel<Element>, ctas(kRowWarps), kRowThreads, shared_bytes, 1, stream,
                  product);
    } else {
      launch_soon(rows_kernel<Element>, ctas(kTile), kRowsThreads, 0, 1, stream, product);
    }
  });
}

}  // namespace dropless::cuda
