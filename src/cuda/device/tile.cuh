// Shape of one CTA's output tile and how its shared memory is divided.
//
// A stage holds 64 of k for both operands, in the 128-byte swizzle that TMA writes and wgmma reads.
// Store slots are 2 KB staging areas (16 rows of 128 bytes), kSlots for each of the 8 consumer
// warps.
#pragma once

#include <algorithm>

#include "gather_beside.cuh"
#include "ptx.cuh"
#include "wgmma.cuh"

namespace dropless::cuda {

inline constexpr int kBlockK = 64;
inline constexpr int kConsumers = 2;  // warpgroups that multiply; one more loads
inline constexpr int kConsumerWarps = 4 * kConsumers;
inline constexpr int kGemmThreads = 128 * (1 + kConsumers);
inline constexpr int kSlotBytes = 2048;
// 168 registers a thread at launch; the loading warpgroup hands most of its own to the others.
inline constexpr int kLoaderRegisters = 40;
inline constexpr int kConsumerRegisters = 232;
// The second consumer starts this many stages after the first, so that one stores while the other
// still multiplies.
inline constexpr int kConsumerLag = 1;
// Warps of the loading warpgroup that gather rows of A.
inline constexpr int kGatherWarps = 2;
inline constexpr int kMaxSharedBytes = 227 * 1024;
// Tiles announced to the consumers: two barriers and 32 bytes each.
inline constexpr int kWorkEntries = 4;
inline constexpr int kWorkBytes = kWorkEntries * (16 + 32);

// kClusterM CTAs, neighbours along M, share each B tile; kClusterN CTAs along N share each A tile.
// With kPlanes = 2 the B tile is two halves, the same rows of two weight tensors: a thread then
// holds columns c and c + kBlockN / 2 of both products. With kTerms = 2 the product is a sum of
// two, D = A B^T + A2 B2^T: k runs through the first pair of operands and then through the second.
// With kGather the rows of A are those that a list names. ElementType: of A and B.
template <int kM, int kN, int kStageCount, int kSlotCount, int kClusterAlongM, int kClusterAlongN,
          Major kLayoutA, Major kLayoutB, int kPlaneCount = 1, int kTermCount = 1,
          bool kGather = false, class ElementType = __nv_bfloat16>
struct Tile {
  using Element = ElementType;
  static constexpr int kBlockM = kM;
  static constexpr int kBlockN = kN;
  static constexpr int kStages = kStageCount;
  static constexpr int kSlots = kSlotCount;
  static constexpr int kClusterM = kClusterAlongM;
  static constexpr int kClusterN = kClusterAlongN;
  static constexpr int kCluster = kClusterM * kClusterN;
  static constexpr Major kMajorA = kLayoutA;
  static constexpr Major kMajorB = kLayoutB;

  static constexpr int kPlanes = kPlaneCount;
  static constexpr int kTerms = kTermCount;
  static constexpr bool kGathersA = kGather;
  static constexpr int kStepN = kBlockN / kPlanes;  // columns of D between tiles

  static constexpr int kRowsPerConsumer = kBlockM / kConsumers;
  static constexpr int kTilesM = kRowsPerConsumer / 64;  // wgmma tiles along M of one consumer

  static constexpr int kBytesA = kBlockM * kBlockK * 2;
  static constexpr int kBytesB = kBlockN * kBlockK * 2;
  static constexpr int kStageBytes = kBytesA + kBytesB;
  static constexpr int kSlotsOffset = kStages * kStageBytes;
  static constexpr int kBarriersOffset = kSlotsOffset + kConsumerWarps * kSlots * kSlotBytes;
  static constexpr int kWorkOffset = kBarriersOffset + 2 * kStages * 8;
  static constexpr int kFetchOffset = kWorkOffset + kWorkBytes;  // a barrier of each consumer warp
  // Whether two warps of the loading warpgroup are idle: gather_beside.cuh.
  static constexpr bool kGathersBeside = !kGathersA && kPlanes == 1;
  static constexpr int kBesideOffset = kFetchOffset + kConsumerWarps * 8;
  // What is left, up to the size from which more brought nothing.
  static constexpr int kBesidePieceBytes = std::clamp(
      ((kMaxSharedBytes - kBesideOffset) / (kBesideWarps * kBesidePieces) - 8) / 16 * 16, 16, 2048);
  using GatherBeside = GatherBesideWarp<kBesidePieceBytes>;
  static constexpr int kSharedBytes =
      kBesideOffset + (kGathersBeside ? kBesideWarps * GatherBeside::kRingBytes : 0);

  static_assert(kBlockM % (64 * kConsumers) == 0 && kBlockN % 64 == 0);
  static_assert(kSharedBytes <= kMaxSharedBytes && kBesideOffset % 16 == 0);
  static_assert(kCluster <= 2);
  static_assert(kPlanes == 1 || (kClusterM == 2 && kMajorB == Major::kK));
  static_assert(kPlanes == 1 || kTerms == 1);
  static_assert(!kGathersA || (kMajorA == Major::kK && kClusterN == 1 && kTerms == 1));
};

}  // namespace dropless::cuda
