// Grouped matrix products over threads.
//
// The outputs of all groups are one list of strips (group, range of columns), each as long as the
// group has output rows. Threads take the next rows of the list from a queue: large blocks first,
// which pack their operands for the most arithmetic, then smaller ones, so that all threads end
// together however skewed the groups are and however unequal the cores. Every output element is
// computed whole by one thread in a fixed order (src/cpu/simd/gemm.h), so the result does not
// depend on who took what.
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "src/common/math.h"
#include "src/cpu/parallel.h"
#include "src/cpu/simd/table.h"

namespace dropless::cpu {
namespace {

// A block of fewer tiles of rows spends too long on packing B.
constexpr std::int64_t kMinTilesPerBlock = 8;

// What both products have in common: each group e makes a [rows, cols] output by sums of length
// depth.
struct Outputs {
  std::int64_t groups, cols;
  const std::int64_t* offsets;
  std::int64_t fixed;  // grouped_gemm: the depth; weight gradient: the rows
  bool rows_are_fixed;

  std::int64_t group_size(std::int64_t e) const { return offsets[e + 1] - offsets[e]; }
  std::int64_t rows(std::int64_t e) const { return rows_are_fixed ? fixed : group_size(e); }
  std::int64_t depth(std::int64_t e) const { return rows_are_fixed ? group_size(e) : fixed; }
  std::int64_t work() const { return (offsets[groups] - offsets[0]) * fixed * cols; }
};

struct Block {
  std::int64_t group, row, rows, col, cols;
};

// The narrowest strips that are needed for every thread to find a few blocks.
std::int64_t strip_cols(const Outputs& outputs, const GemmShape& shape, int threads) {
  const std::int64_t min_rows = kMinTilesPerBlock * shape.tile_rows;
  std::int64_t row_blocks = 0;
  for (std::int64_t e = 0; e < outputs.groups; ++e)
    row_blocks += ceil_div(outputs.rows(e), min_rows);
  // Strips of equal width, in whole tiles.
  const auto even = [&](std::int64_t strips) {
    return round_up(ceil_div(outputs.cols, strips), shape.tile_cols);
  };
  std::int64_t strips = ceil_div(outputs.cols, shape.max_cols);
  while (threads > 1 && row_blocks * strips < 4 * threads && even(strips) > shape.tile_cols)
    strips *= 2;
  return even(strips);
}

class BlockQueue {
 public:
  BlockQueue(const Outputs& outputs, const GemmShape& shape, int threads)
      : outputs_(outputs),
        shape_(shape),
        threads_(threads),
        strip_(strip_cols(outputs, shape, threads)),
        work_left_(outputs.work()) {}

  // The next block; false when there is none.
  bool take(Block& block) {
    const std::lock_guard lock(mutex_);
    while (group_ < outputs_.groups && row_ >= outputs_.rows(group_)) next_strip();
    if (group_ >= outputs_.groups) return false;
    const std::int64_t cols = std::min(strip_, outputs_.cols - col_);
    const std::int64_t left = outputs_.rows(group_) - row_;
    const std::int64_t row_work = std::max<std::int64_t>(cols * outputs_.depth(group_), 1);
    std::int64_t rows = round_up(work_left_ / (2 * threads_) / row_work, shape_.tile_rows);
    rows = std::max(rows, kMinTilesPerBlock * shape_.tile_rows);
    rows = std::min<std::int64_t>(rows, shape_.max_rows);
    if (left <= rows + rows / 4 && left <= shape_.max_rows) {
      rows = left;  // no crumbs
    } else if (left < 2 * rows) {
      rows = round_up(ceil_div(left, 2), shape_.tile_rows);
    }
    block = {group_, row_, rows, col_, cols};
    row_ += rows;
    work_left_ -= rows * row_work;
    return true;
  }

 private:
  void next_strip() {
    row_ = 0;
    col_ += strip_;
    if (col_ >= outputs_.cols) {
      col_ = 0;
      ++group_;
    }
  }

  const Outputs& outputs_;
  const GemmShape shape_;
  const int threads_;
  const std::int64_t strip_;
  std::mutex mutex_;
  std::int64_t work_left_;
  std::int64_t group_ = 0, row_ = 0, col_ = 0;
};

// Calls body(block, slot) for every block of the outputs, on as many threads as the work and the
// workspace allow.
template <class Body>
void for_blocks(const Outputs& outputs, const GemmShape& shape, void* workspace,
                std::size_t workspace_bytes, Body&& body) {
  if (outputs.cols == 0) return;
  const int threads = gemm_threads(outputs.work(), workspace_bytes);
  BlockQueue queue(outputs, shape, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    char* slot = static_cast<char*>(workspace) + omp_get_thread_num() * kGemmSlotBytes;
    Block block;
    while (queue.take(block)) body(block, slot);
  }
}

// The output of an empty sum.
void fill_zero(char* out, DType dtype, std::int64_t stride, const Block& block) {
  const std::size_t element = dtype_bytes(dtype);
  for (std::int64_t i = 0; i < block.rows; ++i) {
    std::memset(out + i * stride * element, 0, block.cols * element);
  }
}

const char* at(const void* data, DType dtype, std::int64_t element) {
  return static_cast<const char*>(data) + element * static_cast<std::int64_t>(dtype_bytes(dtype));
}

}  // namespace

void grouped_gemm(const GroupedGemmArgs& args) {
  const SimdTable& loops = simd();
  const Outputs outputs{args.groups, args.n, args.offsets, args.k, false};
  GemmShape shape =
      loops.gemm_shape(product_type(args.terms[0].a_dtype, args.terms[0].b_dtype), args.out_dtype);
  std::int64_t most_rows = 0;
  for (std::int64_t e = 0; e < args.groups; ++e) {
    most_rows = std::max(most_rows, outputs.group_size(e));
  }
  if (most_rows <= shape.few_rows) {
    shape.max_cols = shape.few_rows_cols;
  } else if (args.num_terms == 1 && args.k <= shape.step_k && args.bias == nullptr) {
    shape.max_cols = shape.one_step_cols;
  }
  for_blocks(
      outputs, shape, args.workspace, args.workspace_bytes, [&](const Block& block, void* slot) {
        const std::int64_t row = args.offsets[block.group] + block.row;
        char* out = const_cast<char*>(at(args.out, args.out_dtype, row * args.n + block.col));
        if (args.k == 0) return fill_zero(out, args.out_dtype, args.n, block);
        GemmBlock product{
            .rows = block.rows,
            .cols = block.cols,
            .k = args.k,
            .a_layout = OperandLayout::kAlongK,
            .b_layout = args.transpose_b ? OperandLayout::kAlongK : OperandLayout::kAcrossK,
            .num_terms = args.num_terms,
            .a = {},
            .b = {},
            .out = out,
            .out_dtype = args.out_dtype,
            .out_stride = args.n,
            .slot = slot,
            .bias = args.bias == nullptr
                        ? nullptr
                        : at(args.bias, args.terms[0].b_dtype, block.group * args.n + block.col),
            .accumulate = args.accumulate};
        for (int i = 0; i < args.num_terms; ++i) {
          const GroupedGemmTerm& term = args.terms[i];
          const std::int64_t step = term.b_stride != 0 ? term.b_stride : args.n * args.k;
          const std::int64_t first_b =
              block.group * step + (args.transpose_b ? block.col * args.k : block.col);
          product.a[i] = {
              .data = term.a_rows == nullptr ? at(term.a, term.a_dtype, row * args.k) : term.a,
              .dtype = term.a_dtype,
              .rows = term.a_rows == nullptr ? nullptr : term.a_rows + row,
              .stride = args.k};
          product.b[i] = {.data = at(term.b, term.b_dtype, first_b),
                          .dtype = term.b_dtype,
                          .rows = nullptr,
                          .stride = args.transpose_b ? args.k : args.n,
                          .whole_k = args.transpose_b ? args.k : 0};
        }
        loops.gemm_block(product);
      });
}

void grouped_gemm_weight_grad(const GroupedGemmWeightGradArgs& args) {
  const SimdTable& loops = simd();
  const Outputs outputs{args.groups, args.n, args.offsets, args.m, true};
  GemmShape shape = loops.gemm_shape(product_type(args.a_dtype, args.b_dtype), args.out_dtype);
  std::int64_t longest = 0;
  for (std::int64_t e = 0; e < args.groups; ++e) longest = std::max(longest, outputs.depth(e));
  if (longest <= shape.step_k) shape.max_cols = shape.one_step_cols;
  for_blocks(
      outputs, shape, args.workspace, args.workspace_bytes, [&](const Block& block, void* slot) {
        const std::int64_t first = args.offsets[block.group],
                           rows = outputs.group_size(block.group);
        const std::int64_t step = args.out_stride != 0 ? args.out_stride : args.m * args.n;
        const std::int64_t to = block.group * step + block.row * args.n + block.col;
        char* out = const_cast<char*>(at(args.out, args.out_dtype, to));
        if (rows == 0 && args.accumulate) return;
        if (rows == 0) return fill_zero(out, args.out_dtype, args.n, block);
        GemmBlock product{.rows = block.rows,
                          .cols = block.cols,
                          .k = rows,
                          .a_layout = OperandLayout::kAcrossK,
                          .b_layout = OperandLayout::kAcrossK,
                          .num_terms = 1,
                          .a = {},
                          .b = {},
                          .out = out,
                          .out_dtype = args.out_dtype,
                          .out_stride = args.n,
                          .slot = slot,
                          .accumulate = args.accumulate};
        product.a[0] = {.data = at(args.a, args.a_dtype, first * args.m + block.row),
                        .dtype = args.a_dtype,
                        .rows = nullptr,
                        .stride = args.m};
        product.b[0] = {.data = at(args.b, args.b_dtype,
                                   (args.b_rows == nullptr ? first * args.n : 0) + block.col),
                        .dtype = args.b_dtype,
                        .rows = args.b_rows == nullptr ? nullptr : args.b_rows + first,
                        .stride = args.n};
        loops.gemm_block(product);
      });
}

}  // namespace dropless::cpu
