// The main loop of every matrix product here: D = A B^T (+ epilogue), bf16 or fp16 in, fp32
// accumulation.
//
// Three warpgroups a CTA, one CTA an SM. One thread of the first loads 64-deep slices of A and B
// through the copy engine into a ring of stages, another announces the tiles; the other two
// warpgroups multiply, each half of the tile's rows, and store. A cluster of two CTAs shares the operand they have in common by
// multicast.
#pragma once

#include "epilogue.cuh"
#include "pipeline.cuh"
#include "scheduler.cuh"
#include "tile.cuh"

namespace dropless::cuda {

// Where the operands lie. The second of each is the second term's, or B's second plane.
struct Operands {
  CUtensorMap a[2];
  CUtensorMap b[2];
  // With Tile::kGathersA, in place of `a`: row m of A is row list[m] of `rows`.
  const uint4* rows = nullptr;
  const int* list = nullptr;
  int vectors = 0;        // of 16 bytes in a row
  GatherJob beside = {};  // with Tile::kGathersBeside
};

// The loading thread: one stage after another, across tile borders.
template <class Tile>
__device__ __forceinline__ void produce(const Pipeline<Tile>& pipeline, const WorkRing& works,
                                        const Operands& operands, int rank) {
  RingPosition<Tile::kStages> ring;
  WorkRing::Position at;
  for (;;) {
    works.wait(at);
    const Work work = works.read(at);
    works.release(at);
    if (work.k_length < 0) break;
    // Of two terms each has half of k_length, in whole slices.
    const int length = work.k_length / Tile::kTerms;
#pragma unroll
    for (int term = 0; term < Tile::kTerms; ++term) {
      for (int k = 0; k < length; k += kBlockK) {
        pipeline.wait_empty(ring);
        const std::uint32_t full = pipeline.full(ring.stage);
        ptx::mbarrier_arrive_expect_bytes(full,
                                          Tile::kGathersA ? Tile::kBytesB : Tile::kStageBytes);
        if constexpr (!Tile::kGathersA) {
          load_operand<Tile::kBlockM, Tile::kMajorA, Tile::kClusterN>(
              &operands.a[term], full, pipeline.a(ring.stage), work.m, work.k + k, 0, rank,
              work.share);
        }
        if constexpr (Tile::kPlanes == 2) {
          load_planes<Tile::kBlockN>(&operands.b[0], &operands.b[1], full, pipeline.b(ring.stage),
                                     work.n, work.k + k, work.batch_b, rank, work.share);
        } else {
          load_operand<Tile::kBlockN, Tile::kMajorB, Tile::kClusterM>(
              &operands.b[term], full, pipeline.b(ring.stage), work.n, work.k + k, work.batch_b,
              rank, work.share);
        }
        ring.advance();
      }
    }
  }
}

// A gathering warp: every lane copies one 16-byte vector of each of 16 rows, stage after stage. Rows
// past the tile's last are copies of its first: nobody stores what comes of them.
template <class Tile>
__device__ __forceinline__ void gather(const Pipeline<Tile>& pipeline, const WorkRing& works,
                                       const Operands& operands, int warp, int lane) {
  constexpr int kVectors = kBlockK / 8;          // in a row of a slice
  constexpr int kAtOnce = 32 / kVectors;         // rows that the warp copies at once
  constexpr int kStep = kGatherWarps * kAtOnce;  // and how far its next ones are
  constexpr int kRows = Tile::kBlockM / kStep;   // of a lane
  constexpr int kHeld = Tile::kBlockM / kGatherWarps / 32;
  static_assert(kStep % 8 == 0);
  const int vector = lane % kVectors;
  const std::uint32_t place = swizzled(warp * kAtOnce + lane / kVectors, vector);
  RingPosition<Tile::kStages> ring;
  WorkRing::Position at;
  for (;;) {
    works.wait(at);
    const Work work = works.read(at);
    works.release_warp(at, lane);
    if (work.k_length < 0) break;
    // Where the warp's rows begin, in vectors from the tensor's first: each lane holds some rows'.
    std::uint32_t source[kHeld] = {};
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int i = 32 * h + lane;
      const int row = warp * kAtOnce + i % kAtOnce + i / kAtOnce * kStep;
      if (work.rows > 0) {
        source[h] = static_cast<std::uint32_t>(
                        __ldg(operands.list + work.m + (row < work.rows ? row : 0))) *
                    operands.vectors;
      }
    }
#pragma unroll 1  // few registers
    for (int left = operands.vectors; left > 0; left -= kVectors) {
      pipeline.wait_empty(ring);
      const int bytes = vector < left ? 16 : 0;
      const std::uint32_t destination = pipeline.a(ring.stage) + place;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const std::uint32_t begin =
            __shfl_sync(0xffffffff, source[i * kAtOnce / 32], i * kAtOnce % 32 + lane / kVectors);
        ptx::copy_async16(destination + i * kStep * 128, operands.rows + begin + vector, bytes);
      }
      ptx::copy_async_arrive(pipeline.full(ring.stage));
#pragma unroll
      for (int h = 0; h < kHeld; ++h) source[h] += kVectors;
      ring.advance();
    }
  }
}

// Offset in a stage of 64 rows of M: rows are 128 bytes (K-major), or one box of 64 columns.
inline constexpr int kRowTileBytes = 64 * 128;

// Zeroes k rows from `valid` up to the next multiple of 16 in what this warpgroup reads of a stage:
// they are rows of the next expert. Only for MN-major operands, where a row of k is 128 bytes of
// each box. B is shared with the other consumer, which writes the same zeros.
template <class Tile>
__device__ __forceinline__ void zero_k_tail(const Pipeline<Tile>& pipeline, int stage, int valid,
                                            int consumer) {
  constexpr int kBoxesA = Tile::kTilesM;
  constexpr int kBoxes = kBoxesA + Tile::kBytesB / kRowTileBytes;
  const int end = (valid + 15) / 16 * 16 * 128;
#pragma unroll
  for (int box = 0; box < kBoxes; ++box) {
    const std::uint32_t base = box < kBoxesA
                                   ? pipeline.a(stage) + (consumer * kBoxesA + box) * kRowTileBytes
                                   : pipeline.b(stage) + (box - kBoxesA) * kRowTileBytes;
    const int byte = valid * 128 + static_cast<int>(threadIdx.x % 128) * 16;
    if (byte < end) ptx::store_shared_zero16(base + byte);  // at most 15 rows: one pass
  }
  ptx::fence_proxy_async();
  ptx::named_barrier_sync(1 + consumer, 128);
}

// wgmmas over 16 of k, on all of this warpgroup's rows.
template <class Tile>
__device__ __forceinline__ void multiply_step(float (&acc)[Tile::kTilesM][Tile::kBlockN / 2],
                                              const Pipeline<Tile>& pipeline, int stage,
                                              int consumer, int step, int keep) {
  const std::uint32_t a = pipeline.a(stage) + consumer * Tile::kTilesM * kRowTileBytes;
  const std::uint64_t b =
      wgmma_descriptor<Tile::kMajorB>(pipeline.b(stage)) + step * kWgmmaStepK<Tile::kMajorB>;
#pragma unroll
  for (int i = 0; i < Tile::kTilesM; ++i) {
    wgmma<typename Tile::Element, Tile::kBlockN, Tile::kMajorA, Tile::kMajorB>(
        acc[i],
        wgmma_descriptor<Tile::kMajorA>(a + i * kRowTileBytes) + step * kWgmmaStepK<Tile::kMajorA>,
        b, keep);
  }
}

template <class Tile>
__device__ __forceinline__ void fence_accumulators(float (&acc)[Tile::kTilesM][Tile::kBlockN / 2]) {
#pragma unroll
  for (int i = 0; i < Tile::kTilesM; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kBlockN / 2; ++j) ptx::fence_register(acc[i][j]);
  }
}

// One consumer warpgroup.
template <class Tile, class Schedule, class Epilogue>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const Pipeline<Tile>& pipeline, const WorkRing& works,
                                      int consumer, int warp, int lane)
      : pipeline_(pipeline), works_(works), consumer_(consumer), warp_(warp), lane_(lane) {}

  __device__ __forceinline__ void run(Epilogue epilogue) {
    // The second consumer starts when the first has issued kConsumerLag stages, and stays behind by
    // as much.
    if (consumer_ == 1) ptx::named_barrier_sync(kLagBarrier, 256);
    bool lead = consumer_ == 0;  // and has yet to let the second go
    const int row0 = consumer_ * Tile::kRowsPerConsumer;
    WorkRing::Position at;
    for (;;) {
      works_.wait(at);
      const Work work = works_.read(at);
      const int k_length = work.k_length;
      if (k_length < 0) break;
      if (!Schedule::kRaggedK && work.rows <= row0) {
        works_.release_warp(at, lane_);
        release_follower(lead);
        skip(k_length);
        continue;
      }
      float acc[Tile::kTilesM][Tile::kBlockN / 2];
      if (Schedule::kRaggedK && k_length < kBlockK) zero(acc);
      if (Schedule::kEmptyK && k_length == 0) zero(acc);
      const int row = row0 + warp_ * 16;
      multiply(acc, k_length, lead, epilogue);
      release_follower(lead);  // a first tile shorter than the lag
      if constexpr (Epilogue::kDeferred) {
        static_assert(Tile::kTilesM == 1);
        while (epilogue.pending()) epilogue.step();
        epilogue.take(acc[0], works_.read(at), row);
      } else {
        const Work place = works_.read(at);
#pragma unroll
        for (int i = 0; i < Tile::kTilesM; ++i) epilogue(acc[i], place, row + i * 64);
      }
      works_.release_warp(at, lane_);
    }
    release_follower(lead);
    if constexpr (Epilogue::kDeferred) {
      while (epilogue.pending()) epilogue.step();
    }
    epilogue.finish();
  }

 private:
  using Accumulators = float[Tile::kTilesM][Tile::kBlockN / 2];
  static constexpr int kLagBarrier = 3;

  static __device__ __forceinline__ void zero(Accumulators& acc) {
#pragma unroll
    for (int i = 0; i < Tile::kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kBlockN / 2; ++j) acc[i][j] = 0.0f;
    }
  }

  static __device__ __forceinline__ void release_follower(bool& lead) {
    if (lead) ptx::named_barrier_arrive(kLagBarrier, 256);
    lead = false;
  }

  // No valid row in this half of the tile: leave the tensor cores to the other warpgroup.
  __device__ __forceinline__ void skip(int k_length) {
    const int stages = (k_length + kBlockK - 1) / kBlockK;
    for (int i = 0; i < stages; ++i) {
      pipeline_.wait_full(ring_);
      pipeline_.release(ring_.stage, lane_);
      ring_.advance();
    }
  }

  __device__ __forceinline__ void multiply(Accumulators& acc, int k_length, bool& lead,
                                           Epilogue& epilogue) {
    int previous = -1;
    const int whole = Schedule::kRaggedK ? k_length / kBlockK : (k_length + kBlockK - 1) / kBlockK;
    for (int block = 0; block < whole; ++block) {
      pipeline_.wait_full(ring_);
      if (Tile::kGathersA) ptx::fence_proxy_async();  // not the copy engine's
      fence_accumulators<Tile>(acc);
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < kBlockK / 16; ++step) {
        multiply_step<Tile>(acc, pipeline_, ring_.stage, consumer_, step, block != 0 || step != 0);
      }
      ptx::wgmma_commit();
      fence_accumulators<Tile>(acc);
      if (block + 1 == kConsumerLag) release_follower(lead);
      // The youngest group stays in flight; the stage before it is free.
      ptx::wgmma_wait<1>();
      if (previous >= 0) pipeline_.release(previous, lane_);
      previous = ring_.stage;
      ring_.advance();
      if constexpr (Epilogue::kDeferred) {
        if (epilogue.pending()) epilogue.step();  // of the tile before, under this one's wgmmas
      }
    }
    if (Schedule::kRaggedK && k_length % kBlockK != 0) {
      const int tail = k_length % kBlockK;
      pipeline_.wait_full(ring_);
      if (tail % 16 != 0) zero_k_tail<Tile>(pipeline_, ring_.stage, tail, consumer_);
      fence_accumulators<Tile>(acc);
#pragma unroll 1
      for (int step = 0; 16 * step < tail; ++step) {
        ptx::wgmma_fence();
        multiply_step<Tile>(acc, pipeline_, ring_.stage, consumer_, step, 1);
        ptx::wgmma_commit();
        fence_accumulators<Tile>(acc);
      }
      ptx::wgmma_wait<0>();
      if (previous >= 0) pipeline_.release(previous, lane_);
      previous = ring_.stage;
      ring_.advance();
    }
    ptx::wgmma_wait<0>();
    fence_accumulators<Tile>(acc);
    if (previous >= 0) pipeline_.release(previous, lane_);
  }

  const Pipeline<Tile>& pipeline_;
  const WorkRing& works_;
  RingPosition<Tile::kStages> ring_;
  int consumer_;
  int warp_;
  int lane_;
};

// How the loading thread fills the stages of a work.
template <class Tile>
struct DenseLoader {
  using Params = Operands;
  static __device__ __forceinline__ void run(const Pipeline<Tile>& pipeline, const WorkRing& works,
                                             const Operands& operands, int rank) {
    produce<Tile>(pipeline, works, operands, rank);
  }
};

template <class Tile, class Schedule, class Epilogue, class Loader = DenseLoader<Tile>>
__global__ void __launch_bounds__(kGemmThreads, 1)
    gemm_kernel(const __grid_constant__ typename Loader::Params operands,
                const __grid_constant__ typename Schedule::Params schedule_params,
                const __grid_constant__ typename Epilogue::Params epilogue_params) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  const std::uint32_t shared = ptx::shared_address(shared_bytes);
  const Pipeline<Tile> pipeline(shared);
  const WorkRing works(shared + Tile::kWorkOffset);
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0) % 4;
  const int lane = threadIdx.x % 32;
  const int rank = Tile::kCluster > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
  constexpr bool kTakesJob = Tile::kGathersBeside && requires { operands.beside; };
  const auto beside = [=](int i) {
    using Warp = typename Tile::GatherBeside;
    return Warp(shared + Tile::kBesideOffset + i * Warp::kRingBytes);
  };

  if (threadIdx.x == 0) {
    if (!Tile::kGathersA) ptx::prefetch_tensor_map(&operands.a[0]);
    ptx::prefetch_tensor_map(&operands.b[0]);
    works.init(kConsumerWarps + 1 + (Tile::kGathersA ? kGatherWarps : 0));
    for (int i = 0; Epilogue::kFetches && i < kConsumerWarps; ++i) {
      ptx::mbarrier_init(shared + Tile::kFetchOffset + 8 * i, 1);
    }
    if constexpr (kTakesJob) {
      for (int i = 0; i < kBesideWarps; ++i) beside(i).init();
    }
    pipeline.init();
  }
  if constexpr (Tile::kCluster > 1) {
    ptx::cluster_sync();
  } else {
    __syncthreads();
  }
  ptx::dependency_wait();

  if (warpgroup == 0) {
    ptx::register_decrease<kLoaderRegisters>();
    if (warp == 0 && ptx::elect_one()) {
      Loader::run(pipeline, works, operands, rank);
      // Not before: the CTAs of small kernels would crowd on the first multiprocessors that are free.
      ptx::launch_dependents();
    } else if (warp == 1 && ptx::elect_one()) {
      works.announce(Schedule(schedule_params, rank));
    } else if constexpr (Tile::kGathersA) {
      if (warp >= 4 - kGatherWarps) {
        gather<Tile>(pipeline, works, operands, warp - (4 - kGatherWarps), lane);
      }
    } else if constexpr (kTakesJob) {
      if (const int i = warp - (4 - kBesideWarps); i >= 0) {
        beside(i).run(operands.beside, kBesideWarps * blockIdx.x + i, kBesideWarps * gridDim.x,
                      lane);
      }
    }
    __syncwarp();
  } else {
    ptx::register_increase<kConsumerRegisters>();
    const int consumer = warpgroup - 1;
    const std::uint32_t slots =
        shared + Tile::kSlotsOffset + (consumer * 4 + warp) * Tile::kSlots * kSlotBytes;
    Consumer<Tile, Schedule, Epilogue> multiplier(pipeline, works, consumer, warp, lane);
    if constexpr (Epilogue::kFetches) {
      const std::uint32_t barrier = shared + Tile::kFetchOffset + 8 * (consumer * 4 + warp);
      multiplier.run(Epilogue(epilogue_params, slots, barrier, lane));
    } else {
      multiplier.run(Epilogue(epilogue_params, slots, lane));
    }
    __syncwarp();
  }
  // A peer may still signal this CTA's barriers: leave together.
  if constexpr (Tile::kCluster > 1) ptx::cluster_sync();
}

}  // namespace dropless::cuda
