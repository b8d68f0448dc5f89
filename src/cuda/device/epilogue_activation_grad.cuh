// Epilogue of the gradient that flows back through an expert network's activation.
//
//   t = d_out w2^T (this product), s the row's router weight:
//   d_gate = s t * up * act'(gate)      d_up = s t * act(gate)
//   a'     = s a                        d_s  = sum over columns of t * a,  a = act(gate) * up
//
// t is never stored. a' is what d_w2 = a'^T d_out needs; with t unscaled, <t, a> is the gradient of
// the router weight, so that neither the expert outputs nor a scaled d_out have to exist.
// a comes from the rounded pre-activations, as in the forward: recomputing it gives the same bits.
#pragma once

#include "activation.cuh"
#include "epilogue.cuh"

namespace dropless::cuda {

// Under the next product, in pieces of 32 columns that are spread over its slices: each warp has its
// 16 rows of both pre-activations copied into its slots, replaces them by their gradients where they
// lie, and stores those and a'. A piece's two halves go under two slices, and the consumers take
// turns: a warp that computes for longer than its products in flight last lets the tensor cores wait,
// and above all where the other consumer computes at the same time.
//
// t waits as fp16, three bits more than bf16, scaled by a power of two for each of the thread's two rows: rows of one expert may
// differ by many orders of magnitude. That of the first pieces waits in shared memory, where a' of the first will lie and behind
// it: there are no registers for it.
template <class Tile, DeviceActivation kActivation, bool kGlu>
class ActivationGradEpilogue {
 public:
  using Element = typename Tile::Element;
  static constexpr bool kDeferred = true;
  static constexpr bool kFetches = true;
  static constexpr int kColumns = 32;  // of a piece
  static constexpr int kPieces = Tile::kBlockN / kColumns;
  struct Params {
    Output<Element> gate;  // pre-activation in, gradient out; boxes of 16 rows by 64 bytes
    Output<Element> up;
    Output<Element> act;  // a'
    const float* scores_R;
    float* d_scores_NR;  // one partial sum for each tile of columns
    std::int64_t rows;   // R
    int slices;          // of the next product to a piece, at least 1
  };

  __device__ __forceinline__ ActivationGradEpilogue(const Params& params, std::uint32_t slots,
                                                    std::uint32_t barrier, int lane)
      : params_(params), area_(slots), barrier_(barrier), lane_(lane) {}

  __device__ __forceinline__ void take(const float (&acc)[Tile::kBlockN / 2], const Work& work,
                                       int row) {
    rows_ = min(16, work.rows - row);
    if (rows_ <= 0) return;
    row_ = work.m + row;
    column_ = work.n;
    pieces_ = min(kPieces, (params_.act.columns - work.n + kColumns - 1) / kColumns);
    fetch();
    __syncwarp();
    tick_ = row >= Tile::kRowsPerConsumer && params_.slices > 1 ? -(params_.slices / 2) : 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = lane_ / 4 + 8 * half;
      score_[half] = at < rows_ ? __ldg(params_.scores_R + row_ + at) : 0.0f;
      d_score_[half] = 0.0f;
    }
    keep(acc);
  }

  __device__ __forceinline__ bool pending() const { return pieces_ > 0; }

  // After each slice.
  __device__ __forceinline__ void step() {
    if (tick_ < 0) {  // not yet the second consumer's turn
      if (++tick_ == 0) tick_ = 1;
      return;
    }
    if (tick_ == 0) fetch();
    ++tick_;
    // Of few slices halves go together: there is one between fetching and using.
    const bool halves = params_.slices > 2;
    if (halves && tick_ == params_.slices - 1) {
      wait();
      differentiate(0);
      return;
    }
    if (tick_ < params_.slices) return;
    tick_ = 0;
    if (!halves) {
      wait();
      differentiate(0);
    }
    differentiate(1);
    if (piece() >= kParked) {
#pragma unroll
      for (int i = 0; i < kWords - kPieceWords; ++i) words_[i] = words_[i + kPieceWords];
    }
    store();
    column_ += kColumns;
    if (--pieces_ == 0) store_score();
  }

  // Before the CTA's shared memory goes away.
  __device__ __forceinline__ void finish() {
    if (lane_ == 0) ptx::tma_store_wait_read<0>();
  }

 private:
  // Columns computed at once. The gated forms of gelu have registers for eight only; sixteen wait less for each other.
  static constexpr bool kSimple =
      kActivation == DeviceActivation::kSilu || kActivation == DeviceActivation::kRelu;
  static constexpr int kAtOnce = kSimple || !kGlu ? 16 : 8;
  static constexpr int kPlaneBytes = 16 * kColumns * 2;  // gate, up, a' of a piece; t of one
  static constexpr int kParked = 2;                      // pieces whose t is in shared memory
  static constexpr int kPieceWords = kColumns / 4;
  static constexpr int kWords = (kPieces - kParked) * kPieceWords;
  static_assert(kColumns == 32 && Tile::kTilesM == 1 && Tile::kPlanes == 1 && kPieces % 2 == 0);
  static_assert((2 + kParked) * kPlaneBytes <= Tile::kSlots * kSlotBytes);

  // Once the copy engine has read what the slots held.
  __device__ __forceinline__ void fetch() {
    ptx::fence_proxy_async();
    __syncwarp();
    if (lane_ == 0) {
      ptx::tma_store_wait_read<0>();
      ptx::mbarrier_arrive_expect_bytes(barrier_, (kGlu ? 2 : 1) * kPlaneBytes);
      ptx::tma_load(&params_.gate.map, barrier_, area_, column_, row_, 0);
      if constexpr (kGlu) {
        ptx::tma_load(&params_.up.map, barrier_, area_ + kPlaneBytes, column_, row_, 0);
      }
    }
  }

  __device__ __forceinline__ void wait() {
    ptx::mbarrier_wait(barrier_, phase_);
    phase_ ^= 1;
  }

  // Of each row the thread's largest |t| goes to [2^14, 2^15). Word i has two columns of row i & 1.
  __device__ __forceinline__ void keep(const float (&acc)[Tile::kBlockN / 2]) {
    float scale[2];
    unscales_ = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = 0.0f;
#pragma unroll
      for (int i = half; i < Tile::kBlockN / 4; i += 2) {
        largest = fmaxf(largest, fmaxf(fabsf(acc[2 * i]), fabsf(acc[2 * i + 1])));
      }
      // Of infinities and of gradients below 2^-100 nothing is left to save.
      const unsigned exponent = min(max(__float_as_uint(largest) >> 23, 27u), 227u);
      scale[half] = __uint_as_float((127 + 14 + 127 - exponent) << 23);
      unscales_ |= (exponent - 14) << (7 + 16 * half);
    }
    const auto pair = [&](int i) {
      return ptx::pack<__half>(acc[2 * i] * scale[i & 1], acc[2 * i + 1] * scale[i & 1]);
    };
#pragma unroll
    for (int i = 0; i < kParked * kPieceWords; i += 4) {
      const int4 four = make_int4(pair(i), pair(i + 1), pair(i + 2), pair(i + 3));
      ptx::store_shared(block_at(i % kPieceWords / 4) + (2 + i / kPieceWords) * kPlaneBytes, four);
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) words_[i] = pair(i + kParked * kPieceWords);
  }

  // What t of a row was divided by.
  __device__ __forceinline__ float unscale(int half) const {
    return __uint_as_float(half == 0 ? unscales_ << 16 : unscales_ & 0xffff0000u);
  }

  // Of the tile; its columns begin at a multiple of the tile's width.
  __device__ __forceinline__ int piece() const { return column_ / kColumns % kPieces; }

  // Where a 16-byte chunk of a row lies under the 64-byte swizzle.
  static __device__ __forceinline__ std::uint32_t place(int row, int chunk) {
    return row * 64 + ((chunk ^ (row / 2 & 3)) << 4);
  }

  // This lane's row of 16 columns, for ldmatrix and stmatrix. Its t waits in the same place of a' and of the plane
  // behind, so that a' of these columns replaces no other's.
  __device__ __forceinline__ std::uint32_t block_at(int block) const {
    return area_ + place(lane_ & 15, 2 * block + (lane_ >> 4));
  }

  // 16 rows by 16 columns: the gradients over the pre-activations, and a'.
  __device__ __forceinline__ void differentiate(int block) {
    std::uint32_t t_words[4];
    if (piece() < kParked) {
      const int4 t = ptx::load_shared_int4(block_at(block) + (2 + piece()) * kPlaneBytes);
      t_words[0] = t.x, t_words[1] = t.y, t_words[2] = t.z, t_words[3] = t.w;
      __syncwarp();  // a' goes there
    } else {
#pragma unroll
      for (int w = 0; w < 4; ++w) t_words[w] = words_[block * 4 + w];
    }
    if constexpr (kAtOnce == 16) {
      const std::uint32_t at = block_at(block);
      std::uint32_t g_words[4], u_words[4], a_words[4];
      ptx::ldmatrix_x4(at, g_words);
      if constexpr (kGlu) ptx::ldmatrix_x4(at + kPlaneBytes, u_words);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        differentiate(w & 1, t_words[w], g_words[w], u_words[w], a_words[w]);
      }
      ptx::stmatrix_x4(at, g_words[0], g_words[1], g_words[2], g_words[3]);
      if constexpr (kGlu) {
        ptx::stmatrix_x4(at + kPlaneBytes, u_words[0], u_words[1], u_words[2], u_words[3]);
      }
      ptx::stmatrix_x4(at + 2 * kPlaneBytes, a_words[0], a_words[1], a_words[2], a_words[3]);
    } else {
      static_assert(kGlu);  // both planes by one instruction
#pragma unroll
      for (int chunk = 0; chunk < 2; ++chunk) {
        const std::uint32_t row = place(lane_ % 16, 2 * block + chunk);
        const std::uint32_t at = area_ + lane_ / 16 * kPlaneBytes + row;
        std::uint32_t words[4], a_words[2];
        ptx::ldmatrix_x4(at, words);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          differentiate(half, t_words[2 * chunk + half], words[half], words[2 + half],
                        a_words[half]);
        }
        ptx::stmatrix_x4(at, words[0], words[1], words[2], words[3]);
        ptx::stmatrix_x2(area_ + 2 * kPlaneBytes + row, a_words[0], a_words[1]);
      }
    }
  }

  // Two columns of row lane / 4, or of that and 8: pre-activations to gradients, and a'.
  __device__ __forceinline__ void differentiate(int half, std::uint32_t t_word,
                                                std::uint32_t& g_word, std::uint32_t& u_word,
                                                std::uint32_t& a_word) {
    const float2 g = ptx::unpack<Element>(g_word);
    const float2 u = kGlu ? ptx::unpack<Element>(u_word) : make_float2(1.0f, 1.0f);
    const float2 t = ptx::unpack<__half>(t_word);
    const ValueAndSlope x = activate<kActivation>(g.x), y = activate<kActivation>(g.y);
    const float a_x = x.value * u.x, a_y = y.value * u.y;
    d_score_[half] = fmaf(t.x, a_x, fmaf(t.y, a_y, d_score_[half]));
    const float weight = score_[half] * unscale(half);
    const float d_x = weight * t.x, d_y = weight * t.y;
    g_word = ptx::pack<Element>(d_x * u.x * x.slope, d_y * u.y * y.slope);
    if constexpr (kGlu) u_word = ptx::pack<Element>(d_x * x.value, d_y * y.value);
    a_word = ptx::pack<Element>(score_[half] * a_x, score_[half] * a_y);
  }

  __device__ __forceinline__ void store() const {
    ptx::fence_proxy_async();
    __syncwarp();
    if (rows_ < 16) {
      copy_piece(params_.gate, area_);
      if constexpr (kGlu) copy_piece(params_.up, area_ + kPlaneBytes);
      copy_piece(params_.act, area_ + 2 * kPlaneBytes);
    } else if (lane_ == 0) {
      ptx::tma_store(&params_.gate.map, area_, column_, row_, 0);
      if constexpr (kGlu) {
        ptx::tma_store(&params_.up.map, area_ + kPlaneBytes, column_, row_, 0);
      }
      ptx::tma_store(&params_.act.map, area_ + 2 * kPlaneBytes, column_, row_, 0);
      ptx::tma_store_commit();
    }
  }

  // Rows that end inside the piece.
  __device__ __forceinline__ void copy_piece(const Output<Element>& out, std::uint32_t area) const {
#pragma unroll 1  // rare: no registers for it
    for (int i = lane_; i < rows_ * 4; i += 32) {
      const int row = i / 4;
      const int column = static_cast<int>(column_) + i % 4 * 8;
      if (column < out.columns) {
        *reinterpret_cast<uint4*>(out.data + (row_ + row) * out.pitch + column) =
            ptx::load_shared16(area + place(row, i % 4));
      }
    }
  }

  // Over the quad that shares a row, in a fixed order.
  __device__ __forceinline__ void store_score() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = unscale(half) * d_score_[half];
      sum += __shfl_xor_sync(0xffffffff, sum, 1);
      sum += __shfl_xor_sync(0xffffffff, sum, 2);
      const int at = lane_ / 4 + 8 * half;
      if (lane_ % 4 == 0 && at < rows_) {
        params_.d_scores_NR[(column_ - 1) / Tile::kBlockN * params_.rows + row_ + at] = sum;
      }
    }
  }

  const Params& params_;
  std::uint32_t area_;     // the warp's slots: gate, up, a' and the second piece's t
  std::uint32_t barrier_;  // of the copies into them
  std::uint32_t phase_ = 0;
  int lane_;
  std::uint32_t words_[kWords];  // t of the pieces left
  std::uint32_t unscales_;       // of the two rows: powers of two, the upper halves of fp32
  float score_[2], d_score_[2];
  int pieces_ = 0;  // left
  int tick_ = 0;    // slices since this one was fetched, that with it included; 0: it is not
  int row_, rows_;
  std::uint32_t column_;
};

}  // namespace dropless::cuda
