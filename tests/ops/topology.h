// Block topologies with their memory.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "dropless/block_sparse.h"
#include "tests/ops/tensor.h"

namespace dropless::testing {

inline constexpr DType kIndex = DType::kInt32;

// A topology with its memory.
struct Topology {
  Topology(std::int64_t rows, std::int64_t cols, std::int64_t size, std::int64_t blocks)
      : block_rows(rows),
        block_cols(cols),
        block_size(size),
        row_indices(kIndex, {blocks}),
        column_indices(kIndex, {blocks}),
        offsets(kIndex, {rows + 1}),
        column_indices_t(kIndex, {blocks}),
        offsets_t(kIndex, {cols + 1}),
        block_offsets_t(kIndex, {blocks}) {}

  BlockTopology view() {
    return {block_rows * block_size,
            block_cols * block_size,
            block_size,
            row_indices,
            column_indices,
            offsets,
            column_indices_t,
            offsets_t,
            block_offsets_t};
  }
  std::int64_t blocks() const { return row_indices.numel(); }
  std::int64_t rows() const { return block_rows * block_size; }
  std::int64_t cols() const { return block_cols * block_size; }

  std::int64_t block_rows, block_cols, block_size;
  Tensor row_indices, column_indices, offsets, column_indices_t, offsets_t, block_offsets_t;
};

// Blocks where the mask [rows][cols] is set.
inline Topology topology_of(const std::vector<std::vector<int>>& mask, std::int64_t cols,
                            std::int64_t block_size) {
  std::int64_t blocks = 0;
  for (const auto& row : mask) blocks += std::count(row.begin(), row.end(), 1);
  Topology t(static_cast<std::int64_t>(mask.size()), cols, block_size, blocks);
  std::int64_t n = 0;
  t.offsets.set(0, 0);
  for (std::size_t i = 0; i < mask.size(); ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      if (!mask[i][j]) continue;
      t.row_indices.set(n, static_cast<double>(i));
      t.column_indices.set(n++, static_cast<double>(j));
    }
    t.offsets.set(static_cast<std::int64_t>(i) + 1, static_cast<double>(n));
  }
  transpose_topology(t.view());
  return t;
}

inline Topology random_topology(std::mt19937_64& rng, std::int64_t rows, std::int64_t cols,
                                std::int64_t block_size, double density) {
  std::bernoulli_distribution present(density);
  std::vector<std::vector<int>> mask(rows, std::vector<int>(cols));
  for (auto& row : mask) {
    for (int& block : row) block = present(rng);
  }
  return topology_of(mask, cols, block_size);
}

}  // namespace dropless::testing
