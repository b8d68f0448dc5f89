// The ring of shared-memory stages between the loading thread and the consumers.
//
// full[s]:  1 arrival, by the loading thread of this CTA, plus the bytes of both operands,
//           whichever CTA of the cluster loaded them; where A is gathered, the bytes of B and one
//           arrival of each gathering thread.
// empty[s]: one arrival by each consumer warp of every CTA in the cluster: a CTA may overwrite its
//           peer's stage by multicast, so it must know that the peer is done with it too.
#pragma once

#include "ptx.cuh"
#include "scheduler.cuh"
#include "tile.cuh"

namespace dropless::cuda {

// Position in the ring; the parity flips on each lap.
template <int kStages>
struct RingPosition {
  int stage = 0;
  std::uint32_t phase = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

template <class Tile>
class Pipeline {
 public:
  __device__ __forceinline__ explicit Pipeline(std::uint32_t shared)
      : shared_(shared), full_(shared + Tile::kBarriersOffset), empty_(full_ + 8 * Tile::kStages) {}

  // By one thread, before the cluster synchronises.
  __device__ __forceinline__ void init() const {
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      ptx::mbarrier_init(full_ + 8 * stage, 1 + (Tile::kGathersA ? 32 * kGatherWarps : 0));
      ptx::mbarrier_init(empty_ + 8 * stage, kConsumerWarps * Tile::kCluster);
    }
    ptx::fence_mbarrier_init();
  }

  __device__ __forceinline__ std::uint32_t a(int stage) const {
    return shared_ + stage * Tile::kStageBytes;
  }
  __device__ __forceinline__ std::uint32_t b(int stage) const { return a(stage) + Tile::kBytesA; }
  __device__ __forceinline__ std::uint32_t full(int stage) const { return full_ + 8 * stage; }

  __device__ __forceinline__ void wait_full(const RingPosition<Tile::kStages>& ring) const {
    ptx::mbarrier_wait(full_ + 8 * ring.stage, ring.phase);
  }
  // The first lap passes at once: an mbarrier counts the phase before its first as complete.
  __device__ __forceinline__ void wait_empty(const RingPosition<Tile::kStages>& ring) const {
    ptx::mbarrier_wait(empty_ + 8 * ring.stage, ring.phase ^ 1);
  }

  // By every lane of a consumer warp, once its wgmmas on the stage are complete.
  __device__ __forceinline__ void release(int stage, int lane) const {
    if constexpr (Tile::kCluster == 1) {
      if (lane == 0) ptx::mbarrier_arrive(empty_ + 8 * stage);
    } else {
      if (lane < Tile::kCluster) ptx::mbarrier_arrive_cluster(empty_ + 8 * stage, lane);
    }
  }

 private:
  std::uint32_t shared_;
  std::uint32_t full_;
  std::uint32_t empty_;
};

// Tiles on their way from the thread that walks the schedule to the loading thread and to the
// consumer warps of the CTA, which have no registers to spare for it.
class WorkRing {
 public:
  using Position = RingPosition<kWorkEntries>;

  __device__ __forceinline__ explicit WorkRing(std::uint32_t shared) : shared_(shared) {}

  // `readers`: threads that release each entry.
  __device__ __forceinline__ void init(int readers) const {
    for (int i = 0; i < kWorkEntries; ++i) {
      ptx::mbarrier_init(full(i), 1);
      ptx::mbarrier_init(empty(i), readers);
    }
  }

  // By one thread.
  template <class Schedule>
  __device__ __forceinline__ void announce(Schedule schedule) const {
    Position at;
    Work work{};
    for (bool more = true; more; at.advance()) {
      more = schedule.next(work);
      if (!more) work.k_length = -1;
      ptx::mbarrier_wait(empty(at.stage), at.phase ^ 1);
      ptx::store_shared(entry(at), make_int4(work.k_length, work.rows, work.m, work.n));
      ptx::store_shared(entry(at) + 16, make_int4(work.k, work.batch_b, work.batch_d, work.share));
      ptx::mbarrier_arrive(full(at.stage));
    }
  }

  // By the loading thread, or every lane of a consumer or gathering warp: the entry stays until it is
  // released, by one thread of each.
  __device__ __forceinline__ void wait(const Position& at) const {
    ptx::mbarrier_wait(full(at.stage), at.phase);
  }
  __device__ __forceinline__ Work read(const Position& at) const {
    const int4 first = ptx::load_shared_int4(entry(at));
    const int4 second = ptx::load_shared_int4(entry(at) + 16);
    return {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
  }
  __device__ __forceinline__ void release(Position& at) const {
    ptx::mbarrier_arrive(empty(at.stage));
    at.advance();
  }
  __device__ __forceinline__ void release_warp(Position& at, int lane) const {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(empty(at.stage));
    at.advance();
  }

 private:
  __device__ __forceinline__ std::uint32_t entry(const Position& at) const {
    return shared_ + at.stage * 32;
  }
  __device__ __forceinline__ std::uint32_t full(int i) const {
    return shared_ + kWorkEntries * 32 + i * 8;
  }
  __device__ __forceinline__ std::uint32_t empty(int i) const { return full(kWorkEntries) + i * 8; }

  std::uint32_t shared_;
};

// Loads a tile of kRows (M or N) by 64 (k) of one operand into `destination`.
//
// With kShare = 2 and `share` set, this CTA loads its half and multicasts it to both CTAs of the
// cluster; without `share` it loads the whole tile for itself alone.
template <int kRows, Major kMajor, int kShare>
__device__ __forceinline__ void load_operand(const CUtensorMap* map, std::uint32_t barrier,
                                             std::uint32_t destination, int mn, int k, int batch,
                                             int rank, bool share) {
  constexpr int kBoxRows = kMajor == Major::kK ? kRows / kShare : 64;
  constexpr int kBoxes = kRows / kBoxRows;
#pragma unroll
  for (int box = 0; box < kBoxes; ++box) {
    const std::uint32_t target = destination + box * kBoxRows * kBlockK * 2;
    const int row = mn + box * kBoxRows;
    const int c0 = kMajor == Major::kK ? k : row;
    const int c1 = kMajor == Major::kK ? row : k;
    if (kShare == 1 || !share) {
      ptx::tma_load(map, barrier, target, c0, c1, batch);
    } else if (box % kShare == rank) {
      ptx::tma_load_multicast(map, barrier, target, c0, c1, batch, (1 << kShare) - 1);
    }
  }
}

// The same for a K-major B of two planes, kRows / 2 rows of each: with `share` this CTA loads the
// plane of its rank for both.
template <int kRows>
__device__ __forceinline__ void load_planes(const CUtensorMap* map_0, const CUtensorMap* map_1,
                                            std::uint32_t barrier, std::uint32_t destination,
                                            int mn, int k, int batch, int rank, bool share) {
#pragma unroll
  for (int plane = 0; plane < 2; ++plane) {
    const CUtensorMap* map = plane == 0 ? map_0 : map_1;
    const std::uint32_t target = destination + plane * (kRows / 2) * kBlockK * 2;
    if (!share) {
      ptx::tma_load(map, barrier, target, k, mn, batch);
    } else if (plane == rank) {
      ptx::tma_load_multicast(map, barrier, target, k, mn, batch, 3);
    }
  }
}

}  // namespace dropless::cuda
