// From accumulators to memory: each consumer warp stages 16 rows by 128 bytes in one of its slots
// and lets the copy engine store them. Rows past the end of an expert's last tile belong to the
// next expert, and the copy engine cannot clip there: those chunks go out by predicated 16-byte
// stores.
#pragma once

#include "scheduler.cuh"
#include "tile.cuh"

namespace dropless::cuda {

// Where a 16-byte chunk of a row lies under the 128-byte swizzle.
__device__ __forceinline__ std::uint32_t swizzled(int row, int chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

// 16 rows x 64 columns (32 accumulators of a lane) as bf16 into a slot.
__device__ __forceinline__ void stage_bf16(const float* acc, std::uint32_t slot, int lane) {
  const int row = lane & 15;
  const int half = lane >> 4;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const float* d = acc + pair * 8;
    ptx::stmatrix_x4(slot + swizzled(row, 2 * pair + half), ptx::pack_bf16(d[0], d[1]),
                     ptx::pack_bf16(d[2], d[3]), ptx::pack_bf16(d[4], d[5]),
                     ptx::pack_bf16(d[6], d[7]));
  }
}

// 16 rows x 32 columns (16 accumulators of a lane) as fp32 into a slot.
__device__ __forceinline__ void stage_fp32(const float* acc, std::uint32_t slot, int lane) {
#pragma unroll
  for (int block = 0; block < 4; ++block) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + 8 * half;
      const int chunk = 2 * block + (lane & 3) / 2;
      ptx::store_shared(slot + swizzled(row, chunk) + (lane & 1) * 8,
                        make_float2(acc[4 * block + 2 * half], acc[4 * block + 2 * half + 1]));
    }
  }
}

enum class StoreMode { kOverwrite, kAdd };

// Stores the product itself. Element is __nv_bfloat16 or float; kAdd adds into D (float only).
template <class Tile, class Element, StoreMode kMode>
class StoreEpilogue {
 public:
  struct Params {
    CUtensorMap map;     // of D: boxes of 16 rows by 128 bytes
    Element* d;          // for chunks that the copy engine cannot clip
    std::int64_t pitch;  // of D's rows, elements
    int columns;         // of D
  };
  static constexpr int kColumns = 128 / sizeof(Element);

  __device__ __forceinline__ StoreEpilogue(const Params& params, std::uint32_t slots, int lane)
      : params_(params), slots_(slots), lane_(lane) {}

  // acc: this warp's rows of one wgmma tile, kBlockN columns; `row` their place in the CTA tile.
  __device__ __forceinline__ void operator()(const float (&acc)[Tile::kBlockN / 2],
                                             const Work& work, int row) {
    const int rows = min(16, work.rows - row);
    if (rows <= 0) return;
#pragma unroll
    for (int column = 0; column < Tile::kBlockN; column += kColumns) {
      const std::uint32_t slot = slots_ + next_ * kSlotBytes;
      next_ = next_ + 1 == Tile::kSlots ? 0 : next_ + 1;
      if (lane_ == 0) ptx::tma_store_wait_read<Tile::kSlots - 1>();
      __syncwarp();
      if constexpr (sizeof(Element) == 2) {
        stage_bf16(acc + column / 2, slot, lane_);
      } else {
        stage_fp32(acc + column / 2, slot, lane_);
      }
      ptx::fence_proxy_async();
      __syncwarp();
      if (rows < 16) copy_rows(slot, work.m + row, rows, work.n + column);
      if (lane_ == 0) {
        if (rows == 16) {
          if constexpr (kMode == StoreMode::kAdd) {
            ptx::tma_reduce_add(&params_.map, slot, work.n + column, work.m + row, work.batch_d);
          } else {
            ptx::tma_store(&params_.map, slot, work.n + column, work.m + row, work.batch_d);
          }
        }
        ptx::tma_store_commit();  // also when empty: slots are counted in groups
      }
    }
  }

  // Before the CTA's shared memory goes away.
  __device__ __forceinline__ void finish() {
    if (lane_ == 0) ptx::tma_store_wait_read<0>();
  }

 private:
  __device__ __forceinline__ void copy_rows(std::uint32_t slot, int row0, int rows,
                                            int column0) const {
    constexpr int kChunk = 16 / sizeof(Element);
    for (int i = lane_; i < rows * 8; i += 32) {
      const int row = i / 8;
      const int column = column0 + (i % 8) * kChunk;
      if (column < params_.columns) {
        const uint4 value = ptx::load_shared16(slot + swizzled(row, i % 8));
        *reinterpret_cast<uint4*>(params_.d + (row0 + row) * params_.pitch + column) = value;
      }
    }
  }

  const Params& params_;
  std::uint32_t slots_;
  int lane_;
  int next_ = 0;
};

}  // namespace dropless::cuda
