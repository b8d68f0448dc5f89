// What keeps a CTA of small_batch.cuh busy: the warps that load weights and rows, and the one that tells
// other CTAs of finished units.
#pragma once

#include "src/cuda/device/small_batch.cuh"

namespace dropless::cuda {

// ---- the weights warp: one thread
// ------------------------------------------------------------------------------

template <class Tile>
struct SmallWeights {
  const SmallParams& p;
  const CUtensorMap &w1, &v1, &w2;
  SmallShared& shared;
  std::uint32_t stages;  // address of the first
  std::uint64_t evict_first = ptx::policy_evict_first();
  std::uint64_t evict_normal = ptx::policy_evict_normal();
  SmallRing ring = {};

  __device__ __forceinline__ void announce(const SmallStage& stage, std::uint32_t bytes) {
    shared.stage[ring.stage] = stage;
    ptx::mbarrier_arrive(ptx::shared_address(&shared.announced[ring.stage]));
    ptx::mbarrier_arrive_expect_bytes(ptx::shared_address(&shared.full[ring.stage]), bytes);
  }

  __device__ __forceinline__ void acquire() {
    ptx::mbarrier_wait(ptx::shared_address(&shared.empty[ring.stage]), ring.phase ^ 1);
  }

  __device__ __forceinline__ void fill_up(int expert, int out, int k, std::uint64_t policy) {
    constexpr std::uint32_t kSlab = 128 * Tile::kUpM;
    const std::uint32_t full = ptx::shared_address(&shared.full[ring.stage]);
    std::uint32_t at = stages + ring.stage * Tile::kStageBytes;
    // Plain activations: the second plane is the next rows of w1.
    const CUtensorMap& second = p.glu ? v1 : w1;
    const int out2 = p.glu ? out : out + Tile::kUpM;
#pragma unroll
    for (int s = 0; s < Tile::kUpSlice / 64; ++s, at += kSlab) {
      if (k + 64 * s >= p.d) break;
      ptx::tma_load(&w1, full, at, k + 64 * s, out, expert, policy);
      ptx::tma_load(&second, full, at + kSmallWeightBytes / 2, k + 64 * s, out2, expert, policy);
    }
  }

  __device__ __forceinline__ void fill_down(int expert, int out, int k, std::uint64_t policy) {
    constexpr std::uint32_t kSlab = 128 * Tile::kDownSlice;
    const std::uint32_t full = ptx::shared_address(&shared.full[ring.stage]);
    std::uint32_t at = stages + ring.stage * Tile::kStageBytes;
#pragma unroll
    for (int s = 0; s < Tile::kDownM / 64; ++s, at += kSlab) {
      if (out + 64 * s >= p.d) break;
      ptx::tma_load(&w2, full, at, out + 64 * s, k, expert, policy);
    }
  }

  // A unit, and what stands for the end of all.
  struct Unit {
    SmallStage stage;
    int expert;
    int slices;
    bool again;  // another item needs the same weights
  };

  // Unit `unit` of `blocks` an item; an expert's items take turns, so that its weights are read from
  // memory once. Returns which block.
  __device__ __forceinline__ int find(int unit, int blocks, const SmallItem& item, Unit& found) {
    const int count = (item.rows + Tile::kRows - 1) / Tile::kRows;
    const int local = unit - item.first * blocks;
    const int block = local / count;
    const int chunk = local - block * count;
    found.expert = item.expert;
    found.again = count > 1;
    found.stage.item = item.first + chunk;
    found.stage.row = item.row + chunk * Tile::kRows;
    found.stage.rows = min(item.rows - chunk * Tile::kRows, Tile::kRows);
    return block;
  }

  __device__ __forceinline__ Unit unit_of(int ticket, int items) {
    const int up_units = items * p.up_blocks;
    const int down_units = items * p.down_blocks;
    Unit unit{};
    unit.slices = 1;
    // Read before `items` is known, which is on its way as well when the first unit is looked for.
    const bool up = ticket / p.up_blocks < p.max_items;
    const SmallItem up_item = p.items[up ? ticket / p.up_blocks : 0];
    if (ticket < up_units) {
      const int block = find(ticket, p.up_blocks, up_item, unit);
      unit.stage.kind = kUpUnit;
      unit.stage.out = block * (p.glu ? Tile::kUpM : 2 * Tile::kUpM);
      unit.stage.k_end = p.d;
      unit.slices = (p.d + Tile::kUpSlice - 1) / Tile::kUpSlice;
    } else if (ticket < up_units + down_units) {
      const int down = ticket - up_units;
      const int block = find(down, p.down_blocks, p.items[down / p.down_blocks], unit);
      unit.stage.kind = kDownUnit;
      unit.stage.out = block * Tile::kDownM;
      unit.stage.k_end = p.f;
      unit.slices = (p.f + Tile::kDownSlice - 1) / Tile::kDownSlice;
    } else if (ticket < up_units + down_units + p.combine_units) {
      unit.stage.kind = kCombineUnit;
      unit.stage.item = ticket - up_units - down_units;
      unit.stage.k_end = down_units;
    } else {
      unit.stage.kind = kNoUnit;
    }
    return unit;
  }

  __device__ __forceinline__ void fill(const Unit& unit) {
    const SmallStage& stage = unit.stage;
    if (stage.kind == kUpUnit) {
      const int slabs = min(Tile::kUpSlice / 64, (p.d - stage.k + 63) / 64);
      announce(stage, slabs * 256 * Tile::kUpM);
      fill_up(unit.expert, stage.out, stage.k, unit.again ? evict_normal : evict_first);
    } else if (stage.kind == kDownUnit) {
      const int slabs = min(Tile::kDownM / 64, (p.d - stage.out + 63) / 64);
      announce(stage, slabs * 128 * Tile::kDownSlice);
      fill_down(unit.expert, stage.out, stage.k, unit.again ? evict_normal : evict_first);
    } else {
      announce(stage, 0);
    }
  }

  __device__ __forceinline__ int draw() { return atomicAdd(&p.control->ticket, 1); }

  __device__ __forceinline__ void run() {
    const int items = p.control->items;
    Unit unit = unit_of(blockIdx.x, items);
    while (unit.stage.kind != kNoUnit) {
      int ticket = 0;
      const int slice = unit.stage.kind == kUpUnit ? Tile::kUpSlice : Tile::kDownSlice;
      for (int left = unit.slices; left > 1; --left) {
        // On its way while there is no room for this stage; earlier, it might go to a faster CTA.
        if (left == 2) ticket = draw();
        acquire();
        fill(unit);
        ring.advance();
        unit.stage.k += slice;
      }
      if (unit.slices == 1) ticket = draw();
      // The next is found while there is no room for this one's last stage.
      const Unit next = unit_of(ticket, items);
      acquire();
      fill(unit);
      ring.advance();
      unit = next;
    }
    acquire();
    announce(unit.stage, 0);
  }
};

// ---- the rows warp
// ------------------------------------------------------------------------------------------------

// Row i of the unit, `width` wide, columns [k, k + kSlice), zeros past `width`.
template <int kSlice>
__device__ __forceinline__ void copy_rows(const __nv_bfloat16* source, const int* row_source,
                                          int rows, int width, int k, std::uint32_t to) {
  constexpr int kVectors = kSlice / 8;
  const int lane = threadIdx.x % 32;
#pragma unroll 4
  for (int i = lane; i < rows * kVectors; i += 32) {
    const int row = i / kVectors;
    const int column = k + i % kVectors * 8;
    const bool inside = column < width;
    const __nv_bfloat16* from =
        source + static_cast<std::int64_t>(row_source[row]) * width + (inside ? column : 0);
    ptx::copy_async16(to + row * (2 * kSlice + 16) + i % kVectors * 16, from, inside ? 16 : 0);
  }
}

template <class Tile>
__device__ __forceinline__ void small_rows_warp(const SmallParams& p, SmallShared& shared,
                                                std::uint32_t stages) {
  const int lane = threadIdx.x % 32;
  SmallRing ring;
  int item = -1;
  int kind = -1;
  while (true) {
    ptx::mbarrier_wait(ptx::shared_address(&shared.announced[ring.stage]), ring.phase);
    const SmallStage stage = shared.stage[ring.stage];
    if (stage.kind == kNoUnit) return;
    const std::uint32_t to = stages + ring.stage * Tile::kStageBytes + kSmallWeightBytes;
    if (stage.kind != kCombineUnit) {
      if (stage.item != item || stage.kind != kind) {
        item = stage.item;
        kind = stage.kind;
        if (kind == kDownUnit) wait_for_count(p.up_done + item, p.up_blocks);
        __syncwarp();
        for (int i = lane; i < stage.rows; i += 32) {
          shared.row_source[i] = kind == kUpUnit ? p.tokens_R[stage.row + i] : stage.row + i;
        }
        __syncwarp();
      }
      if (kind == kUpUnit) {
        copy_rows<Tile::kUpSlice>(p.x_TD, shared.row_source, stage.rows, p.d, stage.k, to);
      } else {
        copy_rows<Tile::kDownSlice>(p.h_RF, shared.row_source, stage.rows, p.f, stage.k, to);
      }
    }
    ptx::copy_async_arrive(ptx::shared_address(&shared.full[ring.stage]));
    ring.advance();
  }
}

// ---- the signal warp: one thread
// ----------------------------------------------------------------------------------

__device__ __forceinline__ void small_signal_thread(SmallShared& shared) {
  SmallRingOf<2> ring;
  while (true) {
    ptx::mbarrier_wait(ptx::shared_address(&shared.signal_full[ring.stage]), ring.phase);
    int* counter = shared.signal[ring.stage];
    ptx::mbarrier_arrive(ptx::shared_address(&shared.signal_empty[ring.stage]));
    if (counter == nullptr) return;
    __threadfence();
    atomicAdd(counter, 1);
    ring.advance();
  }
}

}  // namespace dropless::cuda
