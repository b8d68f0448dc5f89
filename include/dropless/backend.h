// Which implementation of an op runs (both give the same results up to rounding), and where.
#pragma once

#include <cstdint>

namespace dropless {

enum class Backend : std::uint8_t {
  kAuto,       // the kernels for the tensors' device and this processor
  kReference,  // plain single-threaded loops (CPU tensors only): slow, for checking
};

// A cudaStream_t, for tensors on a GPU: the work is queued on it and the call returns at once. Null
// is the legacy default stream. On the CPU a call returns when the work is done.
using Stream = void*;

}  // namespace dropless
