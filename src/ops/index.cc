// index.h: checks, then the CPU kernels.
#include "dropless/index.h"

#include <limits>

#include "src/common/check.h"
#include "src/common/workspace.h"
#include "src/cpu/kernels.h"
#include "src/ops/expect.h"

namespace dropless {
namespace {

constexpr std::int64_t kMaxEntries = std::numeric_limits<std::int32_t>::max();

const std::int32_t* int32s(const ConstTensorView& view) {
  return static_cast<const std::int32_t*>(view.data);
}
const std::int64_t* int64s(const ConstTensorView& view) {
  return static_cast<const std::int64_t*>(view.data);
}

// A vector of int32 whose entries are bins.
std::int64_t check_bins(const char* op, const char* name, const ConstTensorView& view,
                        std::int64_t bins) {
  expect_cpu(op, view);
  DROPLESS_CHECK(view.rank == 1 && view.shape[0] <= kMaxEntries,
                 concat(op, ": ", name, " is ", describe(view), ", expected [N], N < 2^31"));
  expect_tensor(op, name, view, {{view.shape[0]}, DType::kInt32}, Device{});
  for (std::int64_t i = 0; i < view.shape[0]; ++i) {
    DROPLESS_CHECK(
        int32s(view)[i] >= 0 && int32s(view)[i] < bins,
        concat(op, ": ", name, "[", i, "] is ", int32s(view)[i], ", not one of ", bins, " bins"));
  }
  return view.shape[0];
}

struct SortBuffers {
  std::int32_t *rows_N, *partials;
  std::int64_t* offsets_E1;
};

SortBuffers carve(WorkspaceCarver& carver, std::int64_t entries, std::int64_t keys) {
  return {carver.take<std::int32_t>(entries),
          carver.take<std::int32_t>(cpu::kMaxTokenChunks * keys),
          carver.take<std::int64_t>(keys + 1)};
}

template <class Integer>
void check_sums(const char* op, const ConstTensorView& x_BN) {
  const std::int64_t B = x_BN.shape[0], N = x_BN.shape[1];
  const auto* x = static_cast<const Integer*>(x_BN.data);
  for (std::int64_t b = 0; b < B; ++b) {
    Integer sum = 0;
    for (std::int64_t i = 0; i < N; ++i) {
      DROPLESS_CHECK(!__builtin_add_overflow(sum, x[b * N + i], &sum),
                     concat(op, ": the sum of x_BN[", b, "] up to entry ", i, " does not fit ",
                            dtype_name(x_BN.dtype)));
    }
  }
}

void run_cumsum(const char* op, const ConstTensorView& x_BN, const TensorView& out_BN,
                bool inclusive, Backend backend) {
  expect_cpu(op, x_BN);
  DROPLESS_CHECK(x_BN.rank == 2 && (x_BN.dtype == DType::kInt32 || x_BN.dtype == DType::kInt64),
                 concat(op, ": x_BN is ", describe(x_BN), ", expected [B, N] of int32 or int64"));
  const Expected like_x{{x_BN.shape[0], x_BN.shape[1]}, x_BN.dtype};
  expect_tensor(op, "x_BN", x_BN, like_x, Device{});
  expect_tensor(op, "out_BN", out_BN, like_x, Device{});
  if (x_BN.numel() == 0) return;
  x_BN.dtype == DType::kInt64 ? check_sums<std::int64_t>(op, x_BN)
                              : check_sums<std::int32_t>(op, x_BN);
  cpu::kernels(backend).cumsum({.dtype = x_BN.dtype,
                                .batch = x_BN.shape[0],
                                .entries = x_BN.shape[1],
                                .inclusive = inclusive,
                                .x_BN = x_BN.data,
                                .out_BN = out_BN.data});
}

// Of offsets whose number of rows is theirs to say.
std::int64_t check_ragged(const char* op, const ConstTensorView& offsets_E1) {
  expect_cpu(op, offsets_E1);
  const std::int64_t bins = expect_group_offsets(op, offsets_E1);
  expect_offsets(op, offsets_E1, int64s(offsets_E1)[bins]);
  return bins;
}

void check_replicate(const char* op, const char* name_BE, const ConstTensorView& x_BE,
                     const char* name_BN, const ConstTensorView& out_BN,
                     const ConstTensorView& offsets_E1) {
  expect_floating(op, name_BE, x_BE, 2);
  expect_cpu(op, x_BE);
  const std::int64_t bins = check_ragged(op, offsets_E1);
  const std::int64_t entries = int64s(offsets_E1)[bins];
  expect_tensor(op, name_BE, x_BE, {{x_BE.shape[0], bins}, x_BE.dtype}, Device{});
  expect_tensor(op, name_BN, out_BN, {{x_BE.shape[0], entries}, x_BE.dtype}, Device{});
}

}  // namespace

void histogram(ConstTensorView indices_N, TensorView counts_E, Backend backend) {
  const char* op = "histogram";
  DROPLESS_CHECK(counts_E.rank == 1, concat(op, ": counts_E is ", describe(counts_E)));
  const std::int64_t bins = counts_E.shape[0];
  const std::int64_t entries = check_bins(op, "indices_N", indices_N, bins);
  expect_tensor(op, "counts_E", counts_E, {{bins}, DType::kInt32}, Device{});
  cpu::kernels(backend).histogram({.entries = entries,
                                   .bins = bins,
                                   .indices_N = int32s(indices_N),
                                   .counts_E = static_cast<std::int32_t*>(counts_E.data)});
}

std::size_t sort_workspace_bytes(std::int64_t entries, std::int64_t num_keys) {
  const char* op = "sort_workspace_bytes";
  expect_bytes(op, "the workspace", {2, entries});
  expect_bytes(op, "the workspace", {2, cpu::kMaxTokenChunks, num_keys});
  WorkspaceCarver carver;
  carve(carver, entries, num_keys);
  return carver.used();
}

// The dispatch order of one expert per token: its inverse is the sort's order.
void sort(ConstTensorView keys_N, std::int64_t num_keys, TensorView sorted_N, TensorView order_N,
          void* workspace, std::size_t workspace_bytes, Backend backend) {
  const char* op = "sort";
  DROPLESS_CHECK(num_keys >= 1, concat(op, ": num_keys is ", num_keys, ", expected at least 1"));
  const std::int64_t N = check_bins(op, "keys_N", keys_N, num_keys);
  expect_tensor_or_absent(op, "sorted_N", sorted_N, {{N}, DType::kInt32}, Device{});
  expect_tensor(op, "order_N", order_N, {{N}, DType::kInt32}, Device{});
  expect_workspace(op, workspace, workspace_bytes, sort_workspace_bytes(N, num_keys));
  WorkspaceCarver carver(workspace, workspace_bytes);
  const SortBuffers buffers = carve(carver, N, num_keys);
  cpu::kernels(backend).dispatch_order({.tokens = N,
                                        .experts = num_keys,
                                        .top_k = 1,
                                        .indices_TK = int32s(keys_N),
                                        .rows_TK = buffers.rows_N,
                                        .offsets_E1 = buffers.offsets_E1,
                                        .tokens_R = static_cast<std::int32_t*>(order_N.data),
                                        .partials = buffers.partials});
  if (!sorted_N) return;
  auto* sorted = static_cast<std::int32_t*>(sorted_N.data);
  for (std::int64_t key = 0; key < num_keys; ++key) {
    for (std::int64_t r = buffers.offsets_E1[key]; r < buffers.offsets_E1[key + 1]; ++r) {
      sorted[r] = static_cast<std::int32_t>(key);
    }
  }
}

void inclusive_cumsum(ConstTensorView x_BN, TensorView out_BN, Backend backend) {
  run_cumsum("inclusive_cumsum", x_BN, out_BN, true, backend);
}

void exclusive_cumsum(ConstTensorView x_BN, TensorView out_BN, Backend backend) {
  run_cumsum("exclusive_cumsum", x_BN, out_BN, false, backend);
}

void padded_offsets(ConstTensorView offsets_E1, std::int64_t block_size, TensorView padded_E1,
                    Backend backend) {
  const char* op = "padded_offsets";
  const std::int64_t bins = check_ragged(op, offsets_E1);
  // Padding adds less than a block to each bin: with these limits no sum leaves 64 bits.
  DROPLESS_CHECK(block_size >= 1 && block_size <= kMaxEntries && bins <= kMaxEntries &&
                     int64s(offsets_E1)[bins] <= std::numeric_limits<std::int64_t>::max() / 4,
                 concat(op, ": ", int64s(offsets_E1)[bins], " rows in ", bins, " bins, block_size ",
                        block_size),
                 "block_size must lie between 1 and 2^31 - 1");
  expect_tensor(op, "padded_E1", padded_E1, {{bins + 1}, DType::kInt64}, Device{});
  cpu::kernels(backend).padded_offsets({.bins = bins,
                                        .block_size = block_size,
                                        .offsets_E1 = int64s(offsets_E1),
                                        .padded_E1 = static_cast<std::int64_t*>(padded_E1.data)});
}

std::int64_t tile_table_size(ConstTensorView offsets_E1, std::int64_t tile_rows) {
  const char* op = "tile_table";
  const std::int64_t bins = check_ragged(op, offsets_E1);
  DROPLESS_CHECK(
      tile_rows >= 1 && int64s(offsets_E1)[bins] <= kMaxEntries && bins <= kMaxEntries,
      concat(op, ": ", int64s(offsets_E1)[bins], " rows in ", bins, " bins, tile_rows ", tile_rows),
      "tile_rows must be at least 1, rows and bins below 2^31");
  std::int64_t tiles = 0;
  for (std::int64_t e = 0; e < bins; ++e) {
    const std::int64_t rows = int64s(offsets_E1)[e + 1] - int64s(offsets_E1)[e];
    tiles += rows / tile_rows + (rows % tile_rows > 0);
  }
  return tiles;
}

void tile_table(ConstTensorView offsets_E1, std::int64_t tile_rows, TensorView tiles_N3,
                Backend backend) {
  const std::int64_t tiles = tile_table_size(offsets_E1, tile_rows);
  expect_tensor("tile_table", "tiles_N3", tiles_N3, {{tiles, 3}, DType::kInt32}, Device{});
  cpu::kernels(backend).tile_table({.bins = offsets_E1.shape[0] - 1,
                                    .tile_rows = tile_rows,
                                    .offsets_E1 = int64s(offsets_E1),
                                    .tiles_N3 = static_cast<std::int32_t*>(tiles_N3.data)});
}

void replicate(ConstTensorView x_BE, ConstTensorView offsets_E1, TensorView out_BN,
               Backend backend) {
  check_replicate("replicate", "x_BE", x_BE, "out_BN", out_BN, offsets_E1);
  cpu::kernels(backend).replicate({.dtype = x_BE.dtype,
                                   .batch = x_BE.shape[0],
                                   .bins = x_BE.shape[1],
                                   .entries = out_BN.shape[1],
                                   .x_BE = x_BE.data,
                                   .offsets_E1 = int64s(offsets_E1),
                                   .out_BN = out_BN.data});
}

void replicate_backward(ConstTensorView d_out_BN, ConstTensorView offsets_E1, TensorView d_x_BE,
                        Backend backend) {
  check_replicate("replicate_backward", "d_x_BE", d_x_BE, "d_out_BN", d_out_BN, offsets_E1);
  cpu::kernels(backend).replicate_backward({.dtype = d_x_BE.dtype,
                                            .batch = d_x_BE.shape[0],
                                            .bins = d_x_BE.shape[1],
                                            .entries = d_out_BN.shape[1],
                                            .d_out_BN = d_out_BN.data,
                                            .offsets_E1 = int64s(offsets_E1),
                                            .d_x_BE = d_x_BE.data});
}

}  // namespace dropless
