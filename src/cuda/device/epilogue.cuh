// From accumulators to memory: each consumer warp stages 16 rows by 128 bytes in one of its slots
// and lets the copy engine store them. Rows past the end of an expert's last tile belong to the
// next expert, and the copy engine cannot clip there: those chunks go out by predicated 16-byte
// stores.
#pragma once

#include "pipeline.cuh"
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

// 16 rows x 64 columns, 16 words of two bf16 a lane, into a slot.
__device__ __forceinline__ void stage_words(const std::uint32_t* words, std::uint32_t slot,
                                            int lane) {
#pragma unroll
  for (int block = 0; block < 4; ++block) {
    const std::uint32_t* w = words + block * 4;
    ptx::stmatrix_x4(block16(slot, block, lane), w[0], w[1], w[2], w[3]);
  }
}

// Accumulators to words of two bf16.
template <int kCount>
__device__ __forceinline__ void pack_all(const float (&acc)[kCount],
                                         std::uint32_t (&words)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) words[i] = ptx::pack_bf16(acc[2 * i], acc[2 * i + 1]);
}

// Drops the first of kChunks chunks of 16 words. Registers cannot be indexed at run time: what is
// next always lies first.
template <int kChunks>
__device__ __forceinline__ void shift_words(std::uint32_t* words) {
#pragma unroll
  for (int i = 0; i < 16 * (kChunks - 1); ++i) words[i] = words[i + 16];
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
#pragma unroll 1  // rare: no registers for it
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

// What an epilogue offers the main loop.
//
// kDeferred: take() rounds a tile's accumulators into registers of its own, and the tile is stored
// while the next one is multiplied: step() stores one piece, as long as pending() says that there
// is one. The tensor cores then wait for the rounding only, not for the stores.
// Otherwise operator() stores the tile.
// kExtraStages: what else the loading thread brings through the ring, behind a tile's operands:
// load_extra() loads it, and operator() takes it, from the consumer that it is given. Before the
// product prepare() is told the tile's place.
// All: finish(), before the CTA ends.

// Stores the product itself.
template <class Tile, class Element, StoreMode kMode>
class StoreEpilogue;

// As fp32; kAdd adds into D. 128 accumulators leave no room to defer.
template <class Tile, StoreMode kMode>
class StoreEpilogue<Tile, float, kMode> {
 public:
  using Params = Output<float>;
  static constexpr bool kDeferred = false;
  static constexpr int kExtraStages = 0;

  __device__ __forceinline__ StoreEpilogue(const Params& params, std::uint32_t slots, int lane)
      : out_(params), ring_(slots, lane), lane_(lane) {}

  // acc: this warp's rows of one wgmma tile, kBlockN columns; `row` their place in the CTA tile.
  __device__ __forceinline__ void operator()(const float (&acc)[Tile::kBlockN / 2],
                                             const Work& work, int row) {
    const int rows = min(16, work.rows - row);
    if (rows <= 0) return;
#pragma unroll
    for (int column = 0; column < Tile::kBlockN; column += 32) {
      stage_fp32(acc + column / 2, ring_.take(), lane_);
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

// As bf16.
template <class Tile>
class StoreEpilogue<Tile, __nv_bfloat16, StoreMode::kOverwrite> {
 public:
  using Params = Output<__nv_bfloat16>;
  static constexpr bool kDeferred = true;
  static constexpr int kExtraStages = 0;

  __device__ __forceinline__ StoreEpilogue(const Params& params, std::uint32_t slots, int lane)
      : out_(params), ring_(slots, lane), lane_(lane) {}

  __device__ __forceinline__ void take(const float (&acc)[Tile::kBlockN / 2], const Work& work,
                                       int row) {
    rows_ = min(16, work.rows - row);
    if (rows_ <= 0) return;
    row_ = work.m + row;
    column_ = work.n;
    batch_ = work.batch_d;
    pending_ = kChunks;
    pack_all(acc, words_);
  }

  __device__ __forceinline__ bool pending() const { return pending_ > 0; }

  __device__ __forceinline__ void step() {
    stage_words(words_, ring_.take(), lane_);
    ring_.put(out_, row_, rows_, column_, batch_);
    shift_words<kChunks>(words_);
    column_ += 64;
    --pending_;
  }

  __device__ __forceinline__ void finish() { ring_.drain(); }

 private:
  static constexpr int kChunks = Tile::kBlockN / 64;
  const Params& out_;
  SlotRing<Tile::kSlots> ring_;
  int lane_;
  std::uint32_t words_[16 * kChunks];  // of 64 columns 16 words each; the next to store first
  int pending_ = 0;                    // pieces of 64 columns
  int row_, rows_, column_, batch_;    // of the next piece
};

}  // namespace dropless::cuda
