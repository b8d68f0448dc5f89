// activation.h: checks, then the CPU kernel.
#include "dropless/activation.h"

#include "src/common/check.h"
#include "src/cpu/kernels.h"
#include "src/ops/expect.h"

namespace dropless {

void activation_forward(Activation activation, ConstTensorView gate_RF, ConstTensorView up_RF,
                        TensorView a_RF, Backend backend) {
  const char* op = "activation_forward";
  expect_activation(op, activation);
  expect_floating(op, "gate_RF", gate_RF, 2);
  expect_cpu(op, gate_RF);
  const Expected same{{gate_RF.shape[0], gate_RF.shape[1]}, gate_RF.dtype};
  expect_tensor(op, "gate_RF", gate_RF, same, gate_RF.device);
  expect_tensor_or_absent(op, "up_RF", up_RF, same, gate_RF.device);
  expect_tensor(op, "a_RF", a_RF, same, gate_RF.device);
  const cpu::ActivationForwardArgs args{.dtype = gate_RF.dtype,
                                        .activation = activation,
                                        .size = gate_RF.numel(),
                                        .gate = gate_RF.data,
                                        .up = up_RF.data,
                                        .a = a_RF.data};
  cpu::kernels(backend).activation_forward(args);
}

void activation_backward(Activation activation, ConstTensorView gate_RF, ConstTensorView up_RF,
                         ConstTensorView d_a_RF, TensorView d_gate_RF, TensorView d_up_RF,
                         Backend backend) {
  const char* op = "activation_backward";
  expect_activation(op, activation);
  expect_floating(op, "gate_RF", gate_RF, 2);
  expect_cpu(op, gate_RF);
  const Expected same{{gate_RF.shape[0], gate_RF.shape[1]}, gate_RF.dtype};
  expect_tensor(op, "gate_RF", gate_RF, same, gate_RF.device);
  expect_tensor_or_absent(op, "up_RF", up_RF, same, gate_RF.device);
  expect_tensor(op, "d_a_RF", d_a_RF, same, gate_RF.device);
  expect_tensor(op, "d_gate_RF", d_gate_RF, same, gate_RF.device);
  expect_tensor_or_absent(op, "d_up_RF", d_up_RF, same, gate_RF.device);
  DROPLESS_CHECK(static_cast<bool>(up_RF) == static_cast<bool>(d_up_RF),
                 concat(op, ": up_RF is ", describe(up_RF), " but d_up_RF is ", describe(d_up_RF)),
                 "pass both (GLU) or neither (MLP)");
  const cpu::ActivationBackwardArgs args{.dtype = gate_RF.dtype,
                                         .activation = activation,
                                         .size = gate_RF.numel(),
                                         .gate = gate_RF.data,
                                         .up = up_RF.data,
                                         .d_a = d_a_RF.data,
                                         .d_gate = d_gate_RF.data,
                                         .d_up = d_up_RF.data};
  cpu::kernels(backend).activation_backward(args);
}

}  // namespace dropless
