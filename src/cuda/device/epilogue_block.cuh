// How block-sparse products store their tiles: as blocks, or transposed.
#pragma once

#include "epilogue.cuh"

namespace dropless::cuda {

// Stores a tile of two blocks, or of one.
template <class Tile>
class BlockEpilogue {
 public:
  using Params = Output<typename Tile::Element>;  // a batch is a block
  static constexpr bool kDeferred = true;
  static constexpr bool kFetches = false;

  __device__ __forceinline__ BlockEpilogue(const Params& params, std::uint32_t slots, int lane)
      : out_(params), ring_(slots, lane), lane_(lane) {}

  __device__ __forceinline__ void take(const float (&acc)[Tile::kBlockN / 2], const Work& work,
                                       int row) {
    row_ = row;
    block_ = work.batch_d;
    pending_ = kChunks / 2 * work.batch_b;
    next_ = 0;
    pack_all<typename Tile::Element, Tile::kBlockN / 2>(acc, words_);
  }

  __device__ __forceinline__ bool pending() const { return pending_ > 0; }

  __device__ __forceinline__ void step() {
    const std::uint32_t slot = ring_.take();
    with_piece<kChunks>(words_, next_,
                        [&](const std::uint32_t* words) { stage_words(words, slot, lane_); });
    ring_.put(out_, row_, 16, pending_ % 2 == 0 ? 0 : 64, block_);
    ++next_;
    --pending_;
    block_ += pending_ % 2 == 0;
  }

  __device__ __forceinline__ void finish() { ring_.drain(); }

 private:
  static constexpr int kChunks = Tile::kBlockN / 64;
  static_assert(kChunks == 4);
  const Params& out_;
  SlotRing<Tile::kSlots> ring_;
  int lane_;
  std::uint32_t words_[16 * kChunks];
  int pending_ = 0;  // pieces of 64 columns, two of a block
  int next_;
  int row_, block_;
};

// Stores D^T: the four warps of a consumer stage 64 columns of their 64 rows of D as 64 rows
// of 128 bytes, together.
template <class Tile>
class TransposedEpilogue {
 public:
  struct Params {
    CUtensorMap map;  // of D^T: boxes of 64 rows by 128 bytes
  };
  static constexpr bool kDeferred = true;
  static constexpr bool kFetches = false;

  // slots: this warp's; the consumer's four follow one another.
  __device__ __forceinline__ TransposedEpilogue(const Params& params, std::uint32_t slots, int)
      : map_(params.map), area_(slots - warp() * Tile::kSlots * kSlotBytes) {}

  __device__ __forceinline__ void take(const float (&acc)[Tile::kBlockN / 2], const Work& work,
                                       int row) {
    if (work.rows <= 0) return;
    column_ = work.m + row / 64 * 64;
    row_ = work.n;
    pack_all<typename Tile::Element, Tile::kBlockN / 2>(acc, words_);
  }

  __device__ __forceinline__ bool pending() const { return row_ >= 0; }

  __device__ __forceinline__ void step() {
    if (stores()) ptx::tma_store_wait_read<1>();
    barrier();
    // Lane i gives the row of D^T that becomes row i % 8 of matrix i / 8; the even matrices are this
    // warp's rows 0 to 7 of D.
    const std::uint32_t place =
        area_ + swizzled((lane() >> 4) * 8 + (lane() & 7), 2 * warp() + (lane() >> 3 & 1));
    with_piece<kChunks>(words_, row_ / 64 % kChunks, [&](const std::uint32_t* words) {
#pragma unroll
      for (int block = 0; block < 4; ++block) {
        const std::uint32_t* w = words + block * 4;
        ptx::stmatrix_x4_transposed(place + 16 * 128 * block, w[0], w[1], w[2], w[3]);
      }
    });
    ptx::fence_proxy_async();
    barrier();
    if (stores()) {
      ptx::tma_store(&map_, area_, column_, row_, 0);
      ptx::tma_store_commit();
    }
    area_ ^= kAreaBytes;
    row_ += 64;
    if (row_ % Tile::kBlockN == 0) row_ = -1;
  }

  __device__ __forceinline__ void finish() {
    if (stores()) ptx::tma_store_wait_read<0>();
  }

 private:
  static constexpr int kChunks = Tile::kBlockN / 64;
  static constexpr int kAreaBytes = 4 * kSlotBytes;  // two areas by turns
  static_assert(Tile::kSlots == 2 && Tile::kSlotsOffset % (2 * kAreaBytes) == 0);

  // Not kept: there are no registers for it.
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32 % 4; }
  static __device__ __forceinline__ bool stores() { return threadIdx.x % 128 == 0; }
  // Of this consumer's warps; the main loop uses these numbers with kRaggedK only.
  static __device__ __forceinline__ void barrier() {
    ptx::named_barrier_sync(static_cast<int>(threadIdx.x) / 128, 128);
  }

  const CUtensorMap& map_;
  std::uint32_t area_;
  std::uint32_t words_[16 * kChunks];
  int row_ = -1, column_;  // of the next piece, in D^T; -1: none
};

}  // namespace dropless::cuda
