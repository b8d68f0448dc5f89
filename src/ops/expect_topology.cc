// The contract is expect_topology.h.
#include "src/ops/expect_topology.h"

#include <limits>

#include "src/common/check.h"
#include "src/cuda/kernels.h"
#include "src/ops/expect.h"

namespace dropless {
namespace {

constexpr std::int64_t kMaxBlockSize = 128;
constexpr const char* kOrderHint = "number the blocks by row, then column, each position once";

const std::int32_t* int32s(const ConstTensorView& view) {
  return static_cast<const std::int32_t*>(view.data);
}

// The sides, as multiples of block_size.
void check_sides(const char* op, const BlockTopology& t) {
  expect_block_size(op, t.block_size);
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  for (std::int64_t side : {t.rows, t.cols}) {
    DROPLESS_CHECK(side >= 0 && side % t.block_size == 0 && side / t.block_size < most,
                   concat(op, ": the topology is of ", t.rows, " x ", t.cols,
                          " elements, expected multiples of block_size ", t.block_size),
                   "pad the rows and columns to whole blocks");
  }
}

// One way through the blocks: by block row, or by block column.
struct Walk {
  const char *indices_name, *offsets_name, *line_name, *other_name;
  const ConstTensorView indices, offsets;
  std::int64_t lines, others;  // block rows and columns, or columns and rows
};

Walk row_walk(const BlockTopology& t) {
  return {"column_indices", "offsets", "block row",   "block columns",
          t.column_indices, t.offsets, block_rows(t), block_columns(t)};
}
Walk column_walk(const BlockTopology& t) {
  return {"column_indices_t", "offsets_t", "block column",   "block rows",
          t.column_indices_t, t.offsets_t, block_columns(t), block_rows(t)};
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

}  // namespace

void expect_block_size(const char* op, std::int64_t block_size) {
  DROPLESS_CHECK(block_size >= 1 && block_size <= kMaxBlockSize,
                 concat(op, ": block_size is ", block_size, ", expected 1 to ", kMaxBlockSize));
}

std::int64_t expect_blocks(const char* op, const BlockTopology& t) {
  DROPLESS_CHECK(
      t.row_indices.rank == 1 && t.row_indices.shape[0] <= std::numeric_limits<std::int32_t>::max(),
      concat(op, ": row_indices is ", describe(t.row_indices),
             ", expected [blocks] int32, fewer than 2^31"));
  return t.row_indices.shape[0];
}

std::int64_t block_rows(const BlockTopology& t) { return t.rows / t.block_size; }
std::int64_t block_columns(const BlockTopology& t) { return t.cols / t.block_size; }

void expect_row_walk(const char* op, const BlockTopology& t, Device device) {
  const std::int64_t blocks = expect_blocks(op, t);
  expect_tensor(op, "row_indices", t.row_indices, {{blocks}, DType::kInt32}, device);
  expect_walk(op, row_walk(t), blocks, device);
}

void expect_column_walk(const char* op, const BlockTopology& t, Device device) {
  const std::int64_t blocks = expect_blocks(op, t);
  expect_walk(op, column_walk(t), blocks, device);
  expect_tensor(op, "block_offsets_t", t.block_offsets_t, {{blocks}, DType::kInt32}, device);
}

void check_row_walk(const char* op, const BlockTopology& t, Device device) {
  check_sides(op, t);
  expect_row_walk(op, t, device);
  if (on_gpu(device)) return;
  const std::int32_t* rows = int32s(t.row_indices);
  check_walk(
      op, row_walk(t), expect_blocks(op, t), kOrderHint, [&](std::int64_t i, std::int64_t n) {
        DROPLESS_CHECK(rows[n] == i, concat(op, ": row_indices[", n, "] is ", rows[n],
                                            ", but offsets put block ", n, " into block row ", i));
      });
}

void check_column_walk(const char* op, const BlockTopology& t, Device device) {
  DROPLESS_CHECK(t.offsets_t,
                 concat(op, ": the topology has no column walk, which this product needs"),
                 "call transpose_topology first");
  expect_column_walk(op, t, device);
  if (on_gpu(device)) return;
  const std::int64_t blocks = expect_blocks(op, t);
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

void expect_device(const char* op, Device device, Backend backend) {
  if (!on_gpu(device)) return;
  std::string problem = backend == Backend::kReference
                            ? "the reference backend runs on the CPU only"
                            : cuda::device_problem(device.index);
  if (problem.empty() && cuda::portable_path(device.index)) {
    problem = "block-sparse products on a GPU need compute capability 9.0 (H100, H200)";
  }
  DROPLESS_CHECK_KIND(ErrorKind::kUnsupported, problem.empty(), concat(op, ": ", problem));
}

}  // namespace dropless
