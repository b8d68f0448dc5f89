// Argument checks shared by the ops: each throws Error(kInvalidArgument) naming op, tensor, what it
// is and what it should be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "dropless/activation.h"
#include "dropless/backend.h"
#include "dropless/route.h"
#include "dropless/view.h"

namespace dropless {

struct Expected {
  Expected(std::initializer_list<std::int64_t> dims, DType dtype) : view(nullptr, dtype, dims) {}
  ConstTensorView view;  // shape and type only
};

// Shape and type as expected, on `device`, contiguous, and backed by memory unless empty.
void expect_tensor(const char* op, const char* name, const ConstTensorView& view,
                   const Expected& expected, Device device);

// As expect_tensor, of three dimensions, but its matrices may lie further apart, as halves of [E, 2 F, D] do.
void expect_matrices(const char* op, const char* name, const ConstTensorView& view,
                     const Expected& expected, Device device);

// As expect_tensor, but absent views pass.
void expect_tensor_or_absent(const char* op, const char* name, const ConstTensorView& view,
                             const Expected& expected, Device device);

// An absent view has no pointer either: kernels know it by that.
void expect_present_or_empty(const char* op, const char* name, const ConstTensorView& view);

// The tensor that decides the op's sizes: its rank, and a type out of fp32, fp64, bf16, fp16.
void expect_floating(const char* op, const char* name, const ConstTensorView& view, int rank);

// Memory of at least `needed` bytes, aligned to kWorkspaceAlignment.
void expect_workspace(const char* op, const void* workspace, std::size_t bytes, std::size_t needed);

// That an array of 8-byte elements with these sides can exist: for size queries, which no tensor has
// bounded.
void expect_bytes(const char* op, const char* what, std::initializer_list<std::int64_t> factors);

// Until an op has a CUDA kernel: throws for tensors that are not on the CPU.
void expect_cpu(const char* op, const ConstTensorView& view);

// A value that its enum has.
void expect_activation(const char* op, Activation activation);

// A floating type, for size queries, which no tensor has shown.
void expect_sums(const char* op, DType dtype);

// T K routed rows are numbered by int32.
void expect_row_count(const char* op, std::int64_t tokens, std::int64_t top_k);

// offsets_E1 is int64 [E + 1] with E >= 1; returns E.
std::int64_t expect_group_offsets(const char* op, const ConstTensorView& offsets_E1);

// Offsets of groups on the CPU: from 0 to `rows`, not decreasing.
void expect_offsets(const char* op, const ConstTensorView& offsets_E1, std::int64_t rows);

// A router that chooses top_k of `experts`.
void expect_route_config(const char* op, const RouteConfig& config, std::int64_t experts,
                         std::int64_t top_k);

// Indices that are an input, on the CPU: each of an expert.
void expect_indices(const char* op, const char* name, const ConstTensorView& indices_TK,
                    std::int64_t experts);

}  // namespace dropless
