// From accumulators to memory: each consumer warp stages 16 rows by 128 bytes in one of its slots
// and lets the copy engine store them. Rows past the end of an expert's last tile belong to the
// next expert, and the copy engine cannot clip there: those chunks go out by predicated 16-byte
// stores.
#pragma once

#include <type_traits>

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

// 16 rows x 64 columns, 16 words of two 16-bit elements a lane, into a slot.
__device__ __forceinline__ void stage_words(const std::uint32_t* words, std::uint32_t slot,
                                            int lane) {
#pragma unroll
  for (int block = 0; block < 4; ++block) {
    const std::uint32_t* w = words + block * 4;
    ptx::stmatrix_x4(block16(slot, block, lane), w[0], w[1], w[2], w[3]);
  }
}

// What is added to an expert's rows before they are rounded: [experts, columns].
template <class Element, bool kPresent>
struct Bias {};
template <class Element>
struct Bias<Element, true> {
  const Element* data;
  std::int64_t pitch;  // of experts, elements
};

// kCount accumulators to words of two elements.
template <class Element, int kCount>
__device__ __forceinline__ void pack_all(const float* acc, std::uint32_t* words) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) words[i] = ptx::pack<Element>(acc[2 * i], acc[2 * i + 1]);
}

// The same with the bias of `columns` columns added, of which `column` is the first accumulator's;
// where a lane's lie: wgmma.cuh.
template <class Element, int kCount>
__device__ __forceinline__ void pack_all(const float* acc, std::uint32_t* words,
                                         const Bias<Element, true>& bias, int expert, int column,
                                         int columns, int lane) {
  const Element* row = bias.data + expert * bias.pitch;
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
    const int at = column + 8 * j + 2 * (lane % 4);
    const std::uint32_t pair =
        at < columns ? __ldg(reinterpret_cast<const unsigned*>(row + at)) : 0;
    const float2 b = ptx::unpack<Element>(pair);
    words[2 * j] = ptx::pack<Element>(acc[4 * j] + b.x, acc[4 * j + 1] + b.y);
    words[2 * j + 1] = ptx::pack<Element>(acc[4 * j + 2] + b.x, acc[4 * j + 3] + b.y);
  }
}

// Calls use(words) of piece `index` of kPieces, 16 words each. Registers cannot be indexed at run time: there is code for
// every piece, which costs less than to move the words (docs/kernels.md).
template <int kPieces, class Use>
__device__ __forceinline__ void with_piece(const std::uint32_t* words, int index, Use use) {
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    if (i == index) use(words + 16 * i);
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

// This warp's 16 rows of a finished tile, rounded, on their way to memory in pieces of 64 columns
// while the next tile is multiplied.
template <class Tile, bool kBias>
struct PendingTile {
  using Element = typename Tile::Element;
  using Biases = Bias<Element, kBias>[Tile::kPlanes];
  static constexpr int kPieces = Tile::kStepN / 64;
  static constexpr int kPlaneWords = 16 * kPieces;

  std::uint32_t words[Tile::kPlanes * kPlaneWords];
  int pieces = 0;                // left
  int row, rows, column, batch;  // of the next piece

  // acc: kBlockN columns; `row0`: the rows' place in the CTA's tile. False where none is valid.
  __device__ __forceinline__ bool take(const float (&acc)[Tile::kBlockN / 2], const Work& work,
                                       int row0, const Biases& biases, int columns, int lane) {
    rows = min(16, work.rows - row0);
    if (rows <= 0) return false;
    row = work.m + row0;
    column = work.n;
    batch = work.batch_d;
    pieces = kPieces;
#pragma unroll
    for (int plane = 0; plane < Tile::kPlanes; ++plane) {
      const float* from = acc + 2 * plane * kPlaneWords;
      std::uint32_t* to = words + plane * kPlaneWords;
      if constexpr (kBias) {
        pack_all<Element, 2 * kPlaneWords>(from, to, biases[plane], work.batch_b, column, columns,
                                           lane);
      } else {
        pack_all<Element, 2 * kPlaneWords>(from, to);
      }
    }
    return true;
  }

  // use(words of a plane's next piece)
  template <class Use>
  __device__ __forceinline__ void with_next(int plane, Use use) const {
    with_piece<kPieces>(words + plane * kPlaneWords, kPieces - pieces, use);
  }

  // One of its words. By masks: of a choice between words the compiler makes one between addresses, in local memory.
  __device__ __forceinline__ std::uint32_t next_word(int plane, int i) const {
    std::uint32_t word = 0;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const std::uint32_t mask = kPieces - pieces == p ? 0xffffffff : 0;
      word |= words[plane * kPlaneWords + 16 * p + i] & mask;
    }
    return word;
  }

  __device__ __forceinline__ void advance() {
    column += 64;
    --pieces;
  }
};

enum class StoreMode { kOverwrite, kAdd };

// What an epilogue offers the main loop.
//
// kDeferred: take() rounds a tile's accumulators into registers of its own, and the tile is stored
// while the next one is multiplied: step() stores one piece, as long as pending() says that there
// is one. The tensor cores then wait for the rounding only, not for the stores.
// Otherwise operator() stores the tile.
// kFetches: one that loads something itself, for which it is given a barrier of the warp.
// All: finish(), before the CTA ends.

// Stores the product itself, in the operands' 16-bit type, with kBias after adding the expert's.
template <class Tile, class Element, StoreMode kMode, bool kBias = false>
class StoreEpilogue {
 public:
  static_assert(std::is_same_v<Element, typename Tile::Element> && kMode == StoreMode::kOverwrite);
  struct Params {
    Output<Element> out;
    Bias<Element, kBias> bias[Tile::kPlanes];
  };
  static constexpr bool kDeferred = true;
  static constexpr bool kFetches = false;

  __device__ __forceinline__ StoreEpilogue(const Params& params, std::uint32_t slots, int lane)
      : params_(params), ring_(slots, lane), lane_(lane) {}

  __device__ __forceinline__ void take(const float (&acc)[Tile::kBlockN / 2], const Work& work,
                                       int row) {
    tile_.take(acc, work, row, params_.bias, params_.out.columns, lane_);
  }

  __device__ __forceinline__ bool pending() const { return tile_.pieces > 0; }

  __device__ __forceinline__ void step() {
    const std::uint32_t slot = ring_.take();
    tile_.with_next(0, [&](const std::uint32_t* words) { stage_words(words, slot, lane_); });
    ring_.put(params_.out, tile_.row, tile_.rows, tile_.column, tile_.batch);
    tile_.advance();
  }

  __device__ __forceinline__ void finish() { ring_.drain(); }

 private:
  const Params& params_;
  SlotRing<Tile::kSlots> ring_;
  int lane_;
  PendingTile<Tile, kBias> tile_;
};

// As fp32; kAdd adds into D. 128 accumulators leave no room to defer.
template <class Tile, StoreMode kMode>
class StoreEpilogue<Tile, float, kMode, false> {
 public:
  struct Params {
    Output<float> out;
  };
  static constexpr bool kDeferred = false;
  static constexpr bool kFetches = false;

  __device__ __forceinline__ StoreEpilogue(const Params& params, std::uint32_t slots, int lane)
      : out_(params.out), ring_(slots, lane), lane_(lane) {}

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
  const Output<float>& out_;
  SlotRing<Tile::kSlots> ring_;
  int lane_;
};

}  // namespace dropless::cuda
