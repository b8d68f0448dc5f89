// The part of libtorch that the trainer uses: tensors, autograd and gradient modes.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/grad_mode.h>
