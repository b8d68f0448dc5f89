// The main loop of every matrix product here: D = A B^T (+ epilogue), bf16 in, fp32 accumulation.
//
// Three warpgroups a CTA, one CTA an SM. One thread of the first loads 64-deep slices of A and B
// through the copy engine into a ring of stages; the other two warpgroups multiply, each half of
// the tile's rows, and store. A cluster of two CTAs shares the operand they have in common by
// multicast.
#pragma once

#include "epilogue.cuh"
#include "pipeline.cuh"
#include "scheduler.cuh"
#include "tile.cuh"

namespace dropless::cuda {

// The loading thread: one stage after another, across tile borders.
template <class Tile, class Schedule>
__device__ __forceinline__ void produce(const Pipeline<Tile>& pipeline, Schedule schedule,
                                        const CUtensorMap* map_a, const CUtensorMap* map_b,
                                        int rank) {
  RingPosition<Tile::kStages> ring;
  Work work;
  while (schedule.next(work)) {
    for (int k = 0; k < work.k_length; k += kBlockK) {
      pipeline.wait_empty(ring);
      const std::uint32_t full = pipeline.full(ring.stage);
      ptx::mbarrier_arrive_expect_bytes(full, Tile::kStageBytes);
      load_operand<Tile::kBlockM, Tile::kMajorA, Tile::kClusterN>(
          map_a, full, pipeline.a(ring.stage), work.m, work.k + k, 0, rank, work.share);
      load_operand<Tile::kBlockN, Tile::kMajorB, Tile::kClusterM>(
          map_b, full, pipeline.b(ring.stage), work.n, work.k + k, work.batch_b, rank, work.share);
      ring.advance();
    }
  }
}

// Zeroes k rows `valid`.. of a stage: they are rows of the next expert. Only for MN-major operands,
// where a row of k is 128 bytes of each box. By all consumer threads.
template <class Tile>
__device__ __forceinline__ void zero_k_tail(const Pipeline<Tile>& pipeline, int stage, int valid,
                                            int thread) {
  constexpr int kBoxBytes = 64 * 128;
  for (int box = 0; box < Tile::kStageBytes / kBoxBytes; ++box) {
    for (int byte = valid * 128 + thread * 16; byte < kBoxBytes; byte += kConsumers * 128 * 16) {
      ptx::store_shared_zero16(pipeline.a(stage) + box * kBoxBytes + byte);
    }
  }
  ptx::fence_proxy_async();
  ptx::named_barrier_sync(1, kConsumers * 128);
}

// Starts the wgmmas of one stage on this warpgroup's rows and commits them as one group.
template <class Tile>
__device__ __forceinline__ void multiply_stage(float (&acc)[Tile::kTilesM][Tile::kBlockN / 2],
                                               const Pipeline<Tile>& pipeline, int stage,
                                               int consumer, int keep) {
  // Offset of 64 rows of M: rows are 128 bytes (K-major), or one box of 64 columns (MN-major).
  constexpr int kRowTileBytes = 64 * 128;
  const std::uint32_t a = pipeline.a(stage) + consumer * Tile::kTilesM * kRowTileBytes;
  const std::uint64_t b = wgmma_descriptor<Tile::kMajorB>(pipeline.b(stage));
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kBlockK / 16; ++step) {
#pragma unroll
    for (int i = 0; i < Tile::kTilesM; ++i) {
      wgmma_bf16<Tile::kBlockN, Tile::kMajorA, Tile::kMajorB>(
          acc[i],
          wgmma_descriptor<Tile::kMajorA>(a + i * kRowTileBytes) +
              step * kWgmmaStepK<Tile::kMajorA>,
          b + step * kWgmmaStepK<Tile::kMajorB>, step == 0 ? keep : 1);
    }
  }
  ptx::wgmma_commit();
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
__device__ __forceinline__ void consume(const Pipeline<Tile>& pipeline, Schedule schedule,
                                        Epilogue epilogue, int consumer, int warp, int lane) {
  RingPosition<Tile::kStages> ring;
  Work work;
  while (schedule.next(work)) {
    const int row0 = consumer * Tile::kRowsPerConsumer;
    if (!Schedule::kRaggedK && work.rows <= row0) {
      // No valid row in this half: leave the tensor cores to the other warpgroup.
      for (int k = 0; k < work.k_length; k += kBlockK) {
        pipeline.wait_full(ring);
        pipeline.release(ring.stage, lane);
        ring.advance();
      }
      continue;
    }

    float acc[Tile::kTilesM][Tile::kBlockN / 2];
    if (Schedule::kRaggedK && work.k_length == 0) {
#pragma unroll
      for (int i = 0; i < Tile::kTilesM; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kBlockN / 2; ++j) acc[i][j] = 0.0f;
      }
    }
    int previous = -1;
    for (int k = 0; k < work.k_length; k += kBlockK) {
      pipeline.wait_full(ring);
      if (Schedule::kRaggedK && work.k_length - k < kBlockK) {
        zero_k_tail<Tile>(pipeline, ring.stage, work.k_length - k, threadIdx.x - 128);
      }
      fence_accumulators<Tile>(acc);
      multiply_stage<Tile>(acc, pipeline, ring.stage, consumer, k != 0);
      fence_accumulators<Tile>(acc);
      ptx::wgmma_wait<Tile::kInFlight>();
      if constexpr (Tile::kInFlight == 0) {
        pipeline.release(ring.stage, lane);
      } else {
        // The youngest group stays in flight; the stage before it is free.
        if (previous >= 0) pipeline.release(previous, lane);
        previous = ring.stage;
      }
      ring.advance();
    }
    ptx::wgmma_wait<0>();
    fence_accumulators<Tile>(acc);
    if (previous >= 0) pipeline.release(previous, lane);

#pragma unroll
    for (int i = 0; i < Tile::kTilesM; ++i) epilogue(acc[i], work, row0 + i * 64 + warp * 16);
  }
  epilogue.finish();
}

template <class Tile, class Schedule, class Epilogue>
__global__ void __launch_bounds__(kGemmThreads, 1)
    gemm_kernel(const __grid_constant__ CUtensorMap map_a,
                const __grid_constant__ CUtensorMap map_b,
                const __grid_constant__ typename Schedule::Params schedule_params,
                const __grid_constant__ typename Epilogue::Params epilogue_params) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  const std::uint32_t shared = ptx::shared_address(shared_bytes);
  const Pipeline<Tile> pipeline(shared);
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0) % 4;
  const int lane = threadIdx.x % 32;
  const int rank = Tile::kCluster > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;

  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&map_a);
    ptx::prefetch_tensor_map(&map_b);
    pipeline.init();
  }
  if constexpr (Tile::kCluster > 1) {
    ptx::cluster_sync();
  } else {
    __syncthreads();
  }

  if (warpgroup == 0) {
    ptx::register_decrease<kLoaderRegisters>();
    if (warp == 0 && ptx::elect_one()) {
      produce<Tile>(pipeline, Schedule(schedule_params, rank), &map_a, &map_b, rank);
    }
    __syncwarp();
  } else {
    ptx::register_increase<kConsumerRegisters>();
    const int consumer = warpgroup - 1;
    const std::uint32_t slots =
        shared + Tile::kSlotsOffset + (consumer * 4 + warp) * Tile::kSlots * kSlotBytes;
    consume<Tile>(pipeline, Schedule(schedule_params, rank), Epilogue(epilogue_params, slots, lane),
                  consumer, warp, lane);
    __syncwarp();
  }
  // A peer may still signal this CTA's barriers: leave together.
  if constexpr (Tile::kCluster > 1) ptx::cluster_sync();
}

}  // namespace dropless::cuda
