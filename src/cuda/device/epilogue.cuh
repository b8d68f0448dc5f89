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

// Where this lane's row of a 16-row by 16-column block lies, for ldmatrix and stmatrix.
__device__ __forceinline__ std::uint32_t block16(std::uint32_t area, int block, int lane) {
  return area + swizzled(lane & 15, 2 * block + (lane >> 4));
}

// 16 rows x 64 columns (32 accumulators of a lane) as bf16 into a slot.
__device__ __forceinline__ void stage_bf16(const float* acc, std::uint32_t slot, int lane) {
#pragma unroll
  for (int block = 0; block < 4; ++block) {
    const float* d = acc + block * 8;
    ptx::stmatrix_x4(block16(slot, block, lane), ptx::pack_bf16(d[0], d[1]),
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

// A tensor that tiles are stored to.
template <class Element>
struct Output {
  CUtensorMap map;     // boxes of 16 rows by 128 bytes
  Element* data;       // for chunks that the copy engine cannot clip
  std::int64_t pitch;  // of rows, elements
  int columns;
};

// Rows that end inside a 16-row chunk: those past the end are another expert's.
template <class Element>
__device__ __forceinline__ void copy_rows(const Output<Element>& out, std::uint32_t area, int row0,
                                          int rows, int column0, int lane) {
  constexpr int kChunk = 16 / sizeof(Element);
  for (int i = lane; i < rows * 8; i += 32) {
    const int row = i / 8;
    const int column = column0 + (i % 8) * kChunk;
    if (column < out.columns) {
      *reinterpret_cast<uint4*>(out.data + (row0 + row) * out.pitch + column) =
          ptx::load_shared16(area + swizzled(row, i % 8));
    }
  }
}

// A warp's slots, used in turn. Every put() commits one group of stores, also when the rows went
// out by copy_rows: the slots are counted in groups.
template <int kSlots>
class SlotRing {
 public:
  __device__ __forceinline__ SlotRing(std::uint32_t slots, int lane) : slots_(slots), lane_(lane) {}

  // The next slot, once the copy engine has read what it held.
  __device__ __forceinline__ std::uint32_t take() {
    slot_ = slots_ + next_ * kSlotBytes;
    next_ = next_ + 1 == kSlots ? 0 : next_ + 1;
    if (lane_ == 0) ptx::tma_store_wait_read<kSlots - 1>();
    __syncwarp();
    return slot_;
  }

  // Stores what the warp wrote into the slot taken last.
  template <bool kAdd = false, class Element>
  __device__ __forceinline__ void put(const Output<Element>& out, int row, int rows, int column,
                                      int batch) {
    ptx::fence_proxy_async();
    __syncwarp();
    if (rows < 16) copy_rows(out, slot_, row, rows, column, lane_);
    if (lane_ == 0) {
      if (rows == 16) {
        if constexpr (kAdd) {
          ptx::tma_reduce_add(&out.map, slot_, column, row, batch);
        } else {
          ptx::tma_store(&out.map, slot_, column, row, batch);
        }
      }
      ptx::tma_store_commit();
    }
  }

  // Before the CTA's shared memory goes away.
  __device__ __forceinline__ void drain() const {
    if (lane_ == 0) ptx::tma_store_wait_read<0>();
  }

 private:
  std::uint32_t slots_;
  std::uint32_t slot_ = 0;
  int lane_;
  int next_ = 0;
};

enum class StoreMode { kOverwrite, kAdd };

// Stores the product itself. Element is __nv_bfloat16 or float; kAdd adds into D (float only).
//
// What every epilogue offers the main loop: kExtraStages stages of the ring that it wants filled
// after each tile's operands, by load_extra() in the loading thread; prepare(), before the tile is
// multiplied; operator(), with the accumulators; finish(), before the CTA ends.
template <class Tile, class Element, StoreMode kMode>
class StoreEpilogue {
 public:
  using Params = Output<Element>;
  static constexpr int kExtraStages = 0;

  __device__ __forceinline__ StoreEpilogue(const Params& params, std::uint32_t slots, int lane)
      : out_(params), ring_(slots, lane), lane_(lane) {}

  __device__ __forceinline__ void prepare(const Work&, int) {}

  // acc: this warp's rows of one wgmma tile, kBlockN columns; `row` their place in the CTA tile.
  template <class Stages>
  __device__ __forceinline__ void operator()(const float (&acc)[Tile::kBlockN / 2],
                                             const Work& work, int row, Stages&) {
    constexpr int kColumns = 128 / sizeof(Element);
    const int rows = min(16, work.rows - row);
    if (rows <= 0) return;
#pragma unroll
    for (int column = 0; column < Tile::kBlockN; column += kColumns) {
      const std::uint32_t slot = ring_.take();
      if constexpr (sizeof(Element) == 2) {
        stage_bf16(acc + column / 2, slot, lane_);
      } else {
        stage_fp32(acc + column / 2, slot, lane_);
      }
      ring_.template put<kMode == StoreMode::kAdd>(out_, work.m + row, rows, work.n + column,
                                                   work.batch_d);
    }
  }

  __device__ __forceinline__ void finish() { ring_.drain(); }

 private:
  const Params& out_;
  SlotRing<Tile::kSlots> ring_;
  int lane_;
};

}  // namespace dropless::cuda
