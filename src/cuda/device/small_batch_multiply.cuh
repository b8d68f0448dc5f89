// The multiplying warps of small_batch.cuh: products, the activation, the combination.
#pragma once

#include "src/cuda/device/small_batch.cuh"

namespace dropless::cuda {

template <class Tile>
struct SmallMultiplier {
  const SmallParams& p;
  std::uint32_t sums;  // shared memory for partial sums
  int warp, lane;
  SmallShared& shared;
  std::uint32_t stages;
  SmallRing ring = {};
  SmallRingOf<2> signals = {};
  float acc[2][Tile::kRowTiles][4] = {};

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
      float* y = p.y_RD + static_cast<std::int64_t>(stage.row) * p.d;
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

  // Has other CTAs told that this one's stores are there.
  __device__ __forceinline__ void signal(int* counter) {
    ptx::named_barrier_sync(1, kSmallConsumers);
    if (threadIdx.x == 0) push_signal(counter);
  }
  __device__ __forceinline__ void push_signal(int* counter) {
    ptx::mbarrier_wait(ptx::shared_address(&shared.signal_empty[signals.stage]), signals.phase ^ 1);
    shared.signal[signals.stage] = counter;
    ptx::mbarrier_arrive(ptx::shared_address(&shared.signal_full[signals.stage]));
    signals.advance();
  }

  // Four columns of one token a thread. Where a row lies is known before all rows are there.
  __device__ __forceinline__ void combine(const SmallStage& stage) const {
    constexpr int kBatch = 8;  // rows whose loads are in flight together
    const int vectors = p.d / 4;
    const int i = stage.item * kSmallConsumers + static_cast<int>(threadIdx.x);
    const int token = min(i / vectors, p.tokens - 1);
    const int vector = i % vectors;
    std::int64_t at[kBatch];
    float weight[kBatch];
    const auto load_places = [&](int first) {
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int entry = token * p.top_k + min(first + k, p.top_k - 1);
        at[k] = static_cast<std::int64_t>(p.rows_TK[entry]) * vectors + vector;
        weight[k] = p.weights_TK[entry];
      }
    };
    load_places(0);
    if (threadIdx.x == 0) wait_for_count(&p.control->down_done, stage.k_end);
    ptx::named_barrier_sync(1, kSmallConsumers);
    if (i >= p.tokens * vectors) return;
    const auto* y = reinterpret_cast<const float4*>(p.y_RD);
    float sum[4] = {};
    for (int first = 0; first < p.top_k; first += kBatch) {
      if (first > 0) load_places(first);
      float4 value[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (first + k < p.top_k) value[k] = __ldcg(y + at[k]);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (first + k >= p.top_k) continue;
        sum[0] = fmaf(weight[k], value[k].x, sum[0]);
        sum[1] = fmaf(weight[k], value[k].y, sum[1]);
        sum[2] = fmaf(weight[k], value[k].z, sum[2]);
        sum[3] = fmaf(weight[k], value[k].w, sum[3]);
      }
    }
    reinterpret_cast<uint2*>(p.out_TD)[i] = make_uint2(ptx::pack<__nv_bfloat16>(sum[0], sum[1]),
                                                       ptx::pack<__nv_bfloat16>(sum[2], sum[3]));
  }

  __device__ __forceinline__ SmallStage next_stage() const {
    ptx::mbarrier_wait(ptx::shared_address(&shared.announced[ring.stage]), ring.phase);
    return shared.stage[ring.stage];
  }
  __device__ __forceinline__ std::uint32_t wait_until_full() const {
    ptx::mbarrier_wait(ptx::shared_address(&shared.full[ring.stage]), ring.phase);
    return stages + ring.stage * Tile::kStageBytes;
  }
  __device__ __forceinline__ void release() {
    // Every lane: racecheck does not follow one that arrives for all behind a __syncwarp.
    ptx::mbarrier_arrive(ptx::shared_address(&shared.empty[ring.stage]));
    ring.advance();
  }

  __device__ __forceinline__ void run() {
    while (true) {
      SmallStage stage = next_stage();
      if (stage.kind == kNoUnit) {
        if (threadIdx.x == 0) push_signal(nullptr);
        return;
      }
      if (stage.kind == kCombineUnit) {
        wait_until_full();
        release();
        combine(stage);
        continue;
      }
      const bool up = stage.kind == kUpUnit;
      const int slice = up ? Tile::kUpSlice : Tile::kDownSlice;
      clear();
      while (true) {
        const std::uint32_t at = wait_until_full();
        if (up) {
          up_stage(stage, at);
        } else {
          down_stage(stage, at);
        }
        release();
        if (stage.k + slice >= stage.k_end) break;
        stage = next_stage();
      }
      if (up) {
        finish_up(stage);
      } else {
        finish_down(stage);
      }
    }
  }
};

}  // namespace dropless::cuda
