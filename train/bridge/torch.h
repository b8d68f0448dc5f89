// The part of libtorch that the trainer uses: tensors, autograd and gradient modes. Also the
// precompiled header of every room above it (8 s of parsing a file otherwise).
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/grad_mode.h>
