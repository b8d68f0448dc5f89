// Device code of the layer for few tokens: one stream of weights through shared memory.
//
// The work is a list of units that the CTAs draw tickets for: up units (a block of d_ffn of one
// item), then down units (a block of d_model of one item), then pieces of the combination. An item is an expert with up to kRows of its rows. Within a CTA
//
//   the weights warp   draws tickets, announces stages and has TMA fill them with weights
//   the rows warp      copies the rows of x, or of h, that go with each stage
//   eight warps        multiply: weights are M (16 x 2 a warp), rows are N, by mma.sync m16n8k16
//   the signal warp    tells other CTAs of finished units: waiting for stores to be seen takes long
//
// so that weights of the next units are under way while a unit waits for others' results: h of its
// item, or all of y. A unit waits only for units of lower tickets, and those are all held by running
// CTAs: whatever else the GPU does, the kernel ends.
#pragma once

#include <cuda_bf16.h>

#include "src/cuda/device/activation.cuh"
#include "src/cuda/device/ptx.cuh"
#include "src/cuda/device/streaming.cuh"

namespace dropless::cuda {

inline constexpr int kSmallConsumerWarps = 8;
inline constexpr int kSmallConsumers = 32 * kSmallConsumerWarps;
inline constexpr int kSmallThreads = kSmallConsumers + 96;
inline constexpr int kSmallStages = 5;
inline constexpr int kSmallWeightBytes = 32768;

// An expert that has rows, once for each kRows of them.
struct SmallItem {
  int expert;
  int row;    // its first
  int rows;   // all of them
  int first;  // item of the expert
};

// Written by the router's kernel; then `items`, one counter an item.
struct SmallControl {
  int ticket;  // the next unit to draw
  int items;
  int down_done;  // units
  int unused;
};

struct SmallParams {
  int tokens, top_k, d, f;
  bool glu;
  DeviceActivation activation;
  int up_blocks, down_blocks, combine_units, max_items;
  SmallControl* control;
  const SmallItem* items;
  int* up_done;  // blocks, for each item
  const __nv_bfloat16* x_TD;
  const int* tokens_R;
  const int* rows_TK;
  const float* weights_TK;
  __nv_bfloat16 *gate_RF, *up_RF, *h_RF;  // gate and up may be null
  float* y_RD;
  __nv_bfloat16* out_TD;
};

enum SmallKind : int { kUpUnit = 0, kDownUnit = 1, kCombineUnit = 2, kNoUnit = 3 };

// What a stage holds, in shared memory. For a combination `item` is which.
struct alignas(32) SmallStage {
  int kind, item, row, rows;
  int out;    // first of the unit's outputs
  int k;      // first of the stage's
  int k_end;  // of the unit
};

template <int kRows_, int kUp, int kUpK, int kDown, int kDownK>
struct SmallTile {
  static constexpr int kRows = kRows_;
  static constexpr int kUpM = kUp, kUpSlice = kUpK, kDownM = kDown, kDownSlice = kDownK;
  static constexpr int kRowTiles = kRows / 8;
  // Warps along M; the others share k.
  static constexpr int kUpWarps = kUp / 16, kDownWarps = kDown / 32;
  // Bytes of a row of x or h; 16 more keep eight rows in different banks.
  static constexpr int kUpPitch = 2 * kUpK + 16, kDownPitch = 2 * kDownK + 16;
  static constexpr int kRowBytes = kRows * (kUpPitch > kDownPitch ? kUpPitch : kDownPitch);
  static constexpr int kStageBytes = (kSmallWeightBytes + kRowBytes + 1023) / 1024 * 1024;
  // Partial sums of the warps that share k but the first: 32 rows of kRows floats each.
  static constexpr int kSumBytes =
      128 * kRows * (kSmallConsumerWarps - (kUpWarps < kDownWarps ? kUpWarps : kDownWarps));
  static constexpr int kSharedBytes = 1024 + kSmallStages * kStageBytes + kSumBytes;
};

struct SmallShared {
  alignas(8) std::uint64_t full[kSmallStages], empty[kSmallStages], announced[kSmallStages];
  alignas(8) std::uint64_t signal_full[2], signal_empty[2];
  SmallStage stage[kSmallStages];
  int* signal[2];  // counters of finished units; null: the last
  int row_source[32];
};

__device__ __forceinline__ int load_acquire(const int* address) {
  int value;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

// Waits until *counter reaches `count`.
__device__ __forceinline__ void wait_for_count(const int* counter, int count) {
  while (load_acquire(counter) < count) __nanosleep(20);
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4],
                                         std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
      " {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A position in a ring.
template <int kStages>
struct SmallRingOf {
  int stage = 0;
  std::uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};
using SmallRing = SmallRingOf<kSmallStages>;

}  // namespace dropless::cuda
