// Launches kernels that fill the GPU with one CTA an SM, and those that start while the one before ends.
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

// Launches a kernel that may start while the one before it in the stream ends: it calls
// ptx::dependency_wait() before it touches what the kernels before it write.
template <class... Parameters, class... Args>
void launch_dependent(void (*kernel)(Parameters...), int ctas, int threads, int shared_bytes,
                      int cluster, cudaStream_t stream, const Args&... args) {
  DROPLESS_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(ctas);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  DROPLESS_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args...));
}

// One CTA an SM. `max_clusters`: no more than there is work for.
template <class... Parameters, class... Args>
void launch_persistent(void (*kernel)(Parameters...), int threads, int shared_bytes, int cluster,
                       long long max_clusters, cudaStream_t stream, const Args&... args) {
  const long long clusters = std::min<long long>(multiprocessors() / cluster, max_clusters);
  launch_dependent(kernel, static_cast<int>(clusters * cluster), threads, shared_bytes, cluster,
                   stream, args...);
}

}  // namespace dropless::cuda
