// Integer bookkeeping of routed rows: counts, stable sort, running sums, padding and tile tables.
//
// Shapes: N entries, E bins (experts), B batch rows. Indices, counts and orders are int32, offsets
// int64 [E + 1] from 0 to N as of dispatch_order (permute.h); all contiguous, on the CPU. An index
// outside [0, E) is an error. Throws Error(kInvalidArgument) naming the tensor and the shapes. The
// semantics are those of MegaBlocks' ops of the same names (Gale et al. 2022, arXiv:2211.15841);
// its `bins` are our offsets without the leading 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dropless/backend.h"
#include "dropless/view.h"

namespace dropless {

// counts_E[e] = number of i with indices_N[i] = e.
void histogram(ConstTensorView indices_N, TensorView counts_E, Backend backend = Backend::kAuto);

// Stable sort of keys in [0, num_keys): sorted_N[r] = keys_N[order_N[r]], not decreasing; equal keys
// keep their order. sorted_N may be absent.
std::size_t sort_workspace_bytes(std::int64_t entries, std::int64_t num_keys);
void sort(ConstTensorView keys_N, std::int64_t num_keys, TensorView sorted_N, TensorView order_N,
          void* workspace, std::size_t workspace_bytes, Backend backend = Backend::kAuto);

// Running sums of each row of x_BN (int32 or int64; out of the same type and shape, may be x):
//   inclusive   out[b, i] = x[b, 0] + .. + x[b, i]
//   exclusive   out[b, i] = x[b, 0] + .. + x[b, i - 1]
// A sum that leaves the type's range is an error.
void inclusive_cumsum(ConstTensorView x_BN, TensorView out_BN, Backend backend = Backend::kAuto);
void exclusive_cumsum(ConstTensorView x_BN, TensorView out_BN, Backend backend = Backend::kAuto);

// padded[e + 1] = padded[e] + (offsets[e + 1] - offsets[e] rounded up to a multiple of block_size):
// each bin starts at a block; empty bins stay empty.
void padded_offsets(ConstTensorView offsets_E1, std::int64_t block_size, TensorView padded_E1,
                    Backend backend = Backend::kAuto);

// The tiles of at most tile_rows rows that cover all bins, none across two of them. Row i of
// tiles_N3 (int32 [tiles, 3]) is {bin, first row, number of rows}, by bin, then row. What a kernel
// over padded or ragged rows takes for its grid; the block-sparse form is expert_topology
// (block_sparse.h).
std::int64_t tile_table_size(ConstTensorView offsets_E1, std::int64_t tile_rows);
void tile_table(ConstTensorView offsets_E1, std::int64_t tile_rows, TensorView tiles_N3,
                Backend backend = Backend::kAuto);

// out[b, i] = x[b, e] for i in [offsets[e], offsets[e + 1]). x: fp32, fp64, bf16 or fp16; out alike.
void replicate(ConstTensorView x_BE, ConstTensorView offsets_E1, TensorView out_BN,
               Backend backend = Backend::kAuto);

// d_x[b, e] = sum over i of e of d_out[b, i], in the order of i, in fp32 (fp64 for fp64); 0 for an
// empty bin.
void replicate_backward(ConstTensorView d_out_BN, ConstTensorView offsets_E1, TensorView d_x_BE,
                        Backend backend = Backend::kAuto);

}  // namespace dropless
