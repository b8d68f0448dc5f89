// Epilogue of an expert network's up projection: gate = x w1^T, up = x v1^T, a = act(gate) * up (GLU; else act(gate)).
// a is computed from the rounded pre-activations: the backward, which recomputes it, gets the same bits.
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
  static constexpr bool kFetches = false;
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
    const auto stage = [&](const std::uint32_t* words) { stage_words(words, slot, lane_); };
    if (next_ == kGate) {
      tile_.with_next(0, stage);
      put(params_.gate);
      next_ = kGlu ? kUp : kAct;
    } else if (kGlu && next_ == kUp) {
      tile_.with_next(1, stage);
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
        const float2 g = ptx::unpack<Element>(tile_.next_word(0, block * 4 + w));
        float2 a = {activate<kActivation>(g.x).value, activate<kActivation>(g.y).value};
        if constexpr (kGlu) {
          const float2 u = ptx::unpack<Element>(tile_.next_word(1, block * 4 + w));
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

}  // namespace dropless::cuda
