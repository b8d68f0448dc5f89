// Work on a GPU captured into a CUDA graph. The driver is loaded by train/bridge/device.h; its functions
// are looked up, so that this file needs nothing of CUDA to compile.
//
// What the work allocates goes back to libtorch when it was captured, and every launch writes there again:
// between launches nothing may be allocated on the same stream that is to outlive the next one.
#pragma once

#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <map>
#include <string>

#include "dropless/error.h"
#include "train/bridge/device.h"

namespace dropless::train {

// While it lives the calling thread's libtorch queues on a stream of its own: the default stream cannot be
// captured. One thread at a time.
class OwnStream {
 public:
  explicit OwnStream(const at::Device& device)
      : guard_(device.type()),
        own_(stream_of(guard_, device)),
        previous_(guard_.exchangeStream(own_)) {
    guard_.synchronizeStream(previous_);
  }
  ~OwnStream() {
    try {
      guard_.synchronizeStream(guard_.exchangeStream(previous_));
    } catch (const c10::Error&) {  // of an earlier call, which has told of it
    }
  }
  void synchronize() const { guard_.synchronizeStream(own_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;

 private:
  // One a GPU, kept: libtorch holds memory and workspaces for each stream that it has worked on.
  static c10::Stream stream_of(const c10::impl::VirtualGuardImpl& guard, const at::Device& device) {
    static std::map<at::DeviceIndex, c10::Stream> streams;
    const auto found = streams.find(device.index());
    if (found != streams.end()) return found->second;
    return streams.emplace(device.index(), guard.getStreamFromGlobalPool(device)).first->second;
  }

  c10::impl::VirtualGuardImpl guard_;
  c10::Stream own_, previous_;
};

class DeviceGraph {
 public:
  // Under an OwnStream. Runs `work` twice before, so that libtorch's allocator holds its memory.
  template <class Work>
  DeviceGraph(const at::Device& device, Work&& work) : stream_(current_stream(device)) {
    for (int i = 0; i < 2; ++i) work();
    check("cuStreamSynchronize", call<int (*)(void*)>("cuStreamSynchronize")(stream_));
    constexpr int kRelaxed = 2;  // libtorch's threads may allocate
    check("cuStreamBeginCapture",
          call<int (*)(void*, int)>("cuStreamBeginCapture_v2")(stream_, kRelaxed));
    void* graph = nullptr;
    const auto end_capture = [&] {
      return call<int (*)(void*, void**)>("cuStreamEndCapture")(stream_, &graph);
    };
    try {
      work();
    } catch (...) {
      end_capture();
      if (graph != nullptr) call<int (*)(void*)>("cuGraphDestroy")(graph);
      throw;
    }
    check("cuStreamEndCapture", end_capture());
    const int status = call<int (*)(void**, void*, unsigned long long)>(
        "cuGraphInstantiateWithFlags")(&executable_, graph, 0);
    call<int (*)(void*)>("cuGraphDestroy")(graph);
    check("cuGraphInstantiate", status);
  }
  ~DeviceGraph() { call<int (*)(void*)>("cuGraphExecDestroy")(executable_); }
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;

  void launch() const {
    check("cuGraphLaunch", call<int (*)(void*, void*)>("cuGraphLaunch")(executable_, stream_));
  }

 private:
  template <class Function>
  static Function call(const char* name) {
    const auto function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
    if (function == nullptr) {
      throw Error(ErrorKind::kUnsupported, std::string("the NVIDIA driver has no ") + name,
                  "update the driver to release 580 or later");
    }
    return function;
  }
  static void check(const char* name, int status) {
    if (status != 0) {
      throw Error(ErrorKind::kResource,
                  std::string(name) + " failed with " + std::to_string(status));
    }
  }

  void* stream_;
  void* executable_ = nullptr;
};

}  // namespace dropless::train
