#include "train/run/memory.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "train/base/host_memory.h"
#include "train/base/log.h"
#include "train/run/summary.h"

namespace dropless::train {
namespace {

// From the driver, which is loaded by the time a GPU is chosen; it needs no context for this.
std::optional<double> gpu_bytes(int index) {
  using Get = int (*)(int*, int);
  using GetBytes = int (*)(std::size_t*, int);
  const auto get = reinterpret_cast<Get>(dlsym(RTLD_DEFAULT, "cuDeviceGet"));
  const auto get_bytes = reinterpret_cast<GetBytes>(dlsym(RTLD_DEFAULT, "cuDeviceTotalMem_v2"));
  int device = 0;
  std::size_t bytes = 0;
  if (get == nullptr || get_bytes == nullptr || get(&device, index) != 0 ||
      get_bytes(&bytes, device) != 0) {
    return std::nullopt;
  }
  return static_cast<double>(bytes);
}

}  // namespace

std::optional<double> available_bytes(at::Device device) {
  if (device.is_cuda()) return gpu_bytes(device.has_index() ? device.index() : 0);
  return available_host_bytes();
}

double training_bytes_per_parameter(const OptimizerConfig& optimizer, Precision precision) {
  const double size = static_cast<double>(c10::elementSize(weight_type(precision)));
  return size * (2 + optimizer.moments());
}

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return true;
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  return torch != nullptr &&
         std::string(torch->what_without_backtrace()).find("can't allocate memory") !=
             std::string::npos;
}

void release_cached_memory(at::Device device) {
  if (!device.is_cpu()) c10::getDeviceAllocator(device.type())->emptyCache();
}

std::vector<std::pair<std::string, double>> memory_in_use(at::Device device) {
  constexpr double kGB = 1e9;
  if (!device.is_cpu()) {
    using c10::CachingAllocator::StatType;
    const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
    const auto& allocated = stats.allocated_bytes[static_cast<std::size_t>(StatType::AGGREGATE)];
    const auto& reserved = stats.reserved_bytes[static_cast<std::size_t>(StatType::AGGREGATE)];
    return {{"memory/current_allocated_mem", static_cast<double>(allocated.current) / kGB},
            {"memory/peak_allocated_mem", static_cast<double>(allocated.peak) / kGB},
            {"memory/peak_reserved_mem", static_cast<double>(reserved.peak) / kGB}};
  }
  std::ifstream file("/proc/self/statm");
  double total_pages = 0, resident_pages = 0;
  struct rusage usage = {};
  if (!(file >> total_pages >> resident_pages) || ::getrusage(RUSAGE_SELF, &usage) != 0) return {};
  const double resident = resident_pages * static_cast<double>(::sysconf(_SC_PAGESIZE));
  // The kernel counts the peak in batches, so it lags behind what is there now.
  const double peak = std::max(resident, static_cast<double>(usage.ru_maxrss) * 1024);
  return {{"memory/current_resident_mem", resident / kGB},
          {"memory/peak_resident_mem", peak / kGB}};
}

std::string torch_message(const c10::Error& error) {
  std::string text = error.what_without_backtrace();
  // "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: ..."
  if (const auto at = text.find("DefaultCPUAllocator: "); at != std::string::npos) {
    text.erase(0, at + std::string_view("DefaultCPUAllocator: ").size());
  }
  // After the figures of a GPU comes an account of this allocator's pools.
  text.resize(std::min(text.find(" Including non-PyTorch memory"), text.size()));
  text.resize(std::min(text.find(" Error code 12"), text.size()));
  return "libtorch: " + text;
}

void require_memory(const ModelConfig& config, at::Device device, double bytes_per_parameter) {
  const ParameterEstimate size = estimate_parameters(config);
  const double needed = size.total * bytes_per_parameter;
  const std::optional<double> available = available_bytes(device);
  if (!available) return;
  const bool training = bytes_per_parameter > kWeightBytesPerParameter;
  constexpr double kTight = 0.85;
  if (training && needed > kTight * *available && needed <= *available) {
    log_warning(
        "weights, gradients and moments need {} of the {} that {} has; activations come on top, "
        "and where memory runs out the system may kill the process without a word",
        format_bytes(needed), format_bytes(*available), device.str());
  }
  if (needed <= *available) return;
  throw Error(
      ErrorKind::kInvalidArgument,
      fmt::format("{} parameters need {} of {}, and {} has {}", format_count(size.total),
                  format_bytes(needed), training ? "weights, gradients and moments" : "weights",
                  device.str(), format_bytes(*available)),
      "most are " + size.largest + "; make the model smaller");
}

}  // namespace dropless::train
