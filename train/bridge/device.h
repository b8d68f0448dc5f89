// Which device a run uses, and the CUDA side of libtorch, loaded only where a driver is present.
#pragma once

#include <string>

#include "dropless/backend.h"
#include "train/bridge/torch.h"

namespace dropless::train {

// True if a CUDA driver, libtorch_cuda and at least one GPU are there. Loads libtorch_cuda on the
// first call (about a second on a GPU machine, nothing elsewhere).
bool cuda_available();

// By its name (train/bridge/device_name.h). Throws Error(kInvalidArgument) where there is none of it.
at::Device choose_device(const std::string& name);

// "CPU, 2 threads" or "NVIDIA H100 80GB HBM3".
std::string describe_device(const at::Device& device);

// The stream that libtorch queues its work on now; null on the CPU.
Stream current_stream(const at::Device& device);

}  // namespace dropless::train
