// Which GPU the calling thread works on, and whether it runs the kernels built here.
#include <cuda_runtime_api.h>

#include <string>
#include <vector>

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

namespace {

std::string find_problem(int index) {
  int major = 0, minor = 0;
  DROPLESS_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  DROPLESS_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  if (major != 9 || minor != 0) {
    return "the kernels are built for compute capability 9.0 (H100, H200); GPU " +
           std::to_string(index) + " has " + std::to_string(major) + "." + std::to_string(minor);
  }
  return "";
}

}  // namespace

// Asked by every call of the layer: found out once.
std::string device_problem(int index) {
  static std::string no_gpu;
  static const std::vector<std::string> problems = [] {
    int count = 0;
    if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
      no_gpu = std::string("no GPU can be used: ") + cudaGetErrorString(status);
    }
    std::vector<std::string> found;
    for (int i = 0; i < count; ++i) found.push_back(find_problem(i));
    return found;
  }();
  if (!no_gpu.empty()) return no_gpu;
  if (index < 0 || static_cast<std::size_t>(index) >= problems.size()) {
    return "there is no GPU " + std::to_string(index) + " among " + std::to_string(problems.size());
  }
  return problems[index];
}

}  // namespace dropless::cuda
