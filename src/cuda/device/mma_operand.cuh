// A slice of an operand, kRows rows of M or N by kBlockK of k: how the CTA copies it to shared memory
// and how a warp reads its fragments from there.
//
// Both layouts are copied as they lie in memory, 16 bytes a lane. K-major slices have rows of k,
// 64 or 128 bytes each; MN-major ones have rows of M or N, one for each k, and are transposed by ldmatrix. An XOR
// of the 16-byte vector's place with the row keeps copies and fragments free of bank conflicts.
#pragma once

#include "mma_ptx.cuh"
#include "wgmma.cuh"

namespace dropless::cuda::mma {

inline constexpr int kThreads = 256;

template <Major kMajor, int kRows, int kBlockK>
struct Slice {
  static constexpr bool kIsK = kMajor == Major::kK;
  static constexpr int kBytes = kRows * kBlockK * 2;
  static constexpr int kVectors = (kIsK ? kBlockK : kRows) / 8;  // of 16 bytes in a line
  static constexpr int kLines = kIsK ? kRows : kBlockK;
  static constexpr int kLineBytes = kVectors * 16;

  static __device__ __forceinline__ std::uint32_t place(int line, int vector) {
    return line * kLineBytes + ((vector ^ (kVectors == 4 ? line / 2 % 4 : line % 8)) << 4);
  }
};

// This thread's part in copying slices of one operand. With kPlanes = 2 the slice's rows are two halves,
// of two tensors; with kListed they lie anywhere.
template <Major kMajor, int kRows, int kBlockK, int kPlanes, bool kListed>
class Loader {
  using Layout = Slice<kMajor, kRows, kBlockK>;
  static constexpr int kStep = kThreads / Layout::kVectors;  // lines that the CTA copies at once
  static constexpr int kCopies = Layout::kLines / kStep;
  static constexpr int kPerPlane = kCopies / kPlanes;
  static_assert(kStep % 8 == 0);

 public:
  // K-major, listed: offset(row) is where k = 0 of a row of the slice lies, in vectors from `data`:
  // 32 bits are half the registers that pointers would take.
  template <class Offset>
  __device__ __forceinline__ void start_listed(const uint4* data, Offset offset) {
    data_[0] = data;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) offsets_[i] = offset(first() + i * kStep) + vector();
  }

  // K-major: `rows` rows of each plane, pitch[p] vectors from one to the next.
  __device__ __forceinline__ void start_rows(const uint4* const (&data)[kPlanes],
                                             const std::int64_t* pitch, int rows) {
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
      pitch_[p] = static_cast<std::uint32_t>(pitch[p]);
      data_[p] = data[p] + first() * pitch[p] + vector();
    }
    inside_ = rows;
  }

  // MN-major: `data` is the line of k = 0, `pitch` vectors from one line to the next; of a line's
  // `vectors` those from `begin` on belong to the slice.
  __device__ __forceinline__ void start_columns(const uint4* data, std::int64_t pitch, int begin,
                                                int vectors) {
    data_[0] = data + first() * pitch + begin + vector();
    pitch_[0] = static_cast<std::uint32_t>(pitch);
    inside_ = begin + vector() < vectors ? kBlockK : 0;
  }

  // k .. k + kBlockK; zeros from `length` on, and where the operand has no more rows or columns.
  __device__ __forceinline__ void copy(std::uint32_t slice, int k, int length) const {
    const std::uint32_t place = slice + Layout::place(first(), vector());
    const bool inside_k = k + vector() * 8 < length;  // K-major
    const int lines = min(inside_, length - k);       // MN-major
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const std::uint32_t destination = place + i * kStep * Layout::kLineBytes;
      const int p = i / kPerPlane, line = i % kPerPlane * kStep;
      if constexpr (kListed) {
        ptx::copy_async16(destination, data_[0] + (offsets_[i] + k / 8), inside_k ? 16 : 0);
      } else if constexpr (Layout::kIsK) {
        ptx::copy_async16(destination, data_[p] + (line * pitch_[p] + k / 8),
                          inside_k && line + first() < inside_ ? 16 : 0);
      } else {
        ptx::copy_async16(destination, data_[0] + (k + line) * pitch_[0],
                          line + first() < lines ? 16 : 0);
      }
    }
  }

 private:
  static __device__ __forceinline__ int first() { return threadIdx.x / Layout::kVectors; }
  static __device__ __forceinline__ int vector() { return threadIdx.x % Layout::kVectors; }

  const uint4* data_[kPlanes];
  std::uint32_t offsets_[kListed ? kCopies : 1];
  std::uint32_t pitch_[kPlanes];
  int inside_;  // lines of a slice that are there
};

// Reads blocks of 16 rows by 16 of k. As A: r[0] rows 0-7 of k 0-7, r[1] rows 8-15, r[2] and r[3] the
// same of k 8-15. As B: r[0] rows 0-7 of k 0-7, r[1] of k 8-15, r[2] and r[3] rows 8-15, so that the
// two registers of an m16n8k16's B are neighbours.
template <Major kMajor, int kRows, int kBlockK, bool kIsB>
class Fragments {
  using Layout = Slice<kMajor, kRows, kBlockK>;

 public:
  // `row`: the warp's first, a multiple of 32 (MN-major: of 64).
  __device__ __forceinline__ Fragments(int row, int lane) {
    // Lane i gives the address of line i % 8 of the 8 x 8 matrix r[i / 8].
    const int second = lane & 8, pair = lane >> 4;
    const bool lines_first = Layout::kIsK != kIsB;
    const int line = lane % 8 + (lines_first ? second : 8 * pair);
    const int vector = lines_first ? pair : second / 8;
    offset_ = Layout::place(line, vector) + row * (Layout::kIsK ? Layout::kLineBytes : 2);
  }

  // Rows `row` .. row + 15 from the warp's first, k 16 step .. 16 step + 15.
  __device__ __forceinline__ void load(std::uint32_t slice, int row, int step,
                                       std::uint32_t (&r)[4]) const {
    if constexpr (Layout::kIsK) {
      ptx::ldmatrix_x4(slice + row * Layout::kLineBytes + (offset_ ^ (step * 32)), r);
    } else {
      ptx::ldmatrix_x4_trans(slice + step * 16 * Layout::kLineBytes + (offset_ ^ (row * 2)), r);
    }
  }

 private:
  std::uint32_t offset_;
};

}  // namespace dropless::cuda::mma
