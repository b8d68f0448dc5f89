// A gather beside a matrix product: row rows_TK[t, k] of `to` becomes row t of `from`, on warps of the loading
// warpgroup that have nothing else to do where the copy engine brings both operands.
//
// The copy engine moves the rows too, in pieces through shared memory: no registers hold them, and no load or store of
// the product's waits behind theirs. A warp has a ring of two pieces: while lane k stores one to the place of the
// token's k-th row, the next is on its way.
#pragma once

#include <cstdint>

#include "ptx.cuh"

namespace dropless::cuda {

struct GatherJob {
  const char* from = nullptr;
  char* to = nullptr;
  const int* rows_TK = nullptr;  // -1: no row
  std::int64_t pitch = 0;        // bytes from one row of `from` to the next
  int bytes = 0;                 // of a row, a multiple of 16; rows of `to` are contiguous
  int tokens = 0;                // 0: no job
  int top_k = 0;
};

inline constexpr int kBesideWarps = 2;
inline constexpr int kBesideMostTopK = 32;  // a lane each
inline constexpr int kBesidePieces = 2;

// One warp's. `shared`: its ring, aligned to 16 bytes. kPieceBytes: a multiple of 16; larger ones are better, since one
// costs about as much whatever its size.
template <int kPieceBytes>
class GatherBesideWarp {
 public:
  static constexpr int kRingBytes = kBesidePieces * (kPieceBytes + 8);
  static_assert(kPieceBytes >= 16 && kPieceBytes % 16 == 0 && kRingBytes % 16 == 0);

  __device__ __forceinline__ explicit GatherBesideWarp(std::uint32_t shared) : pieces_(shared) {}

  // By one thread, before the CTA synchronises.
  __device__ __forceinline__ void init() const {
    for (int slot = 0; slot < kBesidePieces; ++slot) ptx::mbarrier_init(full(slot), 1);
  }

  // Pieces worker, worker + workers, ... of all rows.
  __device__ __forceinline__ void run(const GatherJob& job, unsigned worker, unsigned workers,
                                      int lane) const {
    const unsigned row_pieces = (job.bytes + kPieceBytes - 1) / kPieceBytes;
    const unsigned total = row_pieces * job.tokens;
    if (worker < total && lane == 0) load(job, row_pieces, worker, 0);
    int slot = 0;
    unsigned phase = 0;
    for (unsigned index = worker; index < total; index += workers) {
      const unsigned token = index / row_pieces;
      const unsigned begin = (index - token * row_pieces) * kPieceBytes;
      const int row =
          lane < job.top_k ? __ldg(job.rows_TK + std::int64_t{token} * job.top_k + lane) : -1;
      ptx::mbarrier_wait(full(slot), phase);
      if (row >= 0) {
        ptx::bulk_store(job.to + std::int64_t{row} * job.bytes + begin, piece(slot),
                        piece_bytes(job, begin));
      }
      ptx::tma_store_commit();
      ptx::tma_store_wait_read<kBesidePieces - 1>();
      __syncwarp();  // every lane's stores have read the other piece
      slot ^= 1;
      if (slot == 0) phase ^= 1;
      if (index + workers < total && lane == 0) load(job, row_pieces, index + workers, slot);
    }
    ptx::tma_store_wait_read<0>();
  }

 private:
  static_assert(kBesidePieces == 2);

  __device__ __forceinline__ std::uint32_t piece(int slot) const {
    return pieces_ + slot * kPieceBytes;
  }
  __device__ __forceinline__ std::uint32_t full(int slot) const {
    return pieces_ + kBesidePieces * kPieceBytes + 8 * slot;
  }
  static __device__ __forceinline__ int piece_bytes(const GatherJob& job, unsigned begin) {
    return min(kPieceBytes, job.bytes - static_cast<int>(begin));
  }
  __device__ __forceinline__ void load(const GatherJob& job, unsigned row_pieces, unsigned index,
                                       int slot) const {
    const unsigned token = index / row_pieces;
    const unsigned begin = (index - token * row_pieces) * kPieceBytes;
    const int bytes = piece_bytes(job, begin);
    ptx::mbarrier_arrive_expect_bytes(full(slot), bytes);
    ptx::bulk_load(full(slot), piece(slot), job.from + token * job.pitch + begin, bytes);
  }

  std::uint32_t pieces_;
};

}  // namespace dropless::cuda
