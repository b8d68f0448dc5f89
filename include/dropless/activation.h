// Activations of the expert networks, plain or gated.
#pragma once

#include <cstdint>

#include "dropless/view.h"

namespace dropless {

enum class Activation : std::uint8_t {
  kSilu,       // x * sigmoid(x)
  kGeluTanh,   // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  kGelu,       // 0.5 x (1 + erf(x / sqrt(2)))
  kRelu,       // max(x, 0)
  kQuickGelu,  // x * sigmoid(1.702 x)
};

// a = act(gate) * up, or act(gate) where `up` is absent. All [R, F], one dtype.
void activation_forward(Activation activation, ConstTensorView gate_RF, ConstTensorView up_RF,
                        TensorView a_RF);

// d_gate = d_a * up * act'(gate), d_up = d_a * act(gate). d_gate and d_up may be d_a's or each own
// input's memory (elementwise).
void activation_backward(Activation activation, ConstTensorView gate_RF, ConstTensorView up_RF,
                         ConstTensorView d_a_RF, TensorView d_gate_RF, TensorView d_up_RF);

}  // namespace dropless
