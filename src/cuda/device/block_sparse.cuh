// Block-sparse products on the main loop: which tiles there are, what the loading thread brings for
// each, and how blocks and transposed tiles are stored. Blocks are 128 x 128, so that a tile of
// 128 x 256 is one block row (or column) by two of something:
//
//   sdd   D = two blocks of one block row; A their rows, B's two planes their columns
//   dsd   D = one block row by 256 dense columns; A the row's blocks one after the other, B the rows
//         of the dense matrix that they meet
//   dds   as dsd of the transposed product, stored transposed
//
// A cluster's two CTAs share A where they compute on the same block row, B where they compute on
// neighbouring rows of the same columns (block-diagonal topologies), else nothing: decided work by
// work, so that arbitrary topologies pay for what they cannot share and nothing else.
#pragma once

#include "block_schedule.cuh"
#include "gemm.cuh"

namespace dropless::cuda {

struct BlockSparseOperands {
  CUtensorMap a[1];
  CUtensorMap b[1];
  const int* indices = nullptr;  // of the walk: where along k an entry's block stands
  const int* blocks = nullptr;   // and its number, if it is not the entry's
};

template <class Tile>
struct SddLoader {
  using Params = BlockSparseOperands;

  static __device__ __forceinline__ void run(const Pipeline<Tile>& pipeline, const WorkRing& works,
                                             const Params& operands, int rank) {
    RingPosition<Tile::kStages> ring;
    WorkRing::Position at;
    for (;;) {
      works.wait(at);
      const Work work = works.read(at);
      works.release(at);
      if (work.k_length < 0) break;
      for (int k = 0; k < work.k_length; k += kBlockK) {
        pipeline.wait_empty(ring);
        const std::uint32_t full = pipeline.full(ring.stage);
        ptx::mbarrier_arrive_expect_bytes(full, Tile::kStageBytes);
        load_operand<kBlock, Tile::kMajorA, 2>(&operands.a[0], full, pipeline.a(ring.stage), work.m,
                                               k, 0, rank, work.share & kShareA);
        load_plane(operands, full, pipeline.b(ring.stage), work.n, k,
                   work.share & kShareB ? rank : -1, 0);
        load_plane(operands, full, pipeline.b(ring.stage) + Tile::kBytesB / 2, work.k, k,
                   work.share & kShareB ? rank : -1, 1);
        ring.advance();
      }
    }
  }

 private:
  // 128 rows of B. rank >= 0: the cluster shares them, and each CTA loads the plane of its rank.
  static __device__ __forceinline__ void load_plane(const Params& operands, std::uint32_t full,
                                                    std::uint32_t destination, int mn, int k,
                                                    int rank, int plane) {
    constexpr int kRows = Tile::kMajorB == Major::kK ? kBlock : 64;  // of a box
#pragma unroll
    for (int row = 0; row < kBlock; row += kRows) {
      const std::uint32_t target = destination + row * kBlockK * 2;
      const int c0 = Tile::kMajorB == Major::kK ? k : mn + row;
      const int c1 = Tile::kMajorB == Major::kK ? mn + row : k;
      if (rank < 0) {
        ptx::tma_load(&operands.b[0], full, target, c0, c1, 0);
      } else if (rank == plane) {
        ptx::tma_load_multicast(&operands.b[0], full, target, c0, c1, 0, 3);
      }
    }
  }
};

template <class Tile>
struct SparseDenseLoader {
  using Params = BlockSparseOperands;

  static __device__ __forceinline__ void run(const Pipeline<Tile>& pipeline, const WorkRing& works,
                                             const Params& operands, int rank) {
    RingPosition<Tile::kStages> ring;
    WorkRing::Position at;
    for (;;) {
      works.wait(at);
      const Work work = works.read(at);
      works.release(at);
      if (work.k_length < 0) break;
      const int start = work.share >> kShareBits;
      // Where rows differ, few clusters read a block at about the same time, but many read a row of
      // the dense operand: leave L2 to that.
      const bool once = (work.share & kShareB) == 0;
      const int length = work.k_length / kBlock;
      Entry entry = read(operands, work, start, 0);
      for (int i = 0; i < length; ++i) {
        const Entry ahead = read(operands, work, start, i + 1);
#pragma unroll
        for (int k = 0; k < kBlock; k += kBlockK) {
          pipeline.wait_empty(ring);
          const std::uint32_t full = pipeline.full(ring.stage);
          ptx::mbarrier_arrive_expect_bytes(full, Tile::kStageBytes);
          load_block(operands, full, pipeline.a(ring.stage), k, entry.block,
                     work.share & kShareA ? rank : -1, once);
          load_operand<2 * kBlock, Tile::kMajorB, 2>(&operands.b[0], full, pipeline.b(ring.stage),
                                                     work.n, entry.k + k, 0, rank,
                                                     work.share & kShareB);
          ring.advance();
        }
        entry = ahead;
      }
    }
  }

 private:
  // 64 of k of a block. rank >= 0: the cluster shares it, and each CTA loads the half of its rank.
  static __device__ __forceinline__ void load_block(const Params& operands, std::uint32_t full,
                                                    std::uint32_t destination, int k, int block,
                                                    int rank, bool once) {
    const CUtensorMap* map = &operands.a[0];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t target = destination + half * Tile::kBytesA / 2;
      const int mn = half * kBlock / 2;
      const int c0 = Tile::kMajorA == Major::kK ? k : mn;
      const int c1 = Tile::kMajorA == Major::kK ? mn : k;
      if (rank >= 0) {
        if (rank == half) ptx::tma_load_multicast_once(map, full, target, c0, c1, block, 3);
      } else if (once) {
        ptx::tma_load_once(map, full, target, c0, c1, block);
      } else {
        ptx::tma_load(map, full, target, c0, c1, block);
      }
    }
  }

  struct Entry {
    int block;  // number of the block of A
    int k;      // where along k it stands
  };

  // Entry i of a walk that starts with entry `start` and comes back to it.
  static __device__ __forceinline__ Entry read(const Params& operands, const Work& work, int start,
                                               int i) {
    if (i >= work.batch_b) return {kNowhere, kNowhere};
    const int turned = start + i;
    const int at = work.k + (turned < work.batch_b ? turned : turned - work.batch_b);
    return {operands.blocks == nullptr ? at : __ldg(operands.blocks + at),
            __ldg(operands.indices + at) * kBlock};
  }
};

}  // namespace dropless::cuda
