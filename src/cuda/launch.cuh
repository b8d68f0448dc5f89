// Launches a persistent kernel: one CTA an SM, in clusters.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "src/cuda/check.h"

namespace dropless::cuda {

inline int multiprocessors() {
  int device = 0;
  int count = 0;
  DROPLESS_CUDA_CHECK(cudaGetDevice(&device));
  DROPLESS_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// `max_clusters`: no more than there is work for.
template <class Kernel, class... Args>
void launch_persistent(Kernel kernel, int threads, int shared_bytes, int cluster,
                       long long max_clusters, cudaStream_t stream, const Args&... args) {
  DROPLESS_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  const long long clusters = std::min<long long>(multiprocessors() / cluster, max_clusters);
  config.gridDim = dim3(static_cast<unsigned>(clusters * cluster));
  DROPLESS_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args...));
}

}  // namespace dropless::cuda
