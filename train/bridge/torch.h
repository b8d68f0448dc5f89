// The part of libtorch that the trainer uses everywhere: tensors and gradient modes. Few files need more, such as
// autograd's, and every header here costs each file that includes this, precompiled or not.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>
