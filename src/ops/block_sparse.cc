// block_sparse.h: checks, then the CPU kernel.
#include "dropless/block_sparse.h"

#include <limits>

#include "src/common/check.h"
#include "src/common/math.h"
#include "src/cpu/kernels.h"
#include "src/ops/expect.h"

namespace dropless {
namespace {

constexpr std::int64_t kMaxBlockSize = 128;
constexpr const char* kOrderHint = "number the blocks by row, then column, each position once";

const std::int32_t* int32s(const ConstTensorView& view) {
  return static_cast<const std::int32_t*>(view.data);
}

void check_block_size(const char* op, std::int64_t block_size) {
  DROPLESS_CHECK(block_size >= 1 && block_size <= kMaxBlockSize,
                 concat(op, ": block_size is ", block_size, ", expected 1 to ", kMaxBlockSize));
}

// The sides, as multiples of block_size.
void check_sides(const char* op, const BlockTopology& t) {
  check_block_size(op, t.block_size);
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  for (std::int64_t side : {t.rows, t.cols}) {
    DROPLESS_CHECK(side >= 0 && side % t.block_size == 0 && side / t.block_size < most,
                   concat(op, ": the topology is of ", t.rows, " x ", t.cols,
                          " elements, expected multiples of block_size ", t.block_size),
                   "pad the rows and columns to whole blocks");
  }
}

std::int64_t block_rows(const BlockTopology& t) { return t.rows / t.block_size; }
std::int64_t block_cols(const BlockTopology& t) { return t.cols / t.block_size; }

// The number of blocks, out of row_indices.
std::int64_t count_blocks(const char* op, const BlockTopology& t) {
  DROPLESS_CHECK(
      t.row_indices.rank == 1 && t.row_indices.shape[0] <= std::numeric_limits<std::int32_t>::max(),
      concat(op, ": row_indices is ", describe(t.row_indices),
             ", expected [blocks] int32, fewer than 2^31"));
  return t.row_indices.shape[0];
}

// One way through the blocks: by block row, or by block column.
struct Walk {
  const char *indices_name, *offsets_name, *line_name, *other_name;
  const ConstTensorView indices, offsets;
  std::int64_t lines, others;  // block rows and columns, or columns and rows
};

Walk row_walk(const BlockTopology& t) {
  return {"column_indices", "offsets", "block row",   "block columns",
          t.column_indices, t.offsets, block_rows(t), block_cols(t)};
}
Walk column_walk(const BlockTopology& t) {
  return {"column_indices_t", "offsets_t", "block column", "block rows",
          t.column_indices_t, t.offsets_t, block_cols(t),  block_rows(t)};
}

void expect_walk(const char* op, const Walk& walk, std::int64_t blocks, Device device) {
  expect_tensor(op, walk.indices_name, walk.indices, {{blocks}, DType::kInt32}, device);
  expect_tensor(op, walk.offsets_name, walk.offsets, {{walk.lines + 1}, DType::kInt32}, device);
}

// Offsets that cover all blocks, and within a line indices that increase; check_entry(line, n) after
// the walk's own checks of entry n.
template <class CheckEntry>
void check_walk(const char* op, const Walk& walk, std::int64_t blocks, const char* hint,
                CheckEntry&& check_entry) {
  const std::int32_t *offsets = int32s(walk.offsets), *indices = int32s(walk.indices);
  DROPLESS_CHECK(offsets[0] == 0 && offsets[walk.lines] == blocks,
                 concat(op, ": ", walk.offsets_name, " run from ", offsets[0], " to ",
                        offsets[walk.lines], ", expected from 0 to the ", blocks, " blocks"));
  for (std::int64_t l = 0; l < walk.lines; ++l) {
    DROPLESS_CHECK(offsets[l] <= offsets[l + 1],
                   concat(op, ": ", walk.offsets_name, " decrease from ", offsets[l], " to ",
                          offsets[l + 1], " at line ", l));
  }
  for (std::int64_t l = 0; l < walk.lines; ++l) {
    for (std::int64_t n = offsets[l]; n < offsets[l + 1]; ++n) {
      check_entry(l, n);
      DROPLESS_CHECK(indices[n] >= 0 && indices[n] < walk.others,
                     concat(op, ": ", walk.indices_name, "[", n, "] is ", indices[n],
                            ", outside of the ", walk.others, " ", walk.other_name));
      DROPLESS_CHECK(n == offsets[l] || indices[n - 1] < indices[n],
                     concat(op, ": ", walk.indices_name, "[", n, "] is ", indices[n], " after ",
                            indices[n - 1], " in ", walk.line_name, " ", l),
                     hint);
    }
  }
}

void expect_row_walk(const char* op, const BlockTopology& t, Device device) {
  const std::int64_t blocks = count_blocks(op, t);
  expect_tensor(op, "row_indices", t.row_indices, {{blocks}, DType::kInt32}, device);
  expect_walk(op, row_walk(t), blocks, device);
}

void expect_column_walk(const char* op, const BlockTopology& t, Device device) {
  const std::int64_t blocks = count_blocks(op, t);
  expect_walk(op, column_walk(t), blocks, device);
  expect_tensor(op, "block_offsets_t", t.block_offsets_t, {{blocks}, DType::kInt32}, device);
}

// Shapes and every entry of the row walk.
void check_row_walk(const char* op, const BlockTopology& t, Device device) {
  check_sides(op, t);
  expect_row_walk(op, t, device);
  const std::int32_t* rows = int32s(t.row_indices);
  check_walk(op, row_walk(t), count_blocks(op, t), kOrderHint, [&](std::int64_t i, std::int64_t n) {
    DROPLESS_CHECK(rows[n] == i, concat(op, ": row_indices[", n, "] is ", rows[n],
                                        ", but offsets put block ", n, " into block row ", i));
  });
}

// Shapes and every entry of the column walk against the row walk, which has been checked.
void check_column_walk(const char* op, const BlockTopology& t, Device device) {
  DROPLESS_CHECK(t.offsets_t,
                 concat(op, ": the topology has no column walk, which this product needs"),
                 "call transpose_topology first");
  expect_column_walk(op, t, device);
  const std::int64_t blocks = count_blocks(op, t);
  const std::int32_t *rows = int32s(t.column_indices_t), *numbers = int32s(t.block_offsets_t);
  const char* hint = "call transpose_topology after a change of the topology";
  check_walk(op, column_walk(t), blocks, hint, [&](std::int64_t j, std::int64_t n) {
    const std::int32_t block = numbers[n];
    DROPLESS_CHECK(block >= 0 && block < blocks, concat(op, ": block_offsets_t[", n, "] is ", block,
                                                        ", outside of the ", blocks, " blocks"));
    const std::int32_t row = int32s(t.row_indices)[block], column = int32s(t.column_indices)[block];
    DROPLESS_CHECK(rows[n] == row && column == j,
                   concat(op, ": entry ", n, " of the column walk puts block ", block, " at (",
                          rows[n], ", ", j, "), but it stands at (", row, ", ", column, ")"),
                   hint);
  });
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
  expect_tensor(op, name, view, {{count_blocks(op, t), S, S}, dtype}, device);
}

// The walk along the output's block rows (dsd) or columns (dds).
cpu::BlockWalk walk_of(const BlockTopology& t, bool by_column) {
  if (by_column) {
    return {block_cols(t), int32s(t.offsets_t), int32s(t.column_indices_t),
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
                  std::size_t workspace_bytes, Backend backend) {
  const ConstTensorView& view = dense.view;
  const BlockTopology& topology = sparse.topology;
  const DType dtype = view.dtype;
  // The walk goes along out's block rows (dsd) or columns (dds).
  const bool by_column = sparse.transpose == sparse_is_a;
  expect_floating(op, dense.name, view, 2);
  expect_cpu(op, view);
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

void check_experts(const char* op, const ConstTensorView& offsets_E1, std::int64_t d_ffn,
                   std::int64_t block_size) {
  check_block_size(op, block_size);
  expect_cpu(op, offsets_E1);
  const std::int64_t E = expect_group_offsets(op, offsets_E1);
  expect_offsets(op, offsets_E1, static_cast<const std::int64_t*>(offsets_E1.data)[E]);
  DROPLESS_CHECK(
      d_ffn >= 0 && d_ffn % block_size == 0,
      concat(op, ": d_ffn is ", d_ffn, ", expected a multiple of block_size ", block_size));
}

}  // namespace

ExpertTopologySize expert_topology_size(ConstTensorView offsets_E1, std::int64_t d_ffn,
                                        std::int64_t block_size) {
  const char* op = "expert_topology";
  check_experts(op, offsets_E1, d_ffn, block_size);
  const std::int64_t E = offsets_E1.shape[0] - 1, columns = d_ffn / block_size;
  const auto* offsets = static_cast<const std::int64_t*>(offsets_E1.data);
  std::int64_t rows = 0;
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  for (std::int64_t e = 0; e < E; ++e) {
    // Not by ceil_div: a size near 2^63 must not overflow.
    const std::int64_t size = offsets[e + 1] - offsets[e];
    rows += size / block_size + (size % block_size > 0);
    DROPLESS_CHECK(rows < most && (columns == 0 || (rows <= most / columns && E <= most / columns)),
                   concat(op, ": the ", rows, " block rows of ", e + 1, " experts by ", columns,
                          " block columns each reach 2^31 blocks"),
                   "split the batch");
  }
  return {rows * block_size, E * d_ffn, rows * columns};
}

void expert_topology(ConstTensorView offsets_E1, std::int64_t d_ffn, TensorView padded_offsets_E1,
                     const BlockTopology& topology, Backend backend) {
  const char* op = "expert_topology";
  const ExpertTopologySize size = expert_topology_size(offsets_E1, d_ffn, topology.block_size);
  const std::int64_t E = offsets_E1.shape[0] - 1;
  DROPLESS_CHECK(topology.rows == size.rows && topology.cols == size.cols &&
                     count_blocks(op, topology) == size.blocks,
                 concat(op, ": the topology is of ", topology.rows, " x ", topology.cols,
                        " elements in ", count_blocks(op, topology), " blocks, expected ",
                        size.rows, " x ", size.cols, " in ", size.blocks),
                 "take the sizes from expert_topology_size");
  expect_row_walk(op, topology, offsets_E1.device);
  expect_tensor(op, "padded_offsets_E1", padded_offsets_E1, {{E + 1}, DType::kInt64},
                offsets_E1.device);
  cpu::kernels(backend).expert_topology(
      {.experts = E,
       .block_size = topology.block_size,
       .blocks_per_row = d_ffn / topology.block_size,
       .offsets_E1 = static_cast<const std::int64_t*>(offsets_E1.data),
       .padded_offsets_E1 = static_cast<std::int64_t*>(padded_offsets_E1.data),
       .row_indices = static_cast<std::int32_t*>(topology.row_indices.data),
       .column_indices = static_cast<std::int32_t*>(topology.column_indices.data),
       .offsets = static_cast<std::int32_t*>(topology.offsets.data)});
}

void transpose_topology(const BlockTopology& topology, Backend backend) {
  const char* op = "transpose_topology";
  expect_cpu(op, topology.row_indices);
  const Device device = topology.row_indices.device;
  check_row_walk(op, topology, device);
  expect_column_walk(op, topology, device);
  cpu::kernels(backend).transpose_topology(
      {.blocks = count_blocks(op, topology),
       .columns = block_cols(topology),
       .row_indices = int32s(topology.row_indices),
       .column_indices = int32s(topology.column_indices),
       .column_indices_t = static_cast<std::int32_t*>(topology.column_indices_t.data),
       .offsets_t = static_cast<std::int32_t*>(topology.offsets_t.data),
       .block_offsets_t = static_cast<std::int32_t*>(topology.block_offsets_t.data)});
}

std::size_t block_sparse_workspace_bytes() { return cpu::max_threads() * cpu::kGemmSlotBytes; }

void sdd(ConstTensorView a, bool transpose_a, ConstTensorView b, bool transpose_b,
         const BlockTopology& topology, TensorView out_data, void* workspace,
         std::size_t workspace_bytes, Backend backend) {
  const char* op = "sdd";
  expect_floating(op, "a", a, 2);
  expect_cpu(op, a);
  check_row_walk(op, topology, a.device);
  const std::int64_t K = a.shape[transpose_a ? 0 : 1];
  expect_matrix(op, "a", a, transpose_a, topology.rows, K, a.dtype, a.device);
  expect_matrix(op, "b", b, transpose_b, K, topology.cols, a.dtype, a.device);
  expect_data(op, "out_data", out_data, topology, a.dtype, a.device);
  expect_workspace(op, workspace, workspace_bytes, cpu::kGemmSlotBytes);
  cpu::kernels(backend).sdd({.dtype = a.dtype,
                             .block_size = topology.block_size,
                             .blocks = count_blocks(op, topology),
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
         std::size_t workspace_bytes, Backend backend) {
  sparse_dense("dsd", true, {"a_data", a_data, transpose_a, a_topology}, {"b", b, transpose_b}, out,
               workspace, workspace_bytes, backend);
}

void dds(ConstTensorView a, bool transpose_a, ConstTensorView b_data, bool transpose_b,
         const BlockTopology& b_topology, TensorView out, void* workspace,
         std::size_t workspace_bytes, Backend backend) {
  sparse_dense("dds", false, {"b_data", b_data, transpose_b, b_topology}, {"a", a, transpose_a},
               out, workspace, workspace_bytes, backend);
}

}  // namespace dropless
