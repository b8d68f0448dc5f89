// Which implementation of an op runs. Both give the same results up to rounding.
#pragma once

#include <cstdint>

namespace dropless {

enum class Backend : std::uint8_t {
  kAuto,       // the kernels for the tensors' device and this processor
  kReference,  // plain single-threaded loops (CPU tensors only): slow, for checking
};

}  // namespace dropless
