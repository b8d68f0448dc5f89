// Which tiles block-sparse products compute, and in which order (block_sparse.cuh).
#pragma once

#include "scheduler.cuh"
#include "search.cuh"

namespace dropless::cuda {

inline constexpr int kBlock = 128;        // side of a block
inline constexpr int kNowhere = 1 << 30;  // a coordinate outside of any tensor: loads zeros

// Pairs of block rows (or columns) that pass through the other dimension together. In sdd, where all
// works are equally long, as many as make rows and columns of the tiles in flight equally many; in dsd
// and dds as many as there are clusters at work, about, so that all read the same few columns of the
// dense operand. Where the rows of most pairs have the same blocks, both CTAs of a cluster read the same
// of B, and fewer rows are enough.
inline constexpr int kSddPairs = 16;
inline constexpr int kBandPairs = 32;
inline constexpr int kAlikePairs = 8;

// Bits of Work::share; above them, for SparseDenseSchedule, the entry that the walk starts with.
inline constexpr int kShareA = 1;
inline constexpr int kShareB = 2;
inline constexpr int kShareBits = 2;

// What a Work means to sdd, besides k_length and rows: m, the first row of A; n and k, the first
// rows of B's two planes; batch_d, the number of the first block; batch_b, how many blocks.
class SddSchedule {
 public:
  struct Params {
    const int* count;   // of pairs
    const int2* pairs;  // for each cluster in turn the first blocks of its CTAs' tiles; -1: none
    const int* row_indices;
    const int* column_indices;
    const int* num_blocks;
    int k_length;
  };
  static constexpr bool kRaggedK = false;
  static constexpr bool kEmptyK = false;

  __device__ __forceinline__ SddSchedule(const Params& params, int rank)
      : params_(params),
        count_(__ldg(params.count)),
        num_blocks_(__ldg(params.num_blocks)),
        rank_(rank),
        index_(static_cast<int>(blockIdx.x) / 2) {}

  __device__ __forceinline__ bool next(Work& work) {
    if (index_ >= count_) return false;
    const int2 pair = __ldg(params_.pairs + index_);
    index_ += static_cast<int>(gridDim.x) / 2;
    const Place own = place(rank_ == 0 ? pair.x : pair.y);
    const Place peer = place(rank_ == 0 ? pair.y : pair.x);
    work.k_length = params_.k_length;
    work.rows = own.blocks > 0 ? kBlock : 0;
    work.m = own.row;
    work.n = own.column[0];
    work.k = own.column[1];
    work.batch_b = own.blocks;
    work.batch_d = own.first;
    work.share = 0;
    if (own.blocks > 0 && peer.blocks > 0) {
      if (own.row == peer.row) {
        work.share = kShareA;
      } else if (own.column[0] == peer.column[0] && own.column[1] == peer.column[1]) {
        work.share = kShareB;
      }
    }
    return true;
  }

 private:
  struct Place {
    int first, blocks, row, column[2];
  };

  // The tile that begins with block `first`: also the block after it, if it is of the same row.
  __device__ __forceinline__ Place place(int first) const {
    if (first < 0) return {0, 0, kNowhere, {kNowhere, kNowhere}};
    const int second = first + 1 < num_blocks_ ? first + 1 : first;
    const int row = __ldg(params_.row_indices + first);
    const bool two = second != first && __ldg(params_.row_indices + second) == row;
    return {first,
            two ? 2 : 1,
            row * kBlock,
            {__ldg(params_.column_indices + first) * kBlock,
             two ? __ldg(params_.column_indices + second) * kBlock : kNowhere}};
  }

  const Params& params_;
  int count_;
  int num_blocks_;
  int rank_;
  int index_;
};

// dsd and dds. What a Work means besides k_length and rows: m and n, the place in D; k, the first
// entry of the walk; batch_b, how many entries; batch_d, which of the walk's parts. k_length may be longer:
// the rest is zeros.
//
// Lines of different lengths would soon have the clusters at different places along k, and what one
// reads of the dense operand would be gone from L2 before the next wants it. So all walk in a circle
// together: a line's walk starts where the others, by the number of blocks that this cluster has
// multiplied so far, should be by now. That is a function of the topology and the number of SMs.
class SparseDenseSchedule {
 public:
  struct Params {
    const int* offsets;  // [lines + 1] of the walk
    const int* indices;
    const int* same;   // of lines 2p and 2p + 1: whether they have the same indices
    const int* alike;  // of bands of pairs: whether most are so
    int lines;         // block rows of D
    int depth;         // blocks along k
    int tiles_n;
    int parts;  // of each line's walk, one after the other
  };
  static constexpr bool kRaggedK = false;
  static constexpr bool kEmptyK = true;

  __device__ __forceinline__ SparseDenseSchedule(const Params& params, int rank)
      : params_(params),
        rank_(rank),
        index_(static_cast<int>(blockIdx.x) / 2),
        circle_(max(1, __ldg(params.offsets + params.lines) / (params.lines * params.parts))) {}

  // A pair of lines is tiles_n works of a cluster: where both lines have the same indices, the pair
  // by one tile along N each; else one line by two tiles each, and what is left over unshared.
  __device__ __forceinline__ bool next(Work& work) {
    const int pairs = (params_.lines + 1) / 2;
    part_ = index_ / (pairs * params_.tiles_n);
    if (part_ >= params_.parts) return false;
    const int index = index_ - part_ * pairs * params_.tiles_n;
    const int band = index / (kBandPairs * params_.tiles_n);
    int pair, t;
    raster(index - band * kBandPairs * params_.tiles_n, min(kBandPairs, pairs - band * kBandPairs),
           params_.tiles_n, __ldg(params_.alike + band) != 0 ? kAlikePairs : kBandPairs, pair, t);
    pair += band * kBandPairs;
    index_ += static_cast<int>(gridDim.x) / 2;
    int line = 2 * pair + rank_, tile = t, length;
    const bool same = __ldg(params_.same + pair) != 0;
    if (same) {
      work.share = kShareB;
      length = entries(line);
    } else if (t + 1 < params_.tiles_n || t % 2 == 1) {
      line = 2 * pair + t % 2;
      tile = t / 2 * 2 + rank_;
      work.share = kShareA;
      length = entries(line);
    } else {
      work.share = 0;
      length = max(entries(line), entries(line ^ 1));
    }
    work.k_length = length * kBlock;
    work.rows = line < params_.lines ? kBlock : 0;
    work.m = line * kBlock;
    work.n = tile * 2 * kBlock;
    work.k = line < params_.lines ? __ldg(params_.offsets + line) + first(line, part_) : 0;
    work.batch_b = entries(line);
    work.batch_d = part_;
    if (!same) work.share |= start(work.k, work.batch_b) << kShareBits;
    clock_ = (clock_ + length) % circle_;
    return true;
  }

 private:
  // Where a part begins among the line's entries.
  __device__ __forceinline__ int first(int line, int part) const {
    const int all = __ldg(params_.offsets + line + 1) - __ldg(params_.offsets + line);
    return static_cast<int>(static_cast<std::int64_t>(all) * part / params_.parts);
  }
  __device__ __forceinline__ int entries(int line) const {
    return line < params_.lines ? first(line, part_ + 1) - first(line, part_) : 0;
  }

  // The first of a line's entries that is not behind the clock.
  __device__ __forceinline__ int start(int first, int count) const {
    const float turned = static_cast<float>(clock_) / static_cast<float>(circle_);
    const int k =
        static_cast<int>((static_cast<float>(part_) + turned) * static_cast<float>(params_.depth) /
                         static_cast<float>(params_.parts));
    const int place = lower_bound(params_.indices, first, first + count, k) - first;
    return place < count ? place : 0;
  }

  const Params& params_;
  int rank_;
  int index_;
  int part_ = 0;   // of the work
  int circle_;     // blocks of a part of a line, on average
  int clock_ = 0;  // blocks multiplied, modulo circle_
};

}  // namespace dropless::cuda
