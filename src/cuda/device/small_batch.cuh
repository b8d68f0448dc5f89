// Device code of the layer for few tokens: one stream of weights through shared memory.
//
// The work is a list of units that the CTAs draw tickets for: up units (a block of d_ffn of one
// item, all of d_model), then down units (a block of d_model, a range of d_ffn), then the combination.
// An item is an expert with up to kRows of its rows. Within a CTA
//
//   the weights warp   draws tickets, announces stages and has TMA fill them with weights
//   the rows warp      copies the rows of x, or of h, that go with each stage
//   eight warps        multiply: weights are M (16 x 2 a warp), rows are N, by mma.sync m16n8k16
//
// so that weights of the next units are under way while a unit waits for others' results: h of its
// item, or all of y. A unit waits only for units of lower tickets, and those are all held by running
// CTAs: whatever else the GPU does, the kernel ends.
#pragma once

#include <cuda_bf16.h>

#include "src/cuda/device/activation.cuh"
#include "src/cuda/device/ptx.cuh"

namespace dropless::cuda {

inline constexpr int kSmallConsumerWarps = 8;
inline constexpr int kSmallConsumers = 32 * kSmallConsumerWarps;
inline constexpr int kSmallThreads = kSmallConsumers + 64;
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
  std::int64_t rows;  // tokens * top_k
  bool glu;
  DeviceActivation activation;
  int up_blocks, down_blocks, splits, split_k, combine_units;
  SmallControl* control;
  const SmallItem* items;
  int* up_done;  // blocks, for each item
  const __nv_bfloat16* x_TD;
  const int* tokens_R;
  const int* rows_TK;
  const float* weights_TK;
  __nv_bfloat16 *gate_RF, *up_RF, *h_RF;  // gate and up may be null
  float* y_SRD;                           // a part for each range of d_ffn
  __nv_bfloat16* out_TD;
};

enum SmallKind : int { kUpUnit = 0, kDownUnit = 1, kCombineUnit = 2, kNoUnit = 3 };

// What a stage holds, in shared memory. For a combination `item` is which.
struct SmallStage {
  int kind, item, row, rows;
  int out;    // first of the unit's outputs
  int k;      // first of the stage's
  int k_end;  // of the unit
  int split;
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
  alignas(16) SmallStage stage[kSmallStages];
  int row_source[64];
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

// A position in the ring of stages.
struct SmallRing {
  int stage = 0;
  std::uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kSmallStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// ---- the weights warp: one thread
// ------------------------------------------------------------------------------

template <class Tile>
struct SmallWeights {
  const SmallParams& p;
  const CUtensorMap &w1, &v1, &w2;
  SmallShared& shared;
  std::uint32_t stages;  // address of the first
  SmallRing ring = {};

  __device__ __forceinline__ void announce(const SmallStage& stage, std::uint32_t bytes) {
    shared.stage[ring.stage] = stage;
    ptx::mbarrier_arrive(ptx::shared_address(&shared.announced[ring.stage]));
    ptx::mbarrier_arrive_expect_bytes(ptx::shared_address(&shared.full[ring.stage]), bytes);
  }

  __device__ __forceinline__ void acquire() {
    ptx::mbarrier_wait(ptx::shared_address(&shared.empty[ring.stage]), ring.phase ^ 1);
  }

  __device__ __forceinline__ void fill_up(int expert, int out, int k) {
    constexpr std::uint32_t kSlab = 128 * Tile::kUpM;
    const std::uint32_t full = ptx::shared_address(&shared.full[ring.stage]);
    std::uint32_t at = stages + ring.stage * Tile::kStageBytes;
    // Plain activations: the second plane is the next rows of w1.
    const CUtensorMap& second = p.glu ? v1 : w1;
    const int out2 = p.glu ? out : out + Tile::kUpM;
#pragma unroll
    for (int s = 0; s < Tile::kUpSlice / 64; ++s, at += kSlab) {
      if (k + 64 * s >= p.d) break;
      ptx::tma_load(&w1, full, at, k + 64 * s, out, expert);
      ptx::tma_load(&second, full, at + kSmallWeightBytes / 2, k + 64 * s, out2, expert);
    }
  }

  __device__ __forceinline__ void fill_down(int expert, int out, int k) {
    constexpr std::uint32_t kSlab = 128 * Tile::kDownSlice;
    const std::uint32_t full = ptx::shared_address(&shared.full[ring.stage]);
    std::uint32_t at = stages + ring.stage * Tile::kStageBytes;
#pragma unroll
    for (int s = 0; s < Tile::kDownM / 64; ++s, at += kSlab) {
      if (out + 64 * s >= p.d) break;
      ptx::tma_load(&w2, full, at, out + 64 * s, k, expert);
    }
  }

  __device__ __forceinline__ void run_up(int expert, SmallStage stage) {
    stage.k_end = p.d;
    for (stage.k = 0; stage.k < p.d; stage.k += Tile::kUpSlice) {
      acquire();
      const int slabs = min(Tile::kUpSlice / 64, (p.d - stage.k + 63) / 64);
      announce(stage, slabs * 256 * Tile::kUpM);
      fill_up(expert, stage.out, stage.k);
      ring.advance();
    }
  }

  __device__ __forceinline__ void run_down(int expert, SmallStage stage) {
    const int begin = stage.split * p.split_k;
    stage.k_end = min(p.f, begin + p.split_k);
    const int slabs = min(Tile::kDownM / 64, (p.d - stage.out + 63) / 64);
    for (stage.k = begin; stage.k < stage.k_end; stage.k += Tile::kDownSlice) {
      acquire();
      announce(stage, slabs * 128 * Tile::kDownSlice);
      fill_down(expert, stage.out, stage.k);
      ring.advance();
    }
  }

  // Unit `unit` of `blocks` an item; an expert's items take turns, so that its weights are read from
  // memory once.
  __device__ __forceinline__ SmallItem find(int unit, int blocks, SmallStage& stage, int& block) {
    const SmallItem item = p.items[unit / blocks];
    const int count = (item.rows + Tile::kRows - 1) / Tile::kRows;
    const int local = unit - item.first * blocks;
    block = local / count;
    const int chunk = local - block * count;
    stage.item = item.first + chunk;
    stage.row = item.row + chunk * Tile::kRows;
    stage.rows = min(item.rows - chunk * Tile::kRows, Tile::kRows);
    return item;
  }

  __device__ __forceinline__ void run() {
    const int items = p.control->items;
    const int up_units = items * p.up_blocks;
    const int down_units = items * p.down_blocks * p.splits;
    int ticket = blockIdx.x;
    while (ticket < up_units + down_units + p.combine_units) {
      const int next = atomicAdd(&p.control->ticket, 1);  // on its way while this unit is loaded
      SmallStage stage{};
      int block;
      if (ticket < up_units) {
        stage.kind = kUpUnit;
        const SmallItem item = find(ticket, p.up_blocks, stage, block);
        stage.out = block * (p.glu ? Tile::kUpM : 2 * Tile::kUpM);
        run_up(item.expert, stage);
      } else if (ticket < up_units + down_units) {
        stage.kind = kDownUnit;
        const SmallItem item = find(ticket - up_units, p.down_blocks * p.splits, stage, block);
        stage.split = block % p.splits;
        stage.out = block / p.splits * Tile::kDownM;
        run_down(item.expert, stage);
      } else {
        stage.kind = kCombineUnit;
        stage.item = ticket - up_units - down_units;
        stage.k_end = down_units;
        acquire();
        announce(stage, 0);
        ring.advance();
      }
      ticket = next;
    }
    SmallStage stage{};
    stage.kind = kNoUnit;
    acquire();
    announce(stage, 0);
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

// ---- the multiplying warps
// ----------------------------------------------------------------------------------------

template <class Tile>
struct SmallMultiplier {
  const SmallParams& p;
  std::uint32_t sums;  // shared memory for partial sums
  int warp, lane;
  float acc[2][Tile::kRowTiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int j = 0; j < Tile::kRowTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[m][j][i] = 0.0f;
      }
    }
  }

  // 32 k of this warp: a[m][half] are the fragments, b the rows from column `column` of the slice.
  template <int kPitch>
  __device__ __forceinline__ void multiply(const std::uint32_t (&a)[2][2][4], std::uint32_t rows,
                                           int column, int row_tiles) {
#pragma unroll
    for (int j = 0; j < Tile::kRowTiles; ++j) {
      if (j >= row_tiles) break;
      std::uint32_t b[4];
      ptx::ldmatrix_x4(rows + (8 * j + lane % 8) * kPitch + 2 * column + lane / 8 * 16, b);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mma_bf16(acc[0][j], a[0][half], b[2 * half], b[2 * half + 1]);
        mma_bf16(acc[1][j], a[1][half], b[2 * half], b[2 * half + 1]);
      }
    }
  }

  __device__ __forceinline__ void up_stage(const SmallStage& stage, std::uint32_t at) {
    constexpr int kWarps = Tile::kUpWarps;
    const int part = warp / kWarps;  // of k, 64 wide
    const int row = warp % kWarps * 16 + lane % 16;
    const std::uint32_t slab = at + part * 128 * Tile::kUpM + row * 128;
    const int row_tiles = (stage.rows + 7) / 8;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      if (stage.k + part * 64 + step * 32 >= p.d) break;
      std::uint32_t a[2][2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int chunk = step * 4 + half * 2 + lane / 16;
          ptx::ldmatrix_x4(slab + m * (kSmallWeightBytes / 2) + ((chunk ^ (row % 8)) << 4),
                           a[m][half]);
        }
      }
      multiply<Tile::kUpPitch>(a, at + kSmallWeightBytes, part * 64 + step * 32, row_tiles);
    }
  }

  __device__ __forceinline__ void down_stage(const SmallStage& stage, std::uint32_t at) {
    constexpr int kWarps = Tile::kDownWarps;
    const int part = warp / kWarps;
    const int group = warp % kWarps;  // of 32 columns
    const std::uint32_t slab = at + group / 2 * 128 * Tile::kDownSlice;
    const int row_tiles = (stage.rows + 7) / 8;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      if (stage.k + part * 64 + step * 32 >= p.f) break;
      std::uint32_t a[2][2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = part * 64 + step * 32 + half * 16 + lane % 8 + lane / 16 * 8;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const int chunk = group % 2 * 4 + m * 2 + lane / 8 % 2;
          ptx::ldmatrix_x4_trans(slab + row * 128 + ((chunk ^ (row % 8)) << 4), a[m][half]);
        }
      }
      multiply<Tile::kDownPitch>(a, at + kSmallWeightBytes, part * 64 + step * 32, row_tiles);
    }
  }

  // Adds the other warps' sums to those of the first kWarps, in order.
  template <int kWarps>
  __device__ __forceinline__ void sum_parts() {
    constexpr int kParts = kSmallConsumerWarps / kWarps;
    if constexpr (kParts > 1) {
      constexpr std::uint32_t kWarpBytes = 128 * Tile::kRows;
      if (warp >= kWarps) {
        const std::uint32_t to = sums + (warp - kWarps) * kWarpBytes + lane * 16;
#pragma unroll
        for (int i = 0; i < 2 * Tile::kRowTiles; ++i) {
          const float(&v)[4] = acc[i / Tile::kRowTiles][i % Tile::kRowTiles];
          ptx::store_shared(to + i * 512, make_int4(__float_as_int(v[0]), __float_as_int(v[1]),
                                                    __float_as_int(v[2]), __float_as_int(v[3])));
        }
      }
      ptx::named_barrier_sync(1, kSmallConsumers);
      if (warp < kWarps) {
#pragma unroll
        for (int part = 1; part < kParts; ++part) {
          const std::uint32_t from =
              sums + (part * kWarps + warp - kWarps) * kWarpBytes + lane * 16;
#pragma unroll
          for (int i = 0; i < 2 * Tile::kRowTiles; ++i) {
            float(&v)[4] = acc[i / Tile::kRowTiles][i % Tile::kRowTiles];
            const int4 other = ptx::load_shared_int4(from + i * 512);
            v[0] += __int_as_float(other.x);
            v[1] += __int_as_float(other.y);
            v[2] += __int_as_float(other.z);
            v[3] += __int_as_float(other.w);
          }
        }
      }
    }
  }

  __device__ __forceinline__ float activated(float x) const {
    switch (p.activation) {
      case DeviceActivation::kSilu:
        return activate<DeviceActivation::kSilu>(x).value;
      case DeviceActivation::kGeluTanh:
        return activate<DeviceActivation::kGeluTanh>(x).value;
      case DeviceActivation::kGelu:
        return activate<DeviceActivation::kGelu>(x).value;
      case DeviceActivation::kRelu:
        return activate<DeviceActivation::kRelu>(x).value;
      default:
        return activate<DeviceActivation::kQuickGelu>(x).value;
    }
  }

  __device__ __forceinline__ void store_pair(float gate, float up, std::int64_t at) const {
    // From the rounded pre-activations, as backward recomputes it.
    const __nv_bfloat16 g = __float2bfloat16(gate);
    const __nv_bfloat16 u = __float2bfloat16(up);
    const float a = activated(__bfloat162float(g));
    if (p.gate_RF != nullptr) p.gate_RF[at] = g;
    if (p.glu) {
      if (p.up_RF != nullptr) p.up_RF[at] = u;
      p.h_RF[at] = __float2bfloat16(a * __bfloat162float(u));
    } else {
      p.h_RF[at] = __float2bfloat16(a);
    }
  }

  __device__ __forceinline__ void finish_up(const SmallStage& stage) {
    sum_parts<Tile::kUpWarps>();
    if (warp < Tile::kUpWarps) {
      const int first = stage.out + warp * 16 + lane / 4;
#pragma unroll
      for (int j = 0; j < Tile::kRowTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = 8 * j + lane % 4 * 2 + i % 2;
          const int column = first + i / 2 * 8;
          if (row >= stage.rows) continue;
          const std::int64_t at = static_cast<std::int64_t>(stage.row + row) * p.f + column;
          if (column < p.f) store_pair(acc[0][j][i], acc[1][j][i], at);
          if (!p.glu && column + Tile::kUpM < p.f) {
            store_pair(acc[1][j][i], 0.0f, at + Tile::kUpM);
          }
        }
      }
    }
    signal(p.up_done + stage.item);
  }

  __device__ __forceinline__ void finish_down(const SmallStage& stage) {
    sum_parts<Tile::kDownWarps>();
    if (warp < Tile::kDownWarps) {
      float* y = p.y_SRD + (stage.split * p.rows + stage.row) * p.d;
      const int first = stage.out + warp * 32 + lane / 4;
#pragma unroll
      for (int j = 0; j < Tile::kRowTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int row = 8 * j + lane % 4 * 2 + i % 2;
          const int column = first + i / 2 * 8;
          if (row < stage.rows && column < p.d) {
            y[static_cast<std::int64_t>(row) * p.d + column] = acc[i / 4][j][i % 4];
          }
        }
      }
    }
    signal(&p.control->down_done);
  }

  // Tells other CTAs that this one's stores are there.
  __device__ __forceinline__ void signal(int* counter) const {
    ptx::named_barrier_sync(1, kSmallConsumers);
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(counter, 1);
    }
  }

  // Four columns of one token a thread.
  __device__ __forceinline__ void combine(const SmallStage& stage) const {
    if (threadIdx.x == 0) wait_for_count(&p.control->down_done, stage.k_end);
    ptx::named_barrier_sync(1, kSmallConsumers);
    const int vectors = p.d / 4;
    const int i = stage.item * kSmallConsumers + static_cast<int>(threadIdx.x);
    if (i >= p.tokens * vectors) return;
    const int token = i / vectors;
    const int vector = i - token * vectors;
    const float4* y = reinterpret_cast<const float4*>(p.y_SRD) + vector;
    float sum[4] = {};
    constexpr int kBatch = 4;  // rows whose loads are in flight together
    for (int first = 0; first < p.top_k; first += kBatch) {
      float value[kBatch][4] = {};
      float weight[kBatch];
      std::int64_t at[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int entry = token * p.top_k + min(first + k, p.top_k - 1);
        at[k] = static_cast<std::int64_t>(p.rows_TK[entry]) * vectors;
        weight[k] = first + k < p.top_k ? p.weights_TK[entry] : 0.0f;
      }
#pragma unroll 2
      for (int split = 0; split < p.splits; ++split) {
        float4 part[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) part[k] = __ldcg(y + split * p.rows * vectors + at[k]);
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          value[k][0] += part[k].x;
          value[k][1] += part[k].y;
          value[k][2] += part[k].z;
          value[k][3] += part[k].w;
        }
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (first + k >= p.top_k) break;
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] = fmaf(weight[k], value[k][j], sum[j]);
      }
    }
    reinterpret_cast<uint2*>(p.out_TD)[i] = make_uint2(ptx::pack<__nv_bfloat16>(sum[0], sum[1]),
                                                       ptx::pack<__nv_bfloat16>(sum[2], sum[3]));
  }

  __device__ __forceinline__ void run(SmallShared& shared, std::uint32_t stages) {
    SmallRing ring;
    clear();
    while (true) {
      ptx::mbarrier_wait(ptx::shared_address(&shared.announced[ring.stage]), ring.phase);
      const SmallStage stage = shared.stage[ring.stage];
      if (stage.kind == kNoUnit) return;
      ptx::mbarrier_wait(ptx::shared_address(&shared.full[ring.stage]), ring.phase);
      const std::uint32_t at = stages + ring.stage * Tile::kStageBytes;
      if (stage.kind == kUpUnit) up_stage(stage, at);
      if (stage.kind == kDownUnit) down_stage(stage, at);
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(ptx::shared_address(&shared.empty[ring.stage]));
      ring.advance();
      if (stage.kind == kUpUnit && stage.k + Tile::kUpSlice >= stage.k_end) {
        finish_up(stage);
        clear();
      } else if (stage.kind == kDownUnit && stage.k + Tile::kDownSlice >= stage.k_end) {
        finish_down(stage);
        clear();
      } else if (stage.kind == kCombineUnit) {
        combine(stage);
      }
    }
  }
};

}  // namespace dropless::cuda
