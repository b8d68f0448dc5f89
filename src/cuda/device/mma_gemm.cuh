// The portable main loop of the matrix products: D = A B^T (+ epilogue), 16-bit operands, fp32 sums,
// with what every GPU since compute capability 8.0 has.
//
// A CTA of eight warps computes a tile of 128 x 256, each warp 64 x 64 in registers. All threads copy:
// slices of kBlockK of k arrive in a ring of kStages by cp.async while older ones are multiplied. The grid is
// persistent; the next tile's first slices are on their way while a tile is stored.
#pragma once

#include <new>

#include "mma_operand.cuh"
#include "scheduler.cuh"

namespace dropless::cuda::mma {

inline constexpr int kNotesBytes = 256;  // of Notes
inline constexpr int kWarpRows = 64;     // of D, a warp's
inline constexpr int kWarpColumns = 64;
inline constexpr int kBlocksM = kWarpRows / 16;
inline constexpr int kBlocksN = kWarpColumns / 16;  // pairs of m16n8k16
// Staging of a warp's results: 8 rows of 64 floats; the pitch keeps its banks apart.
inline constexpr int kStagingPitch = kWarpColumns + 8;
inline constexpr int kStagingFloats = 8 * kStagingPitch;

using Accumulators = float[kBlocksM][2 * kBlocksN][4];

// With kPlanes = 2 B's rows are two halves, the same rows of two weight tensors: a warp's columns are
// 32 of the one product and the same 32 of the other. With kTerms = 2 the product is a sum of two: k runs
// through the first pair of operands and then through the second. With kGather the rows of A are those that a
// list names, if there is one.
template <class ElementType, Major kLayoutA, Major kLayoutB, int kPlaneCount = 1,
          int kTermCount = 1, bool kGather = false>
struct Tile {
  using Element = ElementType;
  static constexpr int kBlockM = 128;
  static constexpr int kBlockN = 256;
  static constexpr int kPlanes = kPlaneCount;
  static constexpr int kTerms = kTermCount;
  static constexpr bool kGathersA = kGather;
  static constexpr int kStepN = kBlockN / kPlanes;                  // columns of D between tiles
  static constexpr int kClusterM = 1, kClusterN = 1, kCluster = 1;  // for the schedules
  static constexpr Major kMajorA = kLayoutA;
  static constexpr Major kMajorB = kLayoutB;

  static constexpr int kWarpsN = kBlockN / kWarpColumns;
  // Deeper slices need fewer barriers: 13 % faster. The lists of rows leave no registers for them.
  static constexpr int kBlockK = kGathersA ? 32 : 64;
  static constexpr int kStages = kGathersA ? 4 : 2;
  static constexpr int kBytesA = Slice<kMajorA, kBlockM, kBlockK>::kBytes;
  static constexpr int kStageBytes = kBytesA + Slice<kMajorB, kBlockN, kBlockK>::kBytes;
  static constexpr int kNotesOffset = kStages * kStageBytes;
  static constexpr int kSharedBytes = kNotesOffset + kNotesBytes;
  // While a tile is stored the last stage is free: the next tile's first slices lie in the others.
  static constexpr int kStagingOffset = (kStages - 1) * kStageBytes;
  static constexpr int kScoresOffset = kStagingOffset + kThreads / 32 * kStagingFloats * 4;

  static_assert(kBlockM / kWarpRows * kWarpsN == kThreads / 32);
  static_assert(kPlanes == 1 || kMajorB == Major::kK);
  static_assert(kScoresOffset + 2 * kWarpsN * kBlockM * 4 <= kNotesOffset);
  static_assert(kSharedBytes <= 99 * 1024);  // what 8.6, 8.9 and 12.0 have
};

// 16-bit matrices, pitches in vectors of 16 bytes. The second of each is the second term's, or B's
// second plane.
struct Operands {
  const uint4* a[2] = {};
  const uint4* b[2] = {};
  std::int64_t pitch_a[2] = {};
  std::int64_t pitch_b[2] = {};
  std::int64_t batch_b[2] = {};  // from one expert's weights to the next's
  const int* list = nullptr;     // row m of A is row list[m] of a
  int m = 0;                     // columns of an MN-major A
  int n = 0;                     // columns of D
};

// Copies the slices of a tile into the ring.
template <class Tile>
class Producer {
 public:
  __device__ __forceinline__ Producer(const Operands& operands, std::uint32_t shared)
      : operands_(operands), shared_(shared) {}

  // Starts a tile, which stays where it is: its first Tile::kStages - 1 slices, a group each.
  __device__ __forceinline__ void start(const Work& work) {
    length_ = work.k_length;
    per_term_ = max(length_ + Tile::kBlockK - 1, 0) / Tile::kBlockK;
    work_ = &work;
    if (length_ >= 0) aim(0);
#pragma unroll
    for (int i = 0; i < Tile::kStages - 1; ++i) copy(i);
  }

  // One slice after the other, into the stages in turn, if there are so many; a group in any case.
  __device__ __forceinline__ void copy(int slice) {
    if (slice < slices()) {
      const std::uint32_t stage = shared_ + slice % Tile::kStages * Tile::kStageBytes;
      if (Tile::kTerms == 2 && slice == per_term_) aim(1);
      const int k =
          (Tile::kTerms == 2 && slice >= per_term_ ? slice - per_term_ : slice) * Tile::kBlockK;
      a_.copy(stage, k, length_);
      b_.copy(stage + Tile::kBytesA, k, length_);
    }
    ptx::copy_async_commit();
  }

  __device__ __forceinline__ int slices() const { return per_term_ * Tile::kTerms; }

 private:
  // At the operands of a term. Listed rows outside D are copies of the tile's first: nobody stores what
  // comes of them.
  __device__ __forceinline__ void aim(int term) {
    const Operands& o = operands_;
    const Work& work = *work_;
    if constexpr (Tile::kGathersA) {
      a_.start_listed(o.a[term], [&](int line) {
        const int m = work.m + (line < work.rows ? line : 0);
        return static_cast<std::uint32_t>(o.list != nullptr ? __ldg(o.list + m) : m) *
               static_cast<std::uint32_t>(o.pitch_a[term]);
      });
    } else if constexpr (Tile::kMajorA == Major::kK) {
      a_.start_rows({o.a[term] + work.m * o.pitch_a[term]}, o.pitch_a + term, work.rows);
    } else {
      a_.start_columns(o.a[term] + work.k * o.pitch_a[term], o.pitch_a[term], work.m / 8, o.m / 8);
    }
    if constexpr (Tile::kMajorB == Major::kK) {
      const auto first = [&](int i) {
        return o.b[i] + work.batch_b * o.batch_b[i] + work.n * o.pitch_b[i];
      };
      if constexpr (Tile::kPlanes == 2) {
        b_.start_rows({first(0), first(1)}, o.pitch_b, o.n - work.n);
      } else {
        b_.start_rows({first(term)}, o.pitch_b + term, o.n - work.n);
      }
    } else {
      b_.start_columns(o.b[term] + work.batch_b * o.batch_b[term] + work.k * o.pitch_b[term],
                       o.pitch_b[term], work.n / 8, (o.n + 7) / 8);
    }
  }

  const Operands& operands_;
  std::uint32_t shared_;
  Loader<Tile::kMajorA, Tile::kBlockM, Tile::kBlockK, 1, Tile::kGathersA> a_;
  Loader<Tile::kMajorB, Tile::kBlockN, Tile::kBlockK, Tile::kPlanes, false> b_;
  const Work* work_;
  int length_;    // of k, of a term
  int per_term_;  // slices
};

// A warp's part of a tile.
template <class Tile>
class Multiplier {
 public:
  __device__ __forceinline__ Multiplier(std::uint32_t shared, int warp, int lane)
      : shared_(shared),
        a_(warp / Tile::kWarpsN * kWarpRows, lane),
        b_(warp % Tile::kWarpsN * (kWarpColumns / Tile::kPlanes), lane) {}

  // `idle`: no row of the warp's is stored; it only helps to copy.
  __device__ __forceinline__ void run(Accumulators& acc, Producer<Tile>& producer, bool idle) {
#pragma unroll
    for (int i = 0; i < kBlocksM * 2 * kBlocksN * 4; ++i) (&acc[0][0][0])[i] = 0.0f;
    const int slices = producer.slices();
    if (slices > 0) {
      arrive();
      if (!idle) load(0, 0, 0);
    }
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
      // The slice that is overwritten was read before the last barrier.
      producer.copy(slice + Tile::kStages - 1);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        // Each step's fragments are read while the step before is multiplied.
        const bool last = step + 1 == kSteps;
        if (last) arrive();
        if (idle) continue;
        // Past the last slice: of what lies there, and not used.
        load((step + 1) % 2, slice + last, last ? 0 : step + 1);
        multiply(acc, step % 2);
      }
    }
    ptx::copy_async_wait<0>();
    __syncthreads();  // the ring is free
  }

 private:
  static constexpr int kSteps = Tile::kBlockK / 16;
  static_assert(kSteps % 2 == 0);

  // The next slice is there, for all threads.
  static __device__ __forceinline__ void arrive() {
    ptx::copy_async_wait<Tile::kStages - 2>();
    __syncthreads();
  }

  __device__ __forceinline__ void load(int buffer, int slice, int step) {
    const std::uint32_t a = shared_ + slice % Tile::kStages * Tile::kStageBytes;
#pragma unroll
    for (int i = 0; i < kBlocksM; ++i) a_.load(a, i * 16, step, fragment_a_[buffer][i]);
#pragma unroll
    for (int j = 0; j < kBlocksN; ++j) {
      constexpr int kPerPlane = kBlocksN / Tile::kPlanes;
      b_.load(a + Tile::kBytesA, j / kPerPlane * Tile::kStepN + j % kPerPlane * 16, step,
              fragment_b_[buffer][j]);
    }
  }

  __device__ __forceinline__ void multiply(Accumulators& acc, int buffer) {
#pragma unroll
    for (int i = 0; i < kBlocksM; ++i) {
#pragma unroll
      for (int j = 0; j < kBlocksN; ++j) {
        const auto& a = fragment_a_[buffer][i];
        const auto& b = fragment_b_[buffer][j];
        ptx::mma(acc[i][2 * j], a, b[0], b[1], typename Tile::Element{});
        ptx::mma(acc[i][2 * j + 1], a, b[2], b[3], typename Tile::Element{});
      }
    }
  }

  std::uint32_t shared_;
  Fragments<Tile::kMajorA, Tile::kBlockM, Tile::kBlockK, false> a_;
  Fragments<Tile::kMajorB, Tile::kBlockN, Tile::kBlockK, true> b_;
  std::uint32_t fragment_a_[2][kBlocksM][4];
  std::uint32_t fragment_b_[2][kBlocksN][4];
};

// What would take registers from the main loop if each thread kept it: the sequence of tiles, and the
// ones at hand. The first thread writes, a tile ahead: the main loop's barriers are between that and the
// reading.
template <class Schedule>
class Notes {
 public:
  __device__ __forceinline__ explicit Notes(const typename Schedule::Params& params)
      : schedule_(params, 0) {}

  // Tile number i of this CTA; without work (k_length < 0) after the last.
  __device__ __forceinline__ void write(int i) {
    Work work = {};
    if (!schedule_.next(work)) work.k_length = -1;
    works_[i % 3] = work;
  }
  __device__ __forceinline__ const Work& read(int i) const { return works_[i % 3]; }

 private:
  Work works_[3];
  Schedule schedule_;
};

template <class Tile, class Schedule, class Epilogue>
__global__ void __launch_bounds__(kThreads, 1)
    gemm_kernel(const __grid_constant__ Operands operands,
                const __grid_constant__ typename Schedule::Params schedule_params,
                const __grid_constant__ typename Epilogue::Params epilogue_params) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  static_assert(sizeof(Notes<Schedule>) <= kNotesBytes);
  const std::uint32_t shared = ptx::shared_address(shared_bytes);
  auto* notes = reinterpret_cast<Notes<Schedule>*>(shared_bytes + Tile::kNotesOffset);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const int lane = threadIdx.x % 32;
  Producer<Tile> producer(operands, shared);
  Multiplier<Tile> multiplier(shared, warp, lane);
  if (threadIdx.x == 0) {
    new (notes) Notes<Schedule>(schedule_params);
    notes->write(0);
  }
  __syncthreads();
  producer.start(notes->read(0));
  for (int i = 0; notes->read(i).k_length >= 0; ++i) {
    if (threadIdx.x == 0) notes->write(i + 1);
    const auto rows = [&] {
      const Work& work = notes->read(i);
      return Schedule::kRaggedK ? min(work.rows, operands.m - work.m) : work.rows;
    };
    Accumulators acc;
    multiplier.run(acc, producer, rows() <= warp / Tile::kWarpsN * kWarpRows);
    producer.start(notes->read(i + 1));
    Work done = notes->read(i);
    done.rows = rows();
    // Made anew: nothing that it is made of takes a register from the main loop.
    const int thread = ptx::thread_index();
    Epilogue(epilogue_params, shared_bytes, thread / 32, thread % 32).store(acc, done);
  }
}

}  // namespace dropless::cuda::mma
