// Block-sparse products over threads.
//
// What costs beside the multiply-adds is packing, so tasks are cut to use each packed panel for many
// blocks: a task of sdd is a range of blocks, those of dsd and dds a few lines of the walk over a
// range of the dense matrix. Within a task the blocks are taken column by column of the lines
// together: what lies along that column is packed once. Threads take the next task from a queue,
// large ones first. Every output element is computed whole by one thread, block after block in the
// order of the walk, whatever the tasks.
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "src/common/dispatch.h"
#include "src/common/math.h"
#include "src/cpu/parallel.h"
#include "src/cpu/simd/table.h"

namespace dropless::cpu {
namespace {

// Blocks of one task of sdd.
constexpr std::int64_t kMaxSddBlocks = 64;
// What a task of sdd should have at least, for its panels to be used more than once.
constexpr std::int64_t kMinSddBlocks = 4;
// Lines of one task of dsd and dds: as many share a packed panel of the dense matrix.
constexpr std::int64_t kMinDenseLines = 8, kMaxDenseLines = 16;
// Columns of blocks packed together by sdd, and rows or columns of the dense matrix packed together
// by dsd and dds; fewer where their sums need room in the slot.
constexpr std::int64_t kSddPanels = 6, kSddPanelsRounded = 4;
constexpr std::int64_t kDensePanel = 512, kDensePanelSums = 384;

// What the operands' type decides.
struct Types {
  explicit Types(DType storage)
      : storage(storage),
        accumulator(accumulator_dtype(storage)),
        rounded(storage != accumulator),
        element(static_cast<std::int64_t>(dtype_bytes(storage))),
        shape(simd().gemm_shape(storage, storage)),
        packed_element(static_cast<std::int64_t>(dtype_bytes(shape.packed))) {}

  const char* at(const void* data, std::int64_t i) const {
    return static_cast<const char*>(data) + i * element;
  }
  std::int64_t packed_a_bytes(std::int64_t rows) const {
    return round_up(rows, shape.tile_rows) * shape.packed_row * packed_element;
  }
  std::int64_t packed_b_bytes(std::int64_t cols, std::int64_t k) const {
    return round_up(cols, shape.tile_cols) * round_up(k, shape.group) * packed_element;
  }

  DType storage, accumulator;
  bool rounded;  // outputs are narrower than their sums, which are made in the slot
  std::int64_t element;
  GemmShape shape;
  std::int64_t packed_element;
};

// A dense operand as the product reads it: line i of it lies along the summed index k, or across.
struct DenseOperand {
  const void* data;
  OperandLayout layout;
  std::int64_t stride;

  // Lines from `line` on, k from `first` on.
  GemmOperand at(const Types& types, std::int64_t line, std::int64_t first) const {
    const std::int64_t offset =
        layout == OperandLayout::kAlongK ? line * stride + first : first * stride + line;
    return {
        .data = types.at(data, offset), .dtype = types.storage, .rows = nullptr, .stride = stride};
  }
};

void fill_zero(const Types& types, char* out, std::int64_t rows, std::int64_t cols,
               std::int64_t stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    std::memset(out + i * stride * types.element, 0,
                static_cast<std::size_t>(cols * types.element));
  }
}

// The part of a line's blocks that a task has yet to take, in increasing order of index.
struct Line {
  std::int64_t number;
  std::int32_t next, end;
  bool started = false;
};

// The lowest index that is next in any of the lines; false when all are done.
bool next_index(const Line* lines, std::int64_t count, const std::int32_t* indices,
                std::int32_t& index) {
  bool found = false;
  for (std::int64_t i = 0; i < count; ++i) {
    if (lines[i].next == lines[i].end) continue;
    const std::int32_t candidate = indices[lines[i].next];
    if (!found || candidate < index) index = candidate;
    found = true;
  }
  return found;
}

// Calls body(slot) on as many threads as the work and the workspace allow.
template <class Body>
void on_threads(int threads, void* workspace, Body&& body) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  body(static_cast<char*>(workspace) + omp_get_thread_num() * kGemmSlotBytes);
}

// ---- sdd

// The blocks [begin, end) of the output.
class SddTask {
 public:
  SddTask(const SddArgs& args, const Types& types, char* slot)
      : args_(args),
        types_(types),
        block_(args.block_size),
        panels_(types.rounded ? kSddPanelsRounded : kSddPanels),
        panel_bytes_(types.packed_b_bytes(block_, types.shape.step_k)),
        a_{args.a, args.transpose_a ? OperandLayout::kAcrossK : OperandLayout::kAlongK,
           args.transpose_a ? args.rows : args.depth},
        b_{args.b, args.transpose_b ? OperandLayout::kAlongK : OperandLayout::kAcrossK,
           args.transpose_b ? args.depth : args.cols},
        packed_a_(slot),
        packed_b_(slot + types.packed_a_bytes(block_)),
        sums_(packed_b_ + panels_ * panel_bytes_),
        max_sums_((slot + kGemmSlotBytes - sums_) /
                  (block_ * block_ * static_cast<std::int64_t>(sizeof(float)))) {}

  void run(std::int64_t begin, std::int64_t end) {
    rows_ = 0;
    for (std::int64_t n = begin; n < end; ++n) {
      if (n == begin || args_.row_indices[n] != args_.row_indices[n - 1]) {
        row_[rows_++] = {.number = args_.row_indices[n],
                         .next = static_cast<std::int32_t>(n),
                         .end = static_cast<std::int32_t>(n)};
      }
      ++row_[rows_ - 1].end;
    }
    while (take_columns()) {
      // As many rows at a time as their blocks' sums have room.
      for (std::int64_t first = 0, last = 0; first < rows_; first = last) {
        std::int64_t blocks = 0;
        for (; last < rows_; ++last) {
          const std::int64_t more = row_[last].next - taken_from_[last];
          if (types_.rounded && blocks > 0 && blocks + more > max_sums_) break;
          blocks += more;
        }
        if (blocks > 0) multiply(first, last);
      }
    }
  }

 private:
  // Takes the next columns of all rows together. Row i then has the blocks from taken_from_[i] to
  // its `next` in them.
  bool take_columns() {
    for (std::int64_t i = 0; i < rows_; ++i) taken_from_[i] = row_[i].next;
    columns_ = 0;
    std::int32_t column = 0;
    while (columns_ < panels_ && next_index(row_, rows_, args_.column_indices, column)) {
      column_[columns_++] = column;
      for (std::int64_t i = 0; i < rows_; ++i) {
        Line& row = row_[i];
        row.next += row.next < row.end && args_.column_indices[row.next] == column;
      }
    }
    return columns_ > 0;
  }

  char* out(std::int64_t n) const {
    return const_cast<char*>(types_.at(args_.out, n * block_ * block_));
  }

  // The taken blocks of the rows [first, last).
  void multiply(std::int64_t first, std::int64_t last) {
    const SimdTable& loops = simd();
    // Steps of equal length: their number and bounds depend on the depth alone.
    const std::int64_t steps = ceil_div(args_.depth, types_.shape.step_k);
    const std::int64_t step = round_up(ceil_div(args_.depth, steps), types_.shape.group);
    for (std::int64_t k = 0; k < args_.depth; k += step) {
      const std::int64_t depth = std::min(step, args_.depth - k);
      for (std::int64_t c = 0; c < columns_; ++c) {
        loops.gemm_pack_b({.operand = b_.at(types_, column_[c] * block_, k),
                           .layout = b_.layout,
                           .size = block_,
                           .k = depth,
                           .to = packed_b_ + c * panel_bytes_});
      }
      char* sums = sums_;
      for (std::int64_t i = first; i < last; ++i) {
        if (taken_from_[i] == row_[i].next) continue;
        loops.gemm_pack_a({.operand = a_.at(types_, row_[i].number * block_, k),
                           .layout = a_.layout,
                           .size = block_,
                           .k = depth,
                           .to = packed_a_});
        std::int64_t c = 0;
        for (std::int64_t n = taken_from_[i]; n < row_[i].next; ++n) {
          while (column_[c] != args_.column_indices[n]) ++c;
          loops.gemm_tiles({.packed = types_.shape.packed,
                            .a_layout = a_.layout,
                            .rows = block_,
                            .cols = block_,
                            .k = depth,
                            .a = packed_a_,
                            .b = packed_b_ + c * panel_bytes_,
                            .out = types_.rounded ? sums : out(n),
                            .out_stride = block_,
                            .add = k > 0});
          sums += block_ * block_ * static_cast<std::int64_t>(sizeof(float));
        }
      }
    }
    if (types_.rounded) round(first, last);
  }

  void round(std::int64_t first, std::int64_t last) const {
    const char* sums = sums_;
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t size = (row_[i].next - taken_from_[i]) * block_ * block_;
      if (size == 0) continue;
      simd().gemm_round({.rows = 1,
                         .cols = size,
                         .sums = reinterpret_cast<const float*>(sums),
                         .sums_stride = 0,
                         .out = out(taken_from_[i]),
                         .out_dtype = types_.storage,
                         .out_stride = 0});
      sums += size * static_cast<std::int64_t>(sizeof(float));
    }
  }

  const SddArgs& args_;
  const Types& types_;
  const std::int64_t block_;
  const std::int64_t panels_, panel_bytes_;
  const DenseOperand a_, b_;
  char *const packed_a_, *const packed_b_, *const sums_;
  const std::int64_t max_sums_;

  Line row_[kMaxSddBlocks];
  std::int32_t taken_from_[kMaxSddBlocks];
  std::int64_t rows_ = 0;
  std::int32_t column_[kSddPanels];
  std::int64_t columns_ = 0;
};

// ---- dsd, dds

// Lines [begin, end) of the walk, `size` of the dense matrix from `first` on.
struct SparseDenseRange {
  std::int64_t begin, end, first, size;
};

// Whether the sums are made in the slot and then stored. fp32 could add to the output, as fp64 does,
// whose sums are too large for the slot: but dsd's threads would then read and write all of their
// rows for each block, more than their own caches hold (a tenth of the time on two threads).
bool sums_in_slot(const Types& types, bool sparse_is_a) {
  return types.rounded || (sparse_is_a && types.accumulator == DType::kFloat32);
}

class SparseDenseTask {
 public:
  SparseDenseTask(const SparseDenseArgs& args, bool sparse_is_a, const Types& types,
                  std::int64_t dense_panel, char* slot)
      : args_(args),
        sparse_is_a_(sparse_is_a),
        sums_in_slot_(sums_in_slot(types, sparse_is_a)),
        types_(types),
        block_(args.block_size),
        // A's lines are rows and B's columns: a transpose is along k where the other is across.
        dense_{
            args.dense,
            args.transpose_dense == sparse_is_a ? OperandLayout::kAlongK : OperandLayout::kAcrossK,
            args.transpose_dense == sparse_is_a ? args.depth : args.dense_size},
        block_layout_(args.transpose_blocks == sparse_is_a ? OperandLayout::kAcrossK
                                                           : OperandLayout::kAlongK),
        out_stride_(sparse_is_a ? args.dense_size : args.walk.lines * block_),
        packed_a_(slot),
        packed_b_(slot + types.packed_a_bytes(sparse_is_a ? block_ : dense_panel)),
        sums_(slot + packed_bytes(block_, sparse_is_a, types, dense_panel)) {}

  // Lines whose sums have room.
  static std::int64_t max_lines(const SparseDenseArgs& args, bool sparse_is_a, const Types& types,
                                std::int64_t dense_panel) {
    if (!sums_in_slot(types, sparse_is_a)) return kMaxDenseLines;
    const std::int64_t left = static_cast<std::int64_t>(kGemmSlotBytes) -
                              packed_bytes(args.block_size, sparse_is_a, types, dense_panel);
    const auto line = args.block_size * dense_panel * static_cast<std::int64_t>(sizeof(float));
    return std::min(kMaxDenseLines, left / line);
  }

  void run(const SparseDenseRange& range) {
    const BlockWalk& walk = args_.walk;
    const std::int64_t count = range.end - range.begin;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t l = range.begin + i;
      line_[i] = {.number = l, .next = walk.offsets[l], .end = walk.offsets[l + 1]};
    }
    std::int32_t index = 0;
    while (next_index(line_, count, walk.indices, index)) {
      pack(sparse_is_a_, dense_.at(types_, range.first, index * block_), dense_.layout, range.size);
      for (std::int64_t i = 0; i < count; ++i) {
        Line& line = line_[i];
        if (line.next < line.end && walk.indices[line.next] == index) multiply(range, i);
      }
    }
    for (std::int64_t i = 0; i < count; ++i) finish(range, i);
  }

 private:
  static std::int64_t packed_bytes(std::int64_t block, bool sparse_is_a, const Types& types,
                                   std::int64_t dense_panel) {
    return types.packed_a_bytes(sparse_is_a ? block : dense_panel) +
           types.packed_b_bytes(sparse_is_a ? dense_panel : block, block);
  }

  std::int64_t rows(std::int64_t size) const { return sparse_is_a_ ? block_ : size; }
  std::int64_t cols(std::int64_t size) const { return sparse_is_a_ ? size : block_; }
  std::int64_t sums_bytes(std::int64_t size) const {
    return block_ * size * static_cast<std::int64_t>(sizeof(float));
  }
  char* sums(std::int64_t i, std::int64_t size) const { return sums_ + i * sums_bytes(size); }

  char* out(const SparseDenseRange& range, std::int64_t line) const {
    const std::int64_t at = sparse_is_a_ ? line * block_ * out_stride_ + range.first
                                         : range.first * out_stride_ + line * block_;
    return const_cast<char*>(types_.at(args_.out, at));
  }

  void pack(bool as_b, const GemmOperand& operand, OperandLayout layout, std::int64_t size) const {
    const GemmPack pack{.operand = operand,
                        .layout = layout,
                        .size = size,
                        .k = block_,
                        .to = as_b ? packed_b_ : packed_a_};
    as_b ? simd().gemm_pack_b(pack) : simd().gemm_pack_a(pack);
  }

  // The next block of line i times the packed dense panel.
  void multiply(const SparseDenseRange& range, std::int64_t i) {
    Line& line = line_[i];
    const std::int64_t n = args_.walk.blocks == nullptr ? line.next : args_.walk.blocks[line.next];
    pack(!sparse_is_a_,
         {.data = types_.at(args_.data, n * block_ * block_),
          .dtype = types_.storage,
          .rows = nullptr,
          .stride = block_},
         block_layout_, block_);
    simd().gemm_tiles({.packed = types_.shape.packed,
                       .a_layout = sparse_is_a_ ? block_layout_ : dense_.layout,
                       .rows = rows(range.size),
                       .cols = cols(range.size),
                       .k = block_,
                       .a = packed_a_,
                       .b = packed_b_,
                       .out = sums_in_slot_ ? sums(i, range.size) : out(range, line.number),
                       .out_stride = sums_in_slot_ ? cols(range.size) : out_stride_,
                       .add = line.started});
    line.started = true;
    ++line.next;
  }

  void finish(const SparseDenseRange& range, std::int64_t i) const {
    const Line& line = line_[i];
    const std::int64_t n_rows = rows(range.size), n_cols = cols(range.size);
    if (!line.started) {
      fill_zero(types_, out(range, line.number), n_rows, n_cols, out_stride_);
    } else if (sums_in_slot_) {
      simd().gemm_round({.rows = n_rows,
                         .cols = n_cols,
                         .sums = reinterpret_cast<const float*>(sums(i, range.size)),
                         .sums_stride = n_cols,
                         .out = out(range, line.number),
                         .out_dtype = types_.storage,
                         .out_stride = out_stride_});
    }
  }

  const SparseDenseArgs& args_;
  const bool sparse_is_a_, sums_in_slot_;
  const Types& types_;
  const std::int64_t block_;
  const DenseOperand dense_;
  const OperandLayout block_layout_;
  const std::int64_t out_stride_;
  char *const packed_a_, *const packed_b_, *const sums_;
  Line line_[kMaxDenseLines];
};

// How the product is cut into ranges.
struct SparseDenseCut {
  std::int64_t min_lines, max_lines;  // of one range
  std::int64_t panel;                 // rows or columns of the dense matrix
};

// Panels narrow enough, and of few enough lines, for every thread to find some.
SparseDenseCut cut_of(const SparseDenseArgs& args, const Types& types, bool sparse_is_a,
                      int threads) {
  const BlockWalk& walk = args.walk;
  std::int64_t lines = 0;
  for (std::int64_t l = 0; l < walk.lines; ++l) lines += walk.offsets[l] < walk.offsets[l + 1];
  const std::int64_t tile = sparse_is_a ? types.shape.tile_cols : types.shape.tile_rows;
  const auto even = [&](std::int64_t panels) {
    return round_up(ceil_div(args.dense_size, panels), tile);
  };
  // The limit in whole tiles, so that an even share never exceeds it.
  const std::int64_t limit =
      (sums_in_slot(types, sparse_is_a) ? kDensePanelSums : kDensePanel) / tile * tile;
  std::int64_t panels = ceil_div(args.dense_size, limit);
  while (threads > 1 && lines * panels < 4 * threads && even(panels) > tile) panels *= 2;
  const std::int64_t max_lines = SparseDenseTask::max_lines(args, sparse_is_a, types, even(panels));
  const std::int64_t min_lines =
      std::clamp<std::int64_t>(lines * panels / (2 * threads), 1, kMinDenseLines);
  return {std::min(min_lines, max_lines), max_lines, even(panels)};
}

// Hands out the ranges: lines until they have their share of the blocks left, then these lines over
// all of the dense matrix.
class SparseDenseQueue {
 public:
  SparseDenseQueue(const SparseDenseArgs& args, const SparseDenseCut& cut, int threads)
      : args_(args),
        cut_(cut),
        threads_(threads),
        blocks_left_(args.walk.offsets[args.walk.lines]) {}

  bool take(SparseDenseRange& range) {
    const std::lock_guard lock(mutex_);
    if (first_ >= args_.dense_size) {
      begin_ = end_;
      first_ = 0;
    }
    if (first_ == 0 && !take_lines()) return false;
    range = {begin_, end_, first_, std::min(cut_.panel, args_.dense_size - first_)};
    first_ += cut_.panel;
    return true;
  }

 private:
  bool take_lines() {
    const BlockWalk& walk = args_.walk;
    const std::int64_t panels = ceil_div(args_.dense_size, cut_.panel);
    const std::int64_t share = blocks_left_ * panels / (2 * threads_);
    const std::int64_t first = walk.offsets[begin_];
    for (end_ = begin_; end_ < walk.lines && end_ - begin_ < cut_.max_lines; ++end_) {
      if (end_ - begin_ >= cut_.min_lines && walk.offsets[end_ + 1] - first > share) break;
    }
    blocks_left_ -= walk.offsets[end_] - first;
    return end_ > begin_;
  }

  const SparseDenseArgs& args_;
  const SparseDenseCut cut_;
  const int threads_;
  std::mutex mutex_;
  std::int64_t blocks_left_;
  std::int64_t begin_ = 0, end_ = 0, first_ = 0;
};

void sparse_dense(const SparseDenseArgs& args, bool sparse_is_a) {
  if (args.dense_size == 0 || args.walk.lines == 0) return;
  const Types types(args.dtype);
  const std::int64_t blocks = args.walk.offsets[args.walk.lines];
  const int threads = gemm_threads(blocks * args.block_size * args.block_size * args.dense_size,
                                   args.workspace_bytes);
  const SparseDenseCut cut = cut_of(args, types, sparse_is_a, threads);
  SparseDenseQueue queue(args, cut, threads);
  on_threads(threads, args.workspace, [&](char* slot) {
    SparseDenseTask task(args, sparse_is_a, types, cut.panel, slot);
    SparseDenseRange range;
    while (queue.take(range)) task.run(range);
  });
}

}  // namespace

void sdd(const SddArgs& args) {
  if (args.blocks == 0) return;
  const Types types(args.dtype);
  const std::int64_t block_elements = args.block_size * args.block_size;
  if (args.depth == 0) {  // the empty sum
    std::memset(args.out, 0,
                static_cast<std::size_t>(args.blocks * block_elements * types.element));
    return;
  }
  const int threads = gemm_threads(args.blocks * block_elements * args.depth, args.workspace_bytes);
  std::mutex mutex;
  std::int64_t next = 0;
  on_threads(threads, args.workspace, [&](char* slot) {
    SddTask task(args, types, slot);
    for (;;) {
      std::int64_t begin, end;
      {
        const std::lock_guard lock(mutex);
        const std::int64_t left = args.blocks - next;
        if (left == 0) return;
        begin = next;
        end = next +=
            std::min(left, std::clamp(left / (2 * threads), kMinSddBlocks, kMaxSddBlocks));
      }
      task.run(begin, end);
    }
  });
}

void dsd(const SparseDenseArgs& args) { sparse_dense(args, true); }
void dds(const SparseDenseArgs& args) { sparse_dense(args, false); }

}  // namespace dropless::cpu
