// Epilogues of an expert network's up projection and of the gradient that flows back through it.
//
//   forward    gate = x w1^T, up = x v1^T          a = act(gate) * up      (GLU; else act(gate))
//   backward   t = d_out w2^T (this product), s the row's router weight:
//              d_gate = s t * up * act'(gate)      d_up = s t * act(gate)
//              a'     = s a                        d_s  = sum over columns of t * a
//
// t is never stored. a' is what d_w2 = a'^T d_out needs; with t unscaled, <t, a> is the gradient of
// the router weight, so that neither the expert outputs nor a scaled d_out have to exist.
// Both directions compute a from the rounded pre-activations: recomputing it gives the same bits.
#pragma once

#include "activation.cuh"
#include "epilogue.cuh"

namespace dropless::cuda {

// Two planes of B for GLU: this lane's gate and up values sit kBlockN / 4 registers apart. With
// kBias each plane has one, added before it is rounded.
template <class Tile, DeviceActivation kActivation, bool kBias = false>
class ActivationEpilogue {
 public:
  using Element = typename Tile::Element;
  static constexpr bool kGlu = Tile::kPlanes == 2;
  static constexpr bool kDeferred = true;
  static constexpr int kExtraStages = 0;
  struct Params {
    Output<Element> gate;
    Output<Element> up;
    Output<Element> act;
    bool save;  // store gate and up too
    Bias<Element, kBias> bias[Tile::kPlanes];
  };

  __device__ __forceinline__ ActivationEpilogue(const Params& params, std::uint32_t slots, int lane)
      : params_(params), ring_(slots, lane), lane_(lane) {}

  __device__ __forceinline__ void take(const float (&acc)[Tile::kBlockN / 2], const Work& work,
                                       int row) {
    if (tile_.take(acc, work, row, params_.bias, params_.act.columns, lane_)) next_ = first();
  }

  __device__ __forceinline__ bool pending() const { return tile_.pieces > 0; }

  // 64 columns of one of the tensors.
  __device__ __forceinline__ void step() {
    const std::uint32_t slot = ring_.take();
    if (next_ == kGate) {
      stage_words(tile_.words, slot, lane_);
      put(params_.gate);
      next_ = kGlu ? kUp : kAct;
    } else if (kGlu && next_ == kUp) {
      stage_words(tile_.words + Pending::kPlaneWords, slot, lane_);
      put(params_.up);
      next_ = kAct;
    } else {
      stage_activations(slot);
      put(params_.act);
      tile_.advance();
      next_ = first();
    }
  }

  __device__ __forceinline__ void finish() { ring_.drain(); }

 private:
  using Pending = PendingTile<Tile, kBias>;
  enum { kGate, kUp, kAct };

  __device__ __forceinline__ int first() const { return params_.save ? kGate : kAct; }

  __device__ __forceinline__ void put(const Output<Element>& out) {
    ring_.put(out, tile_.row, tile_.rows, tile_.column, 0);
  }

  __device__ __forceinline__ void stage_activations(std::uint32_t slot) const {
#pragma unroll
    for (int block = 0; block < 4; ++block) {
      std::uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 g = ptx::unpack<Element>(tile_.words[block * 4 + w]);
        float2 a = {activate<kActivation>(g.x).value, activate<kActivation>(g.y).value};
        if constexpr (kGlu) {
          const float2 u = ptx::unpack<Element>(tile_.words[Pending::kPlaneWords + block * 4 + w]);
          a.x *= u.x;
          a.y *= u.y;
        }
        words[w] = ptx::pack<Element>(a.x, a.y);
      }
      ptx::stmatrix_x4(block16(slot, block, lane_), words[0], words[1], words[2], words[3]);
    }
  }

  const Params& params_;
  SlotRing<Tile::kSlots> ring_;
  int lane_;
  Pending tile_;
  int next_ = kGate;  // tensor of the piece to store next
};

// The pre-activations come through the ring of stages, 64 columns a stage, behind the tile's
// operands: the loading thread fetches them while the product is still being multiplied. They are
// replaced by their gradients where they lie, in shared memory and in global memory.
template <class Tile, DeviceActivation kActivation, bool kGlu>
class ActivationGradEpilogue {
 public:
  using Element = typename Tile::Element;
  static constexpr bool kDeferred = false;
  static constexpr int kExtraStages = Tile::kBlockN / 64;
  static constexpr int kPlaneBytes = Tile::kBlockM * 128;
  struct Params {
    CUtensorMap load_gate;  // boxes of kBlockM rows by 64 columns
    CUtensorMap load_up;
    Output<Element> gate;  // pre-activation in, gradient out
    Output<Element> up;
    Output<Element> act;  // a'
    const float* scores_R;
    float* d_scores_NR;  // one partial sum for each tile of columns
    std::int64_t rows;   // R
  };
  static_assert(Tile::kTilesM == 1 && Tile::kPlanes == 1);
  static_assert(2 * kPlaneBytes <= Tile::kStageBytes);

  static __device__ __forceinline__ void load_extra(const Params& params, std::uint32_t full,
                                                    std::uint32_t destination, const Work& work,
                                                    int index) {
    ptx::mbarrier_arrive_expect_bytes(full, (kGlu ? 2 : 1) * kPlaneBytes);
    const int column = work.n + 64 * index;
    ptx::tma_load(&params.load_gate, full, destination, column, work.m, 0);
    if constexpr (kGlu) {
      ptx::tma_load(&params.load_up, full, destination + kPlaneBytes, column, work.m, 0);
    }
  }

  __device__ __forceinline__ ActivationGradEpilogue(const Params& params, std::uint32_t slots,
                                                    int lane)
      : params_(params), ring_(slots, lane), lane_(lane) {}

  __device__ __forceinline__ void prepare(const Work& work, int row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = row + lane_ / 4 + 8 * half;
      score_[half] = at < work.rows ? __ldg(params_.scores_R + work.m + at) : 0.0f;
    }
  }

  template <class Stages>
  __device__ __forceinline__ void operator()(const float (&acc)[Tile::kBlockN / 2],
                                             const Work& work, int row, Stages& stages) {
    const int rows = min(16, work.rows - row);
    float d_score[2] = {0.0f, 0.0f};
    int previous = -1;
#pragma unroll
    for (int column = 0; column < Tile::kBlockN; column += 64) {
      int stage;
      const std::uint32_t gate = stages.wait_stage(stage) + row * 128;
      if (rows <= 0) {
        stages.release_stage(stage);
        continue;
      }
      differentiate(acc + column / 2, gate, ring_.take(), d_score);
      ptx::fence_proxy_async();
      __syncwarp();
      store(params_.gate, gate, work, row, rows, column);
      if constexpr (kGlu) store(params_.up, gate + kPlaneBytes, work, row, rows, column);
      ring_.put(params_.act, work.m + row, rows, work.n + column, 0);  // commits all three
      // The stage may be overwritten once the copy engine has read it.
      if (previous >= 0) {
        if (lane_ == 0) ptx::tma_store_wait_read<1>();
        __syncwarp();
        stages.release_stage(previous);
      }
      previous = stage;
    }
    if (previous >= 0) {
      if (lane_ == 0) ptx::tma_store_wait_read<0>();
      __syncwarp();
      stages.release_stage(previous);
      store_score(d_score, work, row);
    }
  }

  __device__ __forceinline__ void finish() { ring_.drain(); }

 private:
  // 16 rows by 64 columns: the gradients over the pre-activations, a' into `slot`.
  __device__ __forceinline__ void differentiate(const float* t, std::uint32_t gate,
                                                std::uint32_t slot, float (&d_score)[2]) {
#pragma unroll
    for (int block = 0; block < 4; ++block) {
      const std::uint32_t at_gate = block16(gate, block, lane_);
      std::uint32_t g_words[4], u_words[4], a_words[4];
      ptx::ldmatrix_x4(at_gate, g_words);
      if constexpr (kGlu) ptx::ldmatrix_x4(at_gate + kPlaneBytes, u_words);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int half = w & 1;  // rows lane / 4 and lane / 4 + 8 take turns
        const float2 g = ptx::unpack<Element>(g_words[w]);
        const float2 u = kGlu ? ptx::unpack<Element>(u_words[w]) : make_float2(1.0f, 1.0f);
        const ValueAndSlope x = activate<kActivation>(g.x), y = activate<kActivation>(g.y);
        const float t_x = t[block * 8 + 2 * w], t_y = t[block * 8 + 2 * w + 1];
        const float a_x = x.value * u.x, a_y = y.value * u.y;
        d_score[half] += t_x * a_x + t_y * a_y;
        const float d_x = score_[half] * t_x, d_y = score_[half] * t_y;
        g_words[w] = ptx::pack<Element>(d_x * u.x * x.slope, d_y * u.y * y.slope);
        if constexpr (kGlu) u_words[w] = ptx::pack<Element>(d_x * x.value, d_y * y.value);
        a_words[w] = ptx::pack<Element>(score_[half] * a_x, score_[half] * a_y);
      }
      ptx::stmatrix_x4(at_gate, g_words[0], g_words[1], g_words[2], g_words[3]);
      if constexpr (kGlu) {
        ptx::stmatrix_x4(at_gate + kPlaneBytes, u_words[0], u_words[1], u_words[2], u_words[3]);
      }
      ptx::stmatrix_x4(block16(slot, block, lane_), a_words[0], a_words[1], a_words[2], a_words[3]);
    }
  }

  // From the stage itself; committed together with the slot's store.
  __device__ __forceinline__ void store(const Output<Element>& out, std::uint32_t area,
                                        const Work& work, int row, int rows, int column) const {
    if (rows < 16) {
      copy_rows(out, area, work.m + row, rows, work.n + column, lane_);
    } else if (lane_ == 0) {
      ptx::tma_store(&out.map, area, work.n + column, work.m + row, 0);
    }
  }

  // Over the quad that shares a row, in a fixed order.
  __device__ __forceinline__ void store_score(float (&d_score)[2], const Work& work,
                                              int row) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = d_score[half];
      sum += __shfl_xor_sync(0xffffffff, sum, 1);
      sum += __shfl_xor_sync(0xffffffff, sum, 2);
      const int at = row + lane_ / 4 + 8 * half;
      if (lane_ % 4 == 0 && at < work.rows) {
        params_.d_scores_NR[work.n / Tile::kBlockN * params_.rows + work.m + at] = sum;
      }
    }
  }

  const Params& params_;
  SlotRing<Tile::kSlots> ring_;
  int lane_;
  float score_[2] = {};
};

}  // namespace dropless::cuda
