// PTX for bytes that are read once, and for what can be done while a cluster gathers. Semantics: PTX
// ISA 9.0, sections "cp.async.bulk.tensor", "createpolicy", "barrier.cluster".
#pragma once

#include "src/cuda/device/ptx.cuh"

namespace dropless::cuda::ptx {

// tma_load with a policy of L2 from below.
__device__ __forceinline__ void tma_load(const CUtensorMap* map, std::uint32_t barrier,
                                         std::uint32_t destination, int c0, int c1, int c2,
                                         std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(destination),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "l"(policy)
      : "memory");
}

// What L2 gives up before all else; and as it treats any.
__device__ __forceinline__ std::uint64_t policy_evict_first() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ std::uint64_t policy_evict_normal() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// The halves of cluster_sync().
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace dropless::cuda::ptx
