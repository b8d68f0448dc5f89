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

// Two planes of B for GLU: this lane's gate and up values sit kBlockN / 4 registers apart.
template <class Tile, DeviceActivation kActivation>
class ActivationEpilogue {
 public:
  static constexpr bool kGlu = Tile::kPlanes == 2;
  static constexpr bool kDeferred = true;
  static constexpr bool kPrefetches = false;
  struct Params {
    Output<__nv_bfloat16> gate;
    Output<__nv_bfloat16> up;
    Output<__nv_bfloat16> act;
    bool save;  // store gate and up too
  };

  __device__ __forceinline__ ActivationEpilogue(const Params& params, std::uint32_t slots,
                                                std::uint32_t, int lane)
      : params_(params), ring_(slots, lane), lane_(lane) {}

  __device__ __forceinline__ void take(const float (&acc)[Tile::kBlockN / 2], const Work& work,
                                       int row) {
    rows_ = min(16, work.rows - row);
    if (rows_ <= 0) return;
    row_ = work.m + row;
    column_ = work.n;
    pending_ = kChunks;
    next_ = first();
    pack_all(acc, words_);
  }

  __device__ __forceinline__ bool pending() const { return pending_ > 0; }

  // 64 columns of one of the tensors.
  __device__ __forceinline__ void step() {
    const std::uint32_t slot = ring_.take();
    if (next_ == kGate) {
      stage_words(words_, slot, lane_);
      put(params_.gate);
      next_ = kGlu ? kUp : kAct;
    } else if (kGlu && next_ == kUp) {
      stage_words(words_ + kUpWords, slot, lane_);
      put(params_.up);
      next_ = kAct;
    } else {
      stage_activations(slot);
      put(params_.act);
      shift_words<kChunks>(words_);
      if constexpr (kGlu) shift_words<kChunks>(words_ + kUpWords);
      column_ += 64;
      --pending_;
      next_ = first();
    }
  }

  __device__ __forceinline__ void finish() { ring_.drain(); }

 private:
  static constexpr int kChunks = Tile::kStepN / 64;
  static constexpr int kUpWords = 16 * kChunks;  // up's words follow gate's
  enum { kGate, kUp, kAct };

  __device__ __forceinline__ int first() const { return params_.save ? kGate : kAct; }

  __device__ __forceinline__ void put(const Output<__nv_bfloat16>& out) {
    ring_.put(out, row_, rows_, column_, 0);
  }

  __device__ __forceinline__ void stage_activations(std::uint32_t slot) const {
#pragma unroll
    for (int block = 0; block < 4; ++block) {
      std::uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 g = ptx::unpack_bf16(words_[block * 4 + w]);
        float2 a = {activate<kActivation>(g.x).value, activate<kActivation>(g.y).value};
        if constexpr (kGlu) {
          const float2 u = ptx::unpack_bf16(words_[kUpWords + block * 4 + w]);
          a.x *= u.x;
          a.y *= u.y;
        }
        words[w] = ptx::pack_bf16(a.x, a.y);
      }
      ptx::stmatrix_x4(block16(slot, block, lane_), words[0], words[1], words[2], words[3]);
    }
  }

  const Params& params_;
  SlotRing<Tile::kSlots> ring_;
  int lane_;
  std::uint32_t words_[Tile::kBlockN / 4];  // gate, then up
  int pending_ = 0;                         // chunks of 64 columns
  int next_ = kGate;                        // tensor of the chunk to store next
  int row_, rows_, column_;
};

// The pre-activations come 16 rows by 64 columns at a time into the warp's own slots, one step
// before they are needed; their gradients replace them where they lie, in shared memory and in
// global memory. t waits for that as fp16, scaled by a power of two of the thread's own: three bits
// more than bf16, and no gradient is too small. The first 64 columns do not wait: their
// pre-activations come while the tile is still being multiplied.
template <class Tile, DeviceActivation kActivation, bool kGlu>
class ActivationGradEpilogue {
 public:
  static constexpr bool kDeferred = true;
  static constexpr bool kPrefetches = true;
  struct Params {
    Output<__nv_bfloat16> gate;  // pre-activation in, gradient out
    Output<__nv_bfloat16> up;
    Output<__nv_bfloat16> act;  // a'
    const float* scores_R;
    float* d_scores_NR;  // one partial sum for each tile of columns
    std::int64_t rows;   // R
  };
  static_assert(Tile::kPlanes == 1 && Tile::kSlots == 2);

  __device__ __forceinline__ ActivationGradEpilogue(const Params& params, std::uint32_t slots,
                                                    std::uint32_t barrier, int lane)
      : params_(params), gate_(slots), barrier_(barrier), lane_(lane) {}

  // Once the tile before is stored, and before this one is taken: its first pre-activations.
  __device__ __forceinline__ bool prefetched() const { return fetched_; }
  __device__ __forceinline__ void prefetch(const Work& work, int row) {
    rows_ = min(16, work.rows - row);
    row_ = work.m + row;
    column_ = work.n;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = lane_ / 4 + 8 * half;
      score_[half] = at < rows_ ? __ldg(params_.scores_R + row_ + at) : 0.0f;
      d_score_[half] = 0.0f;
    }
    fetch();
  }

  // The first 64 columns at once: there are no registers to keep them.
  __device__ __forceinline__ void take(const float (&acc)[Tile::kBlockN / 2]) {
    std::uint32_t first[16];
    keep(acc, first);
    wait();
    if (rows_ <= 0) return;
    replace(first);
    pending_ = kChunks - 1;
  }

  __device__ __forceinline__ bool pending() const { return pending_ > 0; }

  // Fetches 64 columns of the pre-activations, or replaces them once they are there.
  __device__ __forceinline__ void step() {
    if (!fetched_) {
      fetch();
      return;
    }
    wait();
    replace(words_);
    shift_words<kChunks - 1>(words_);
    if (--pending_ == 0) store_score();
  }

  __device__ __forceinline__ void finish() {
    if (lane_ == 0) ptx::tma_store_wait_read<0>();
  }

 private:
  static constexpr int kChunks = Tile::kBlockN / 64;

  __device__ __forceinline__ void fetch() {
    if (lane_ == 0) {
      ptx::tma_store_wait_read<0>();
      ptx::mbarrier_arrive_expect_bytes(barrier_, (kGlu ? 2 : 1) * kSlotBytes);
      ptx::tma_load(&params_.gate.map, barrier_, gate_, column_, row_, 0);
      if constexpr (kGlu) {
        ptx::tma_load(&params_.up.map, barrier_, gate_ + kSlotBytes, column_, row_, 0);
      }
    }
    fetched_ = true;
  }

  __device__ __forceinline__ void wait() {
    ptx::mbarrier_wait(barrier_, phase_);
    phase_ ^= 1;
    fetched_ = false;
  }

  __device__ __forceinline__ void replace(const std::uint32_t* t_words) {
    differentiate(t_words);
    ptx::fence_proxy_async();
    __syncwarp();
    store(params_.gate, gate_);
    if constexpr (kGlu) store(params_.up, gate_ + kSlotBytes);
    if (lane_ == 0) ptx::tma_store_commit();
    column_ += 64;
  }

  // The largest |t| of this thread goes to [2^14, 2^15).
  __device__ __forceinline__ void keep(const float (&acc)[Tile::kBlockN / 2],
                                       std::uint32_t (&first)[16]) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < Tile::kBlockN / 2; ++i) largest = fmaxf(largest, fabsf(acc[i]));
    // Of infinities and of gradients below 2^-100 nothing is left to save.
    const int exponent = min(max(static_cast<int>(__float_as_uint(largest) >> 23), 27), 227);
    const float scale = __uint_as_float((127 + 14 + 127 - exponent) << 23);
    unscale_ = __uint_as_float((exponent - 14) << 23);
#pragma unroll
    for (int i = 0; i < Tile::kBlockN / 4; ++i) {
      (i < 16 ? first[i] : words_[i - 16]) =
          ptx::pack_half(acc[2 * i] * scale, acc[2 * i + 1] * scale);
    }
  }

  // 16 rows by 64 columns: the gradients over the pre-activations, a' to memory.
  __device__ __forceinline__ void differentiate(const std::uint32_t* t_words) {
#pragma unroll
    for (int block = 0; block < 4; ++block) {
      const std::uint32_t at_gate = block16(gate_, block, lane_);
      std::uint32_t g_words[4], u_words[4], a_words[4];
      ptx::ldmatrix_x4(at_gate, g_words);
      if constexpr (kGlu) ptx::ldmatrix_x4(at_gate + kSlotBytes, u_words);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int half = w & 1;  // rows lane / 4 and lane / 4 + 8 take turns
        const float2 g = ptx::unpack_bf16(g_words[w]);
        const float2 u = kGlu ? ptx::unpack_bf16(u_words[w]) : make_float2(1.0f, 1.0f);
        const ValueAndSlope x = activate<kActivation>(g.x), y = activate<kActivation>(g.y);
        const float2 t = ptx::unpack_half(t_words[block * 4 + w]);
        const float a_x = x.value * u.x, a_y = y.value * u.y;
        d_score_[half] += t.x * a_x + t.y * a_y;
        const float weight = score_[half] * unscale_;
        const float d_x = weight * t.x, d_y = weight * t.y;
        g_words[w] = ptx::pack_bf16(d_x * u.x * x.slope, d_y * u.y * y.slope);
        if constexpr (kGlu) u_words[w] = ptx::pack_bf16(d_x * x.value, d_y * y.value);
        a_words[w] = ptx::pack_bf16(score_[half] * a_x, score_[half] * a_y);
      }
      ptx::stmatrix_x4(at_gate, g_words[0], g_words[1], g_words[2], g_words[3]);
      if constexpr (kGlu) {
        ptx::stmatrix_x4(at_gate + kSlotBytes, u_words[0], u_words[1], u_words[2], u_words[3]);
      }
      store_quad(a_words, block);
    }
  }

  // A quad's lanes hold words of four groups of 8 columns, two of each of its rows: lane q words q
  // of each. Transposed, lane q has group q, 16 bytes.
  __device__ __forceinline__ void store_quad(std::uint32_t (&w)[4], int block) const {
    const bool odd = lane_ & 1, high = lane_ & 2;
    exchange(w[0], w[1], odd, 1);
    exchange(w[2], w[3], odd, 1);
    exchange(w[0], w[2], high, 2);
    exchange(w[1], w[3], high, 2);
    const int row = lane_ / 4 + 8 * (lane_ & 1);
    const int column = column_ + 16 * block + 4 * (lane_ & 2);
    if (row < rows_ && column < params_.act.columns) {
      *reinterpret_cast<uint4*>(params_.act.data + (row_ + row) * params_.act.pitch + column) =
          make_uint4(w[0], w[1], w[2], w[3]);
    }
  }

  // One step of a transposition: lanes `distance` apart swap the word that is the other's.
  static __device__ __forceinline__ void exchange(std::uint32_t& low, std::uint32_t& high,
                                                  bool keep_high, int distance) {
    const std::uint32_t other = __shfl_xor_sync(0xffffffff, keep_high ? low : high, distance);
    (keep_high ? low : high) = other;
  }

  __device__ __forceinline__ void store(const Output<__nv_bfloat16>& out,
                                        std::uint32_t area) const {
    if (rows_ < 16) {
      copy_rows(out, area, row_, rows_, column_, lane_);
    } else if (lane_ == 0) {
      ptx::tma_store(&out.map, area, column_, row_, 0);
    }
  }

  // Over the quad that shares a row, in a fixed order.
  __device__ __forceinline__ void store_score() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = unscale_ * d_score_[half];
      sum += __shfl_xor_sync(0xffffffff, sum, 1);
      sum += __shfl_xor_sync(0xffffffff, sum, 2);
      const int at = lane_ / 4 + 8 * half;
      if (lane_ % 4 == 0 && at < rows_) {
        params_.d_scores_NR[(column_ - 1) / Tile::kBlockN * params_.rows + row_ + at] = sum;
      }
    }
  }

  const Params& params_;
  std::uint32_t gate_;  // the warp's slots: gate, up
  std::uint32_t barrier_;
  std::uint32_t phase_ = 0;
  int lane_;
  std::uint32_t words_[16 * (kChunks - 1)];  // t, but for the first 64 columns
  float unscale_, score_[2], d_score_[2];
  int pending_ = 0;  // chunks of 64 columns
  bool fetched_ = false;
  int row_, rows_, column_;
};

}  // namespace dropless::cuda
