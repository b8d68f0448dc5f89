// Both products of the router's gradient in one pass over the tokens:
//
//   d_x = [hi | lo] [Wr; Wr]      d_router = hi^T x + lo^T x
//
// with hi + lo = d_logits (router.cu). A CTA has kColumns of d_model and a chunk of the tokens. Its part of Wr stays in
// shared memory and its part of d_router in registers; 64 tokens at a time come x and [hi | lo], once for both products.
// What that costs is bytes: x once, d_x once.
#pragma once

#include "epilogue.cuh"
#include "pipeline.cuh"
#include "ptx.cuh"
#include "wgmma.cuh"

namespace dropless::cuda {

// All operands lie in boxes of 64 rows of 128 bytes. kExperts: 64 or 128, the router's padded to that with zeros.
template <class ElementType, int kPaddedExperts>
struct RouterGradientTile {
  using Element = ElementType;
  static constexpr int kExperts = kPaddedExperts;
  static constexpr int kTokens = 64;
  static constexpr int kColumns = kExperts == 64 ? 256 : 128;
  static constexpr int kWidth = kColumns / 2;  // columns of one of the two warpgroups that multiply
  static constexpr int kThreads = 256 + 32;    // and a warp that loads
  static constexpr int kStages = 3;

  static constexpr int kBoxBytes = 64 * 128;
  static constexpr int kExpertBoxes = kExperts / 64;
  static constexpr int kColumnBoxes = kColumns / 64;
  static constexpr int kPieces = kWidth / 64;
  static constexpr int kSplitBytes = 2 * kExpertBoxes * kBoxBytes;
  static constexpr int kStageBytes = kSplitBytes + kColumnBoxes * kBoxBytes;
  static constexpr int kRouterOffset = kStages * kStageBytes;
  static constexpr int kRouterBytes = kExpertBoxes * kColumnBoxes * kBoxBytes;
  static constexpr int kSlotsOffset = kRouterOffset + kRouterBytes;
  static constexpr int kBarriersOffset = kSlotsOffset + 8 * kPieces * kSlotBytes;
  static constexpr int kSharedBytes = kBarriersOffset + (2 * kStages + 1) * 8;
  static_assert(kSharedBytes <= kMaxSharedBytes);
};

template <class Element>
struct RouterGradientParams {
  CUtensorMap split[2];  // hi, lo; {expert, token}: boxes of 64 experts, 64 tokens
  CUtensorMap x;         // {column, token}: boxes of 64 columns, 64 tokens
  CUtensorMap router;    // {column, expert}: boxes of 64 columns, 64 experts
  Output<Element> d_x;
  float* partials_SPD;  // d_router of each chunk
  int tokens, chunk;    // chunk: a multiple of 64
  int pitch;            // P
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) router_gradients_kernel(
    const __grid_constant__ RouterGradientParams<typename Tile::Element> params) {
  using Element = typename Tile::Element;
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  const std::uint32_t shared = ptx::shared_address(shared_bytes);
  const std::uint32_t barriers = shared + Tile::kBarriersOffset;
  const auto full = [&](int stage) { return barriers + 8 * stage; };
  const auto empty = [&](int stage) { return barriers + 8 * (Tile::kStages + stage); };
  const std::uint32_t router_there = barriers + 8 * 2 * Tile::kStages;
  const auto split = [&](int stage, int part, int block) {
    return shared + stage * Tile::kStageBytes +
           (part * Tile::kExpertBoxes + block) * Tile::kBoxBytes;
  };
  const auto x = [&](int stage, int box) {
    return shared + stage * Tile::kStageBytes + Tile::kSplitBytes + box * Tile::kBoxBytes;
  };
  const auto router = [&](int block, int box) {
    return shared + Tile::kRouterOffset + (block * Tile::kColumnBoxes + box) * Tile::kBoxBytes;
  };

  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&params.split[0]);
    ptx::prefetch_tensor_map(&params.split[1]);
    ptx::prefetch_tensor_map(&params.x);
    ptx::prefetch_tensor_map(&params.router);
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      ptx::mbarrier_init(full(stage), 1);
      ptx::mbarrier_init(empty(stage), 8);
    }
    ptx::mbarrier_init(router_there, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  ptx::dependency_wait();

  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const int lane = threadIdx.x % 32;
  // Neighbours have the same tokens.
  const int slices = (params.d_x.columns + Tile::kColumns - 1) / Tile::kColumns;
  const int column0 = static_cast<int>(blockIdx.x) % slices * Tile::kColumns;
  const int chunk = static_cast<int>(blockIdx.x) / slices;
  const int begin = chunk * params.chunk;
  const int end = min(begin + params.chunk, params.tokens);
  RingPosition<Tile::kStages> ring;

  if (warp == 8) {
    if (ptx::elect_one()) {
      ptx::mbarrier_arrive_expect_bytes(router_there, Tile::kRouterBytes);
#pragma unroll
      for (int block = 0; block < Tile::kExpertBoxes; ++block) {
#pragma unroll
        for (int box = 0; box < Tile::kColumnBoxes; ++box) {
          ptx::tma_load(&params.router, router_there, router(block, box), column0 + 64 * box,
                        64 * block, 0);
        }
      }
      for (int token = begin; token < end; token += Tile::kTokens) {
        ptx::mbarrier_wait(empty(ring.stage), ring.phase ^ 1);
        const std::uint32_t there = full(ring.stage);
        ptx::mbarrier_arrive_expect_bytes(there, Tile::kStageBytes);
#pragma unroll
        for (int box = 0; box < Tile::kColumnBoxes; ++box) {
          ptx::tma_load(&params.x, there, x(ring.stage, box), column0 + 64 * box, token, 0);
        }
#pragma unroll
        for (int part = 0; part < 2; ++part) {
#pragma unroll
          for (int block = 0; block < Tile::kExpertBoxes; ++block) {
            ptx::tma_load(&params.split[part], there, split(ring.stage, part, block), 64 * block,
                          token, 0);
          }
        }
        ring.advance();
      }
    }
    return;
  }

  const int consumer = warp / 4;
  const int own_box = consumer * Tile::kPieces;
  SlotRing<Tile::kPieces> slots(shared + Tile::kSlotsOffset + warp * Tile::kPieces * kSlotBytes,
                                lane);
  float d_router[Tile::kExpertBoxes][Tile::kWidth / 2];
#pragma unroll
  for (int block = 0; block < Tile::kExpertBoxes; ++block) {
#pragma unroll
    for (int i = 0; i < Tile::kWidth / 2; ++i) d_router[block][i] = 0.0f;
  }
  ptx::mbarrier_wait(router_there, 0);
  for (int token = begin; token < end; token += Tile::kTokens) {
    ptx::mbarrier_wait(full(ring.stage), ring.phase);
    float d_x[Tile::kWidth / 2];
#pragma unroll
    for (int i = 0; i < Tile::kWidth / 2; ++i) ptx::fence_register(d_x[i]);
    ptx::wgmma_fence();
#pragma unroll
    for (int part = 0; part < 2; ++part) {
#pragma unroll
      for (int block = 0; block < Tile::kExpertBoxes; ++block) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          wgmma<Element, Tile::kWidth, Major::kK, Major::kMN>(
              d_x,
              wgmma_descriptor<Major::kK>(split(ring.stage, part, block)) +
                  step * kWgmmaStepK<Major::kK>,
              wgmma_descriptor<Major::kMN>(router(block, own_box)) + step * kWgmmaStepK<Major::kMN>,
              part + block + step != 0);
        }
      }
    }
    ptx::wgmma_commit();
#pragma unroll
    for (int block = 0; block < Tile::kExpertBoxes; ++block) {
#pragma unroll
      for (int i = 0; i < Tile::kWidth / 2; ++i) ptx::fence_register(d_router[block][i]);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          wgmma<Element, Tile::kWidth, Major::kMN, Major::kMN>(
              d_router[block],
              wgmma_descriptor<Major::kMN>(split(ring.stage, part, block)) +
                  step * kWgmmaStepK<Major::kMN>,
              wgmma_descriptor<Major::kMN>(x(ring.stage, own_box)) + step * kWgmmaStepK<Major::kMN>,
              1);
        }
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
#pragma unroll
    for (int i = 0; i < Tile::kWidth / 2; ++i) ptx::fence_register(d_x[i]);
    const int row = token + warp % 4 * 16;
#pragma unroll
    for (int piece = 0; piece < Tile::kPieces; ++piece) {
      std::uint32_t words[16];
      pack_all<Element, 32>(d_x + 32 * piece, words);
      stage_words(words, slots.take(), lane);
      // The copy engine leaves out what is past the last token.
      slots.put(params.d_x, row, 16, column0 + (own_box + piece) * 64, 0);
    }
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int block = 0; block < Tile::kExpertBoxes; ++block) {
#pragma unroll
      for (int i = 0; i < Tile::kWidth / 2; ++i) ptx::fence_register(d_router[block][i]);
    }
    if (lane == 0) ptx::mbarrier_arrive(empty(ring.stage));
    ring.advance();
  }

  float* partials =
      params.partials_SPD + static_cast<std::int64_t>(chunk) * params.pitch * params.d_x.columns;
#pragma unroll
  for (int block = 0; block < Tile::kExpertBoxes; ++block) {
#pragma unroll
    for (int i = 0; i < Tile::kWidth / 2; i += 2) {
      const int expert = 64 * block + warp % 4 * 16 + lane / 4 + i / 2 % 2 * 8;
      const int column = column0 + own_box * 64 + i / 4 * 8 + lane % 4 * 2;
      if (expert < params.pitch && column < params.d_x.columns) {
        *reinterpret_cast<float2*>(
            partials + static_cast<std::int64_t>(expert) * params.d_x.columns + column) =
            make_float2(d_router[block][i], d_router[block][i + 1]);
      }
    }
  }
  slots.drain();
}

}  // namespace dropless::cuda
