// The entries of the block-sparse products; bf16.
#include "src/cuda/sm90_block_sparse.cuh"

#include "src/common/workspace.h"
#include "src/cuda/check.h"
#include "src/cuda/element.h"

namespace dropless::cuda {
namespace {

using sm90_block_sparse::int32s;

void clear(const TensorView& out, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(out.numel()) * dtype_bytes(out.dtype);
  DROPLESS_CUDA_CHECK(cudaMemsetAsync(out.data, 0, bytes, stream));
}

// dds is dsd of the transposed product: out^T = op(b)^T op(a)^T.
void sparse_dense(bool sparse_is_a, const ConstTensorView& data, bool transpose_blocks,
                  const BlockTopology& t, const ConstTensorView& dense, bool transpose_dense,
                  const TensorView& out, void* workspace, std::size_t workspace_bytes,
                  Stream stream) {
  auto* queue = static_cast<cudaStream_t>(stream);
  if (out.numel() == 0) return;
  if (data.numel() == 0) return clear(out, queue);
  const bool by_column = transpose_blocks == sparse_is_a;
  const std::int64_t lines = out.shape[sparse_is_a ? 0 : 1] / kBlock;
  const std::int64_t dense_size = out.shape[sparse_is_a ? 1 : 0];
  const std::int64_t blocks = data.shape[0];
  const std::size_t least = block_sparse_workspace_bytes(t.rows / kBlock, t.cols / kBlock, blocks);
  WorkspaceCarver carver(workspace, workspace_bytes);
  carver.take_bytes(least);
  const WalkParts parts = carve_walk_parts(carver, lines, dense_size, blocks, carver.left());
  const sm90_block_sparse::SparseDense x{
      .data = data,
      .dense = dense,
      .data_is_mn = by_column,
      .dense_is_mn = transpose_dense != sparse_is_a,
      .transposed = !sparse_is_a,
      .lines = lines,
      .dense_size = dense_size,
      .depth = by_column ? t.rows : t.cols,
      .offsets = int32s(by_column ? t.offsets_t : t.offsets),
      .indices = int32s(by_column ? t.column_indices_t : t.column_indices),
      .blocks = by_column ? int32s(t.block_offsets_t) : nullptr,
      .parts = parts,
      .out = out,
      .workspace = workspace,
      .stream = queue};
  for_16_bit(out.dtype, sparse_is_a ? "dsd" : "dds",
             [&](auto element) { sm90_block_sparse::run<decltype(element)>(x); });
}

}  // namespace

void sdd(ConstTensorView a, bool transpose_a, ConstTensorView b, bool transpose_b,
         const BlockTopology& topology, TensorView out_data, void* workspace, Stream stream) {
  auto* queue = static_cast<cudaStream_t>(stream);
  const std::int64_t depth = a.shape[transpose_a ? 0 : 1];
  if (out_data.numel() == 0) return;
  if (depth == 0) return clear(out_data, queue);
  const sm90_block_sparse::Sdd x{.a = a,
                                 .b = b,
                                 .a_is_mn = transpose_a,
                                 .b_is_mn = !transpose_b,
                                 .depth = depth,
                                 .topology = topology,
                                 .out = out_data,
                                 .workspace = workspace,
                                 .stream = queue};
  for_16_bit(out_data.dtype, "sdd",
             [&](auto element) { sm90_block_sparse::run<decltype(element)>(x); });
}

void dsd(ConstTensorView a_data, bool transpose_a, const BlockTopology& a_topology,
         ConstTensorView b, bool transpose_b, TensorView out, void* workspace,
         std::size_t workspace_bytes, Stream stream) {
  sparse_dense(true, a_data, transpose_a, a_topology, b, transpose_b, out, workspace,
               workspace_bytes, stream);
}

void dds(ConstTensorView a, bool transpose_a, ConstTensorView b_data, bool transpose_b,
         const BlockTopology& b_topology, TensorView out, void* workspace,
         std::size_t workspace_bytes, Stream stream) {
  sparse_dense(false, b_data, transpose_b, b_topology, a, transpose_a, out, workspace,
               workspace_bytes, stream);
}

}  // namespace dropless::cuda
