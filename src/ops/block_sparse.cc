// Products of block_sparse.h: checks, then the kernel.
#include "dropless/block_sparse.h"

#include "src/common/check.h"
#include "src/cpu/kernels.h"
#include "src/cuda/kernels.h"
#include "src/ops/expect.h"
#include "src/ops/expect_topology.h"

namespace dropless {
namespace {

const std::int32_t* int32s(const ConstTensorView& view) {
  return static_cast<const std::int32_t*>(view.data);
}

// A matrix of the given shape or, as stored, its transpose.
void expect_matrix(const char* op, const char* name, const ConstTensorView& view, bool transpose,
                   std::int64_t rows, std::int64_t cols, DType dtype, Device device) {
  if (transpose) {
    expect_tensor(op, name, view, {{cols, rows}, dtype}, device);
  } else {
    expect_tensor(op, name, view, {{rows, cols}, dtype}, device);
  }
}

void expect_data(const char* op, const char* name, const ConstTensorView& view,
                 const BlockTopology& t, DType dtype, Device device) {
  const std::int64_t S = t.block_size;
  expect_tensor(op, name, view, {{expect_blocks(op, t), S, S}, dtype}, device);
}

// On a GPU: what its kernels take, `side` being the dense side of the product.
void expect_gpu_product(const char* op, const BlockTopology& t, std::int64_t side,
                        const ConstTensorView& dense, std::initializer_list<const void*> pointers,
                        Backend backend) {
  expect_device(op, dense.device, backend);
  DROPLESS_CHECK_KIND(
      ErrorKind::kUnsupported, dense.dtype == DType::kBFloat16 || dense.dtype == DType::kFloat16,
      concat(op, ": the GPU kernels take bfloat16 and float16, not ", dtype_name(dense.dtype)));
  DROPLESS_CHECK_KIND(ErrorKind::kUnsupported, t.block_size == 128,
                      concat(op, ": the GPU kernels take blocks of 128, not ", t.block_size));
  DROPLESS_CHECK_KIND(
      ErrorKind::kUnsupported, side % 8 == 0,
      concat(op, ": the GPU kernels need dense sides that are multiples of 8, not ", side));
  for (const void* pointer : pointers) {
    DROPLESS_CHECK(reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0,
                   concat(op, ": a tensor is at ", pointer, ", not aligned to 16 bytes"));
  }
}

// The walk along the output's block rows (dsd) or columns (dds).
cpu::BlockWalk walk_of(const BlockTopology& t, bool by_column) {
  if (by_column) {
    return {block_columns(t), int32s(t.offsets_t), int32s(t.column_indices_t),
            int32s(t.block_offsets_t)};
  }
  return {block_rows(t), int32s(t.offsets), int32s(t.column_indices), nullptr};
}

struct SparseOperand {
  const char* name;
  const ConstTensorView& data;
  bool transpose;
  const BlockTopology& topology;
};

struct DenseOperand {
  const char* name;
  const ConstTensorView& view;
  bool transpose;
};

// dsd: out [M, N] = op(sparse) [M, K] op(dense) [K, N]; dds: out [M, N] = op(dense) op(sparse).
void sparse_dense(const char* op, bool sparse_is_a, const SparseOperand& sparse,
                  const DenseOperand& dense, const TensorView& out, void* workspace,
                  std::size_t workspace_bytes, Backend backend, Stream stream) {
  const ConstTensorView& view = dense.view;
  const BlockTopology& topology = sparse.topology;
  const DType dtype = view.dtype;
  // The walk goes along out's block rows (dsd) or columns (dds).
  const bool by_column = sparse.transpose == sparse_is_a;
  expect_floating(op, dense.name, view, 2);
  check_row_walk(op, topology, view.device);
  if (by_column) check_column_walk(op, topology, view.device);
  const std::int64_t side = by_column ? topology.cols : topology.rows;
  const std::int64_t K = by_column ? topology.rows : topology.cols;
  const std::int64_t size = view.shape[dense.transpose == sparse_is_a ? 0 : 1];
  const std::int64_t M = sparse_is_a ? side : size, N = sparse_is_a ? size : side;
  expect_data(op, sparse.name, sparse.data, topology, dtype, view.device);
  expect_matrix(op, dense.name, view, dense.transpose, sparse_is_a ? K : M, sparse_is_a ? N : K,
                dtype, view.device);
  expect_tensor(op, "out", out, {{M, N}, dtype}, view.device);
  if (on_gpu(view.device)) {
    expect_gpu_product(op, topology, size, view, {view.data, sparse.data.data, out.data}, backend);
    expect_workspace(op, workspace, workspace_bytes, block_sparse_workspace_bytes(topology));
    const cuda::CurrentDevice current(view.device.index);
    if (sparse_is_a) {
      cuda::dsd(sparse.data, sparse.transpose, topology, view, dense.transpose, out, workspace,
                workspace_bytes, stream);
    } else {
      cuda::dds(view, dense.transpose, sparse.data, sparse.transpose, topology, out, workspace,
                workspace_bytes, stream);
    }
    return;
  }
  expect_workspace(op, workspace, workspace_bytes, cpu::kGemmSlotBytes);
  const cpu::KernelTable& kernels = cpu::kernels(backend);
  (sparse_is_a ? kernels.dsd : kernels.dds)({.dtype = dtype,
                                             .block_size = topology.block_size,
                                             .walk = walk_of(topology, by_column),
                                             .data = sparse.data.data,
                                             .transpose_blocks = sparse.transpose,
                                             .dense = view.data,
                                             .transpose_dense = dense.transpose,
                                             .dense_size = size,
                                             .depth = K,
                                             .out = out.data,
                                             .workspace = workspace,
                                             .workspace_bytes = workspace_bytes});
}

}  // namespace

std::size_t block_sparse_workspace_bytes() { return cpu::max_threads() * cpu::kGemmSlotBytes; }

std::size_t block_sparse_workspace_bytes(const BlockTopology& topology, std::int64_t dense_size) {
  const char* op = "block_sparse_workspace_bytes";
  DROPLESS_CHECK(dense_size >= 0, concat(op, ": dense_size is ", dense_size), "0 or more");
  if (!on_gpu(topology.row_indices.device)) return block_sparse_workspace_bytes();
  expect_block_size(op, topology.block_size);
  const cuda::CurrentDevice current(topology.row_indices.device.index);
  return cuda::block_sparse_workspace_bytes(block_rows(topology), block_columns(topology),
                                            expect_blocks(op, topology), dense_size);
}

void sdd(ConstTensorView a, bool transpose_a, ConstTensorView b, bool transpose_b,
         const BlockTopology& topology, TensorView out_data, void* workspace,
         std::size_t workspace_bytes, Backend backend, Stream stream) {
  const char* op = "sdd";
  expect_floating(op, "a", a, 2);
  check_row_walk(op, topology, a.device);
  const std::int64_t K = a.shape[transpose_a ? 0 : 1];
  expect_matrix(op, "a", a, transpose_a, topology.rows, K, a.dtype, a.device);
  expect_matrix(op, "b", b, transpose_b, K, topology.cols, a.dtype, a.device);
  expect_data(op, "out_data", out_data, topology, a.dtype, a.device);
  if (on_gpu(a.device)) {
    expect_gpu_product(op, topology, K, a, {a.data, b.data, out_data.data}, backend);
    expect_workspace(op, workspace, workspace_bytes, block_sparse_workspace_bytes(topology));
    const cuda::CurrentDevice current(a.device.index);
    cuda::sdd(a, transpose_a, b, transpose_b, topology, out_data, workspace, stream);
    return;
  }
  expect_workspace(op, workspace, workspace_bytes, cpu::kGemmSlotBytes);
  cpu::kernels(backend).sdd({.dtype = a.dtype,
                             .block_size = topology.block_size,
                             .blocks = expect_blocks(op, topology),
                             .rows = topology.rows,
                             .cols = topology.cols,
                             .depth = K,
                             .row_indices = int32s(topology.row_indices),
                             .column_indices = int32s(topology.column_indices),
                             .a = a.data,
                             .transpose_a = transpose_a,
                             .b = b.data,
                             .transpose_b = transpose_b,
                             .out = out_data.data,
                             .workspace = workspace,
                             .workspace_bytes = workspace_bytes});
}

void dsd(ConstTensorView a_data, bool transpose_a, const BlockTopology& a_topology,
         ConstTensorView b, bool transpose_b, TensorView out, void* workspace,
         std::size_t workspace_bytes, Backend backend, Stream stream) {
  sparse_dense("dsd", true, {"a_data", a_data, transpose_a, a_topology}, {"b", b, transpose_b}, out,
               workspace, workspace_bytes, backend, stream);
}

void dds(ConstTensorView a, bool transpose_a, ConstTensorView b_data, bool transpose_b,
         const BlockTopology& b_topology, TensorView out, void* workspace,
         std::size_t workspace_bytes, Backend backend, Stream stream) {
  sparse_dense("dds", false, {"b_data", b_data, transpose_b, b_topology}, {"a", a, transpose_a},
               out, workspace, workspace_bytes, backend, stream);
}

}  // namespace dropless
