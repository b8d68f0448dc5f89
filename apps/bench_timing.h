// Time and memory of work on a device, for the bench verbs.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "train/base/signals.h"
#include "train/bridge/torch.h"

namespace dropless::apps {

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// Milliseconds of one run: between two events on a GPU, by the clock elsewhere. Before it, throws like check_interrupted().
template <class Work>
double time_ms(const at::Device& device, Work&& work) {
  train::check_interrupted();
  if (!device.is_cuda()) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  const c10::Stream stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  c10::Event begin(device.type(), c10::EventFlag::BACKEND_DEFAULT);
  c10::Event end(device.type(), c10::EventFlag::BACKEND_DEFAULT);
  begin.record(stream);
  work();
  end.record(stream);
  end.synchronize();
  return begin.elapsedTime(end);
}

// A copy large beside any cache, of memory that is there before: what bytes cost a device at best.
class LargeCopy {
 public:
  explicit LargeCopy(const at::Device& device)
      : LargeCopy(device, std::int64_t{1} << (device.is_cuda() ? 29 : 26)) {}
  LargeCopy(const at::Device& device, std::int64_t size)
      : from_(at::zeros({size}, at::TensorOptions(device).dtype(at::kByte))),
        to_(at::empty_like(from_)) {}

  void run() const { to_.copy_(from_); }
  double bytes() const { return 2.0 * static_cast<double>(from_.numel()); }  // read and written

 private:
  at::Tensor from_, to_;
};

struct MemoryUse {
  std::int64_t now;
  std::int64_t peak;  // since the last reset_peak()
};

// What libtorch's allocator has handed out; absent on the CPU, where it does not count.
inline std::optional<MemoryUse> memory_use(const at::Device& device) {
  if (!device.is_cuda()) return std::nullopt;
  const auto stats = at::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return MemoryUse{stats.allocated_bytes[0].current, stats.allocated_bytes[0].peak};
}

inline void reset_peak(const at::Device& device) {
  if (device.is_cuda()) at::getDeviceAllocator(device.type())->resetPeakStats(device.index());
}

}  // namespace dropless::apps
