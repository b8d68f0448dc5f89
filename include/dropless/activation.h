// Activations of the expert networks, plain or gated.
#pragma once

#include <cstdint>

#include "dropless/backend.h"
#include "dropless/view.h"

namespace dropless {

enum class Activation : std::uint8_t {
  kSilu,       // x * sigmoid(x)
  kGeluTanh,   // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  kGelu,       // 0.5 x (1 + erf(x / sqrt(2)))
  kRelu,       // max(x, 0)
  kQuickGelu,  // x * sigmoid(1.702 x)
};

// a = act(gate) * up, or act(gate) where `up` is absent. All [R, F], contiguous, one of fp32, fp64,
// bf16, fp16 (computed in fp32 for the 16-bit types). Throws Error(kInvalidArgument) naming tensor
// and shapes.
void activation_forward(Activation activation, ConstTensorView gate_RF, ConstTensorView up_RF,
                        TensorView a_RF, Backend backend = Backend::kAuto);

// d_gate = d_a * up * act'(gate), d_up = d_a * act(gate); d_up is absent where up is. d_gate and
// d_up may be the memory of d_a or of their own input (elementwise). The derivative of relu at 0 is
// 0.
void activation_backward(Activation activation, ConstTensorView gate_RF, ConstTensorView up_RF,
                         ConstTensorView d_a_RF, TensorView d_gate_RF, TensorView d_up_RF,
                         Backend backend = Backend::kAuto);

}  // namespace dropless
