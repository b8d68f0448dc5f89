// Which GPU the calling thread works on, and whether it runs the kernels built here.
#include <cuda_runtime_api.h>

#include "src/cuda/check.h"
#include "src/cuda/kernels.h"

namespace dropless::cuda {

CurrentDevice::CurrentDevice(int index) : index_(index), previous_(index) {
  DROPLESS_CUDA_CHECK(cudaGetDevice(&previous_));
  if (index_ != previous_) DROPLESS_CUDA_CHECK(cudaSetDevice(index_));
}

CurrentDevice::~CurrentDevice() {
  if (index_ != previous_) cudaSetDevice(previous_);
}

std::string device_problem(int index) {
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    return std::string("no GPU can be used: ") + cudaGetErrorString(status);
  }
  if (index < 0 || index >= count) {
    return "there is no GPU " + std::to_string(index) + " among " + std::to_string(count);
  }
  int major = 0, minor = 0;
  DROPLESS_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  DROPLESS_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  if (major != 9 || minor != 0) {
    return "the kernels are built for compute capability 9.0 (H100, H200); GPU " +
           std::to_string(index) + " has " + std::to_string(major) + "." + std::to_string(minor);
  }
  return "";
}

}  // namespace dropless::cuda
