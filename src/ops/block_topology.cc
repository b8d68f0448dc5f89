// Topologies of block_sparse.h: their making and their column walk. Checks, then the kernel.
#include <algorithm>
#include <limits>

#include "dropless/block_sparse.h"
#include "src/common/check.h"
#include "src/common/math.h"
#include "src/cpu/kernels.h"
#include "src/cuda/kernels.h"
#include "src/ops/expect.h"
#include "src/ops/expect_topology.h"

namespace dropless {
namespace {

constexpr std::int64_t kMostBlocks = std::numeric_limits<std::int32_t>::max();

std::int32_t* int32s(const TensorView& view) { return static_cast<std::int32_t*>(view.data); }

void check_d_ffn(const char* op, std::int64_t d_ffn, std::int64_t block_size) {
  expect_block_size(op, block_size);
  DROPLESS_CHECK(
      d_ffn >= 0 && d_ffn % block_size == 0,
      concat(op, ": d_ffn is ", d_ffn, ", expected a multiple of block_size ", block_size));
}

// Experts whose offsets can be read here.
void check_experts(const char* op, const ConstTensorView& offsets_E1, std::int64_t d_ffn,
                   std::int64_t block_size) {
  expect_cpu(op, offsets_E1);
  const std::int64_t E = expect_group_offsets(op, offsets_E1);
  expect_offsets(op, offsets_E1, static_cast<const std::int64_t*>(offsets_E1.data)[E]);
  check_d_ffn(op, d_ffn, block_size);
}

}  // namespace

ExpertTopologySize expert_topology_size(ConstTensorView offsets_E1, std::int64_t d_ffn,
                                        std::int64_t block_size) {
  const char* op = "expert_topology";
  check_experts(op, offsets_E1, d_ffn, block_size);
  const std::int64_t E = offsets_E1.shape[0] - 1, columns = d_ffn / block_size;
  const auto* offsets = static_cast<const std::int64_t*>(offsets_E1.data);
  std::int64_t rows = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    // Not by ceil_div: a size near 2^63 must not overflow.
    const std::int64_t size = offsets[e + 1] - offsets[e];
    rows += size / block_size + (size % block_size > 0);
    DROPLESS_CHECK(rows < kMostBlocks && (columns == 0 || (rows <= kMostBlocks / columns &&
                                                           E <= kMostBlocks / columns)),
                   concat(op, ": the ", rows, " block rows of ", e + 1, " experts by ", columns,
                          " block columns each reach 2^31 blocks"),
                   "split the batch");
  }
  return {rows * block_size, E * d_ffn, rows * columns};
}

ExpertTopologySize expert_topology_bound(std::int64_t rows, std::int64_t num_experts,
                                         std::int64_t d_ffn, std::int64_t block_size) {
  const char* op = "expert_topology_bound";
  check_d_ffn(op, d_ffn, block_size);
  DROPLESS_CHECK(rows >= 0 && num_experts >= 1 && rows < kMostBlocks && num_experts < kMostBlocks,
                 concat(op, ": ", rows, " rows of ", num_experts, " experts"));
  // Each expert with rows has one block that is not full at most.
  const std::int64_t S = block_size, columns = d_ffn / S;
  const std::int64_t lines = rows / S + std::min(rows, num_experts);
  DROPLESS_CHECK(
      columns == 0 || (lines <= kMostBlocks / columns && num_experts <= kMostBlocks / columns),
      concat(op, ": ", lines, " block rows by ", columns, " block columns each reach 2^31 blocks"),
      "split the batch");
  return {lines * S, num_experts * d_ffn, lines * columns};
}

void expert_topology(ConstTensorView offsets_E1, std::int64_t d_ffn, TensorView padded_offsets_E1,
                     const BlockTopology& topology, Backend backend, Stream stream) {
  const char* op = "expert_topology";
  const Device device = offsets_E1.device;
  const std::int64_t S = topology.block_size;
  const bool gpu = on_gpu(device);
  if (gpu) check_d_ffn(op, d_ffn, S);
  const std::int64_t E = expect_group_offsets(op, offsets_E1);
  expect_bytes(op, "the experts' columns", {E, d_ffn});
  expect_bytes(op, "the topology", {topology.rows, d_ffn});
  // On a GPU the rows are whatever the caller gives room for.
  const ExpertTopologySize size =
      gpu ? ExpertTopologySize{topology.rows, E * d_ffn, topology.rows / S * (d_ffn / S)}
          : expert_topology_size(offsets_E1, d_ffn, S);
  const std::int64_t blocks = expect_blocks(op, topology);
  DROPLESS_CHECK(
      topology.rows == size.rows && topology.cols == size.cols && blocks == size.blocks,
      concat(op, ": the topology is of ", topology.rows, " x ", topology.cols, " elements in ",
             blocks, " blocks, expected ", size.rows, " x ", size.cols, " in ", size.blocks),
      gpu ? "take the sizes from expert_topology_bound"
          : "take the sizes from expert_topology_size");
  expect_row_walk(op, topology, device);
  expect_tensor(op, "padded_offsets_E1", padded_offsets_E1, {{E + 1}, DType::kInt64}, device);
  if (gpu) {
    expect_device(op, device, backend);
    const cuda::CurrentDevice current(device.index);
    cuda::expert_topology(static_cast<const std::int64_t*>(offsets_E1.data), E, d_ffn,
                          static_cast<std::int64_t*>(padded_offsets_E1.data), topology, stream);
    return;
  }
  cpu::kernels(backend).expert_topology(
      {.experts = E,
       .block_size = S,
       .blocks_per_row = d_ffn / S,
       .offsets_E1 = static_cast<const std::int64_t*>(offsets_E1.data),
       .padded_offsets_E1 = static_cast<std::int64_t*>(padded_offsets_E1.data),
       .row_indices = int32s(topology.row_indices),
       .column_indices = int32s(topology.column_indices),
       .offsets = int32s(topology.offsets)});
}

void transpose_topology(const BlockTopology& topology, Backend backend, Stream stream) {
  const char* op = "transpose_topology";
  const Device device = topology.row_indices.device;
  check_row_walk(op, topology, device);
  expect_column_walk(op, topology, device);
  if (on_gpu(device)) {
    expect_device(op, device, backend);
    const cuda::CurrentDevice current(device.index);
    cuda::transpose_topology(topology, stream);
    return;
  }
  cpu::kernels(backend).transpose_topology({.blocks = expect_blocks(op, topology),
                                            .columns = block_columns(topology),
                                            .row_indices = int32s(topology.row_indices),
                                            .column_indices = int32s(topology.column_indices),
                                            .column_indices_t = int32s(topology.column_indices_t),
                                            .offsets_t = int32s(topology.offsets_t),
                                            .block_offsets_t = int32s(topology.block_offsets_t)});
}

}  // namespace dropless
