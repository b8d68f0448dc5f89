// Which device a run uses, and the CUDA side of libtorch, loaded only where a driver is present.
#pragma once

#include <string>

#include "dropless/backend.h"
#include "train/bridge/torch.h"

namespace dropless::train {

// True if a CUDA driver, libtorch_cuda and at least one GPU are there. Loads libtorch_cuda on the
// first call (about a second on a GPU machine, nothing elsewhere).
bool cuda_available();

// Throws Error(kInvalidArgument) for what is none of the names below.
void check_device_name(const std::string& name);

// "cpu", "cuda" or "gpu", "cuda:N", or "auto" (a GPU where there is one). Throws
// Error(kInvalidArgument) where there is none of that name.
at::Device choose_device(const std::string& name);

// "CPU, 2 threads" or "NVIDIA H100 80GB HBM3".
std::string describe_device(const at::Device& device);

// The stream that libtorch queues its work on now; null on the CPU.
Stream current_stream(const at::Device& device);

}  // namespace dropless::train
