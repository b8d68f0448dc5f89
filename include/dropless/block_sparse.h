// Products with a block-sparse matrix: only the blocks of a topology are stored and computed.
//
//   sdd   out = op(A) op(B)    dense x dense -> sparse: the blocks of the topology alone
//   dsd   out = op(A) op(B)    A sparse, B dense -> dense
//   dds   out = op(A) op(B)    A dense, B sparse -> dense
//
// op(X) is X or, with transpose_x, X^T: read by index, never copied. Blocks outside of the topology
// count as zero; where a whole block row (dsd) or block column (dds) has none, out is exactly zero.
// With dropless experts as block rows and columns these are the products of MegaBlocks (Gale et al.
// 2022, arXiv:2211.15841): up = sdd, down = dsd, and the gradients
//
//   out = sdd(A, B):   d_A = dsd(d_out, B^T)    d_B = dds(A^T, d_out)
//   out = dsd(S, B):   d_S = sdd(d_out, B^T)    d_B = dsd(S^T, d_out)
//   out = dds(A, S):   d_A = dds(d_out, S^T)    d_S = sdd(A^T, d_out)
//
// Shapes: a sparse matrix of M x N elements is a BlockTopology with `data` [blocks, S, S], block n
// row-major, S = block_size. Dense matrices are given as they are stored: [M, K], transposed [K, M].
// All floating tensors have one dtype: fp32 and fp64 are summed in themselves, bf16 and fp16 in fp32
// and rounded once. All contiguous. Every sum runs in the order of its index, so that results do
// not depend on the number of threads. Throws Error(kInvalidArgument) naming the tensor and the
// shapes, or the first entry of the topology that is wrong.
//
// On a GPU (compute capability 9.0) the tensors are bf16 or fp16, blocks are 128 x 128 and the dense
// sides multiples of 8; the topology lies on the GPU too. A call only queues work on the given
// stream: it never waits and can be captured into a CUDA graph, between whose runs the topology may
// change. Nobody looks at the topology's entries there: they must be right. A topology may have room
// for more blocks than there are: what lies past the last of `offsets` is left alone. Results are the
// same from run to run. Throws Error(kUnsupported) for other types and sizes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dropless/backend.h"
#include "dropless/view.h"

namespace dropless {

// Where the blocks stand: the hybrid of blocked CSR and COO of MegaBlocks' stk. Blocks are numbered
// by row, then column, each position at most once. The column walk lists the same blocks by column,
// then row; it may be absent where no product needs it: only dsd with transpose_a and dds without
// transpose_b do. All int32, on the tensors' device (stk: int16 indices).
struct BlockTopology {
  std::int64_t rows = 0, cols = 0;  // elements: multiples of block_size
  std::int64_t block_size = 128;    // 1 to 128; the fast loops are made for 128

  TensorView row_indices;     // [blocks]  block row of each block
  TensorView column_indices;  // [blocks]  block column of each block
  TensorView offsets;  // [rows / S + 1]  block row i has the blocks offsets[i] .. offsets[i + 1]

  TensorView column_indices_t = {};  // [blocks]  block row of each entry of the column walk
  TensorView offsets_t = {};  // [cols / S + 1]  block column j has the entries offsets_t[j] ..
  TensorView block_offsets_t = {};  // [blocks]  the number of each entry's block
};

// Sizes of expert_topology's result.
struct ExpertTopologySize {
  std::int64_t rows, cols, blocks;
};

// Experts of d_ffn columns (a multiple of block_size) whose rows are offsets_E1 (int64 [E + 1], as
// of dispatch_order), each padded to whole blocks.
ExpertTopologySize expert_topology_size(ConstTensorView offsets_E1, std::int64_t d_ffn,
                                        std::int64_t block_size = 128);

// No `rows` routed rows need more than this, however they fall to the experts: what a topology on a
// GPU is given room for, since there the offsets are not known to the host.
ExpertTopologySize expert_topology_bound(std::int64_t rows, std::int64_t num_experts,
                                         std::int64_t d_ffn, std::int64_t block_size = 128);

// The block-diagonal topology of these experts: expert e has the rows padded_offsets_E1[e] ..
// padded_offsets_E1[e + 1] and the columns e * d_ffn .. (e + 1) * d_ffn. Writes padded_offsets_E1
// (int64 [E + 1]) and row_indices, column_indices and offsets of `topology`, whose sizes are those
// of expert_topology_size; on a GPU those of expert_topology_bound: block rows past the last
// expert's have no blocks.
void expert_topology(ConstTensorView offsets_E1, std::int64_t d_ffn, TensorView padded_offsets_E1,
                     const BlockTopology& topology, Backend backend = Backend::kAuto,
                     Stream stream = nullptr);

// Writes the column walk: column_indices_t, offsets_t and block_offsets_t of `topology`.
void transpose_topology(const BlockTopology& topology, Backend backend = Backend::kAuto,
                        Stream stream = nullptr);

// On the CPU: bytes for all OpenMP threads that a parallel region started now would use. A smaller
// workspace is accepted down to one thread's share; fewer threads then work.
std::size_t block_sparse_workspace_bytes();
// Of every product with a topology of this size, on the device of its row_indices. `dense_size`, out's
// columns in dsd and its rows in dds: with room for dsd and dds to cut the sums of few block lines into up
// to four parts where that keeps more of a GPU busy; at most four times out's elements in fp32 more. Less
// room means fewer parts, and last bits may differ. 0: no parts; right for a topology with much more room
// than blocks, whose parts would be short. The CPU has none. Throws for a negative one.
std::size_t block_sparse_workspace_bytes(const BlockTopology& topology,
                                         std::int64_t dense_size = 0);

void sdd(ConstTensorView a, bool transpose_a, ConstTensorView b, bool transpose_b,
         const BlockTopology& topology, TensorView out_data, void* workspace,
         std::size_t workspace_bytes, Backend backend = Backend::kAuto, Stream stream = nullptr);

void dsd(ConstTensorView a_data, bool transpose_a, const BlockTopology& a_topology,
         ConstTensorView b, bool transpose_b, TensorView out, void* workspace,
         std::size_t workspace_bytes, Backend backend = Backend::kAuto, Stream stream = nullptr);

void dds(ConstTensorView a, bool transpose_a, ConstTensorView b_data, bool transpose_b,
         const BlockTopology& b_topology, TensorView out, void* workspace,
         std::size_t workspace_bytes, Backend backend = Backend::kAuto, Stream stream = nullptr);

}  // namespace dropless
