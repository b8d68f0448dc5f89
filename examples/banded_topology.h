// A sparsity pattern of one's own: a band around the diagonal, `reach` blocks to either side (the
// pattern of sliding-window attention, Beltagy et al. 2020, arXiv:2004.05150).
//
// Any set of blocks fits in the same way: list their positions by row, then column; transpose_topology
// makes the walk by column, and every product and gradient of block_sparse.h takes the result.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "examples/tensor.h"

namespace examples {

// block_rows x block_rows blocks of which those with |row - column| <= reach are there.
class BandedTopology {
 public:
  BandedTopology(std::int64_t block_rows, std::int64_t reach, std::int64_t block_size)
      : blocks_(count(block_rows, reach)),
        row_indices_{blocks_},
        column_indices_{blocks_},
        offsets_{block_rows + 1},
        column_indices_t_{blocks_},
        offsets_t_{block_rows + 1},
        block_offsets_t_{blocks_} {
    std::int64_t n = 0;
    for (std::int64_t i = 0; i < block_rows; ++i) {
      for (std::int64_t j = 0; j < block_rows; ++j) {
        if (std::abs(i - j) > reach) continue;
        row_indices_[n] = static_cast<std::int32_t>(i);
        column_indices_[n++] = static_cast<std::int32_t>(j);
      }
      offsets_[i + 1] = static_cast<std::int32_t>(n);
    }
    view_ = {.rows = block_rows * block_size,
             .cols = block_rows * block_size,
             .block_size = block_size,
             .row_indices = row_indices_,
             .column_indices = column_indices_,
             .offsets = offsets_,
             .column_indices_t = column_indices_t_,
             .offsets_t = offsets_t_,
             .block_offsets_t = block_offsets_t_};
    dropless::transpose_topology(view_);
  }

  const dropless::BlockTopology& view() const { return view_; }
  std::int64_t blocks() const { return blocks_; }
  // Whether the element at (row, column) lies in a block that is there.
  bool holds(std::int64_t row, std::int64_t column, std::int64_t reach) const {
    return std::abs(row / view_.block_size - column / view_.block_size) <= reach;
  }

 private:
  static std::int64_t count(std::int64_t block_rows, std::int64_t reach) {
    std::int64_t blocks = 0;
    for (std::int64_t i = 0; i < block_rows; ++i)
      blocks += std::min(block_rows, i + reach + 1) - std::max<std::int64_t>(0, i - reach);
    return blocks;
  }

  std::int64_t blocks_;
  Tensor<std::int32_t> row_indices_, column_indices_, offsets_;
  Tensor<std::int32_t> column_indices_t_, offsets_t_, block_offsets_t_;
  dropless::BlockTopology view_;
};

}  // namespace examples
