// libtorch_cuda registers its kernels when it is loaded. It is not linked, so that one binary
// starts fast on machines without a GPU and trains on those with one.
#include "train/bridge/device.h"

#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>

#include <optional>

#include "dropless/error.h"
#include "train/bridge/device_name.h"

namespace dropless::train {
namespace {

// Why CUDA cannot be used; empty when it can.
std::string load_cuda() {
  if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) == nullptr)
    return "no NVIDIA driver is installed";
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    return std::string("libtorch_cuda cannot be loaded: ") + dlerror();
  }
  if (!at::globalContext().hasCUDA()) return "libtorch sees no CUDA device";
  return "";
}

// The card's name from the driver, which is already loaded: libtorch has no device-free call for
// it.
std::string gpu_name(int index) {
  using Get = int (*)(int*, int);
  using GetName = int (*)(char*, int, int);
  const auto get = reinterpret_cast<Get>(dlsym(RTLD_DEFAULT, "cuDeviceGet"));
  const auto get_name = reinterpret_cast<GetName>(dlsym(RTLD_DEFAULT, "cuDeviceGetName"));
  int device = 0;
  char name[256] = "";
  if (get == nullptr || get_name == nullptr || get(&device, index) != 0 ||
      get_name(name, sizeof(name), device) != 0) {
    return "GPU " + std::to_string(index);
  }
  return name;
}

const std::string& cuda_problem() {
  static const std::string problem = load_cuda();
  return problem;
}

}  // namespace

bool cuda_available() { return cuda_problem().empty(); }

at::Device choose_device(const std::string& name) {
  const std::optional<int> index = parse_device_name(name);
  if (!index) return at::kCPU;
  if (name == "auto" && !cuda_available()) return at::kCPU;
  if (!cuda_available()) {
    throw Error(ErrorKind::kInvalidArgument, "device " + name + ": " + cuda_problem(),
                "use device cpu, or auto");
  }
  const int count = at::detail::getCUDAHooks().deviceCount();
  if (*index >= count) {
    throw Error(ErrorKind::kInvalidArgument,
                "device " + name + ": this machine has " + std::to_string(count) +
                    (count == 1 ? " GPU, cuda:0" : " GPUs, from cuda:0"));
  }
  return at::Device(at::kCUDA, static_cast<at::DeviceIndex>(*index));
}

// Through libtorch's C interface, looked up in the loaded library: its C++ class needs linking.
Stream current_stream(const at::Device& device) {
  if (!device.is_cuda()) return nullptr;
  using GetStream = int (*)(std::int32_t, void**);
  static const auto get =
      reinterpret_cast<GetStream>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  void* stream = nullptr;
  if (get == nullptr || get(device.has_index() ? device.index() : 0, &stream) != 0) {
    throw Error(ErrorKind::kUnsupported, "libtorch does not tell which CUDA stream it works on",
                "use the libtorch of the torch 2.11 wheel");
  }
  return stream;
}

std::string describe_device(const at::Device& device) {
  if (device.is_cpu()) {
    const int threads = at::get_num_threads();
    return "CPU, " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
  }
  return gpu_name(device.has_index() ? device.index() : 0);
}

}  // namespace dropless::train
