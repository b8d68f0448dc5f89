// Which GPU the calling thread works on, and whether it runs the kernels built here.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "src/cuda/check.h"
#include "src/cuda/kernels.h"
#include "src/cuda/path.h"

namespace dropless::cuda {

CurrentDevice::CurrentDevice(int index) : index_(index), previous_(index) {
  DROPLESS_CUDA_CHECK(cudaGetDevice(&previous_));
  if (index_ != previous_) DROPLESS_CUDA_CHECK(cudaSetDevice(index_));
}

CurrentDevice::~CurrentDevice() {
  if (index_ != previous_) cudaSetDevice(previous_);
}

namespace {

struct GpuState {
  std::string problem;
  bool hopper = false;
};

GpuState examine(int index) {
  int major = 0, minor = 0;
  DROPLESS_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  DROPLESS_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  if (major < 8) {
    return {"the kernels need compute capability 8.0 or later (A100 and newer); GPU " +
            std::to_string(index) + " has " + std::to_string(major) + "." + std::to_string(minor)};
  }
  return {"", major == 9 && minor == 0};
}

// Asked by every call of the layer: found out once.
struct Gpus {
  std::string no_gpu;
  std::vector<GpuState> states;
  Gpus() {
    int count = 0;
    if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
      no_gpu = std::string("no GPU can be used: ") + cudaGetErrorString(status);
    }
    for (int i = 0; i < count; ++i) states.push_back(examine(i));
  }
};
const Gpus& gpus() {
  static const Gpus found;
  return found;
}

bool portable_path_wanted() {
  static const bool wanted = asks_for_portable(std::getenv("DROPLESS_CUDA_PATH"));
  return wanted;
}

}  // namespace

std::string device_problem(int index) {
  const Gpus& found = gpus();
  if (!found.no_gpu.empty()) return found.no_gpu;
  if (index < 0 || static_cast<std::size_t>(index) >= found.states.size()) {
    return "there is no GPU " + std::to_string(index) + " among " +
           std::to_string(found.states.size());
  }
  portable_path_wanted();  // throws where the variable says something else
  return found.states[index].problem;
}

bool portable_path(int index) { return portable_path_wanted() || !gpus().states.at(index).hopper; }

bool portable_path() {
  int index = 0;
  DROPLESS_CUDA_CHECK(cudaGetDevice(&index));
  return portable_path(index);
}

}  // namespace dropless::cuda
