// Block-sparse products on Hopper (device/block_sparse.cuh): blocks of 128 x 128, 16-bit elements.
#pragma once

#include <type_traits>

#include "src/cuda/block_clusters.h"
#include "src/cuda/block_parts.h"
#include "src/cuda/device/block_sparse.cuh"
#include "src/cuda/device/epilogue_block.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/operands.cuh"

namespace dropless::cuda::sm90_block_sparse {

// The blocks of op(a) op(b).
struct Sdd {
  const ConstTensorView &a, &b;
  bool a_is_mn, b_is_mn;  // contiguous along the product's rows or columns, not along k
  std::int64_t depth;
  const BlockTopology& topology;
  const TensorView& out;
  void* workspace;
  cudaStream_t stream;
};

// D [lines, dense_size] = op(sparse) op(dense); `transposed`: out is D^T.
struct SparseDense {
  const ConstTensorView &data, &dense;
  bool data_is_mn, dense_is_mn, transposed;
  std::int64_t lines, dense_size, depth;
  const int *offsets, *indices, *blocks;  // the walk along D's block rows
  WalkParts parts;
  const TensorView& out;
  void* workspace;
  cudaStream_t stream;
};

// Each is instantiated in a file of its own for each type.
template <class Element>
void run(const Sdd& x);
template <class Element>
void run(const SparseDense& x);

template <class Element, Major kMajorA, Major kMajorB>
using BlockTile = Tile<kBlock, 2 * kBlock, 4, 2, 2, 1, kMajorA, kMajorB, 1, 1, false, Element>;

template <Major kMajor>
CUtensorMap dense_operand(const ConstTensorView& view, int k_major_rows) {
  return make_tensor_map({.data = view.data,
                          .dtype = view.dtype,
                          .dims = {view.shape[1], view.shape[0], 1},
                          .row_pitch = view.shape[1],
                          .box = {64, kMajor == Major::kK ? k_major_rows : kBlockK}});
}

// [blocks, 128, 128], K-major and MN-major alike.
inline CUtensorMap block_map(const ConstTensorView& data, int box_rows) {
  return make_tensor_map({.data = data.data,
                          .dtype = data.dtype,
                          .dims = {kBlock, kBlock, data.shape[0]},
                          .row_pitch = kBlock,
                          .batch_pitch = kBlock * kBlock,
                          .box = {64, box_rows}});
}

inline const int* int32s(const TensorView& view) { return static_cast<const int*>(view.data); }

template <class Element, Major kMajorA, Major kMajorB>
void launch(const Sdd& x) {
  using Tile = BlockTile<Element, kMajorA, kMajorB>;
  using Epilogue = BlockEpilogue<Tile>;
  const BlockTopology& t = x.topology;
  const std::int64_t rows = t.rows / kBlock;
  const int *offsets = int32s(t.offsets), *columns = int32s(t.column_indices);
  const SddPairs pairs =
      build_sdd_pairs(offsets, columns, rows, x.out.shape[0], x.workspace, x.stream);
  const BlockSparseOperands operands{.a = {dense_operand<kMajorA>(x.a, kBlock / 2)},
                                     .b = {dense_operand<kMajorB>(x.b, kBlock)}};
  const SddSchedule::Params schedule{.count = pairs.count,
                                     .pairs = pairs.pairs,
                                     .row_indices = int32s(t.row_indices),
                                     .column_indices = columns,
                                     .num_blocks = offsets + rows,
                                     .k_length = static_cast<int>(x.depth)};
  const typename Epilogue::Params epilogue{block_map(x.out, 16), static_cast<Element*>(x.out.data),
                                           kBlock, kBlock};
  launch_persistent(gemm_kernel<Tile, SddSchedule, Epilogue, SddLoader<Tile>>, kGemmThreads,
                    Tile::kSharedBytes, Tile::kCluster, pairs.most, x.stream, operands, schedule,
                    epilogue);
}

// What a product stores: D, D^T, or the sums of its parts.
enum class Stored { kRows, kTransposed, kParts };

template <class Element, Major kMajorA, Major kMajorB, Stored kStored>
void launch(const SparseDense& x) {
  using Tile = BlockTile<Element, kMajorA, kMajorB>;
  using Epilogue = std::conditional_t<
      kStored == Stored::kTransposed, TransposedEpilogue<Tile>,
      StoreEpilogue<Tile, std::conditional_t<kStored == Stored::kParts, float, Element>,
                    StoreMode::kOverwrite>>;
  const SameLines pairs = find_same_lines(x.offsets, x.indices, x.lines, x.workspace, x.stream);
  const BlockSparseOperands operands{.a = {block_map(x.data, kBlock / 2)},
                                     .b = {dense_operand<kMajorB>(x.dense, kBlock)},
                                     .indices = x.indices,
                                     .blocks = x.blocks};
  const auto tiles_n = static_cast<int>((x.dense_size + Tile::kBlockN - 1) / Tile::kBlockN);
  const SparseDenseSchedule::Params schedule{.offsets = x.offsets,
                                             .indices = x.indices,
                                             .same = pairs.same,
                                             .alike = pairs.alike,
                                             .lines = static_cast<int>(x.lines),
                                             .depth = static_cast<int>(x.depth / kBlock),
                                             .tiles_n = tiles_n,
                                             .parts = x.parts.count};
  typename Epilogue::Params epilogue{};
  if constexpr (kStored == Stored::kParts) {
    // Tiles are whole or empty: no rows go out by copy_rows, which knows no batches.
    const std::int64_t rows = x.lines * kBlock;
    epilogue.out = {make_tensor_map({.data = x.parts.sums,
                                     .dtype = DType::kFloat32,
                                     .dims = {x.dense_size, rows, x.parts.count},
                                     .row_pitch = x.dense_size,
                                     .batch_pitch = rows * x.dense_size,
                                     .box = {32, 16}}),
                    x.parts.sums, x.dense_size, static_cast<int>(x.dense_size)};
  } else if constexpr (kStored == Stored::kTransposed) {
    epilogue.map = make_tensor_map({.data = x.out.data,
                                    .dtype = x.out.dtype,
                                    .dims = {x.out.shape[1], x.out.shape[0], 1},
                                    .row_pitch = x.out.shape[1],
                                    .box = {64, 64}});
  } else {
    epilogue.out = row_output<Element>(x.out);
  }
  launch_persistent(gemm_kernel<Tile, SparseDenseSchedule, Epilogue, SparseDenseLoader<Tile>>,
                    kGemmThreads, Tile::kSharedBytes, Tile::kCluster,
                    (x.lines + 1) / 2 * tiles_n * x.parts.count, x.stream, operands, schedule,
                    epilogue);
  if constexpr (kStored == Stored::kParts) {
    sum_walk_parts(x.parts, x.lines * kBlock, x.dense_size, x.transposed, x.out, x.stream);
  }
}

template <class Element>
void run(const Sdd& x) {
  if (x.a_is_mn) {
    x.b_is_mn ? launch<Element, Major::kMN, Major::kMN>(x)
              : launch<Element, Major::kMN, Major::kK>(x);
  } else {
    x.b_is_mn ? launch<Element, Major::kK, Major::kMN>(x)
              : launch<Element, Major::kK, Major::kK>(x);
  }
}

template <class Element, Stored kStored>
void run_stored(const SparseDense& x) {
  if (x.data_is_mn) {
    x.dense_is_mn ? launch<Element, Major::kMN, Major::kMN, kStored>(x)
                  : launch<Element, Major::kMN, Major::kK, kStored>(x);
  } else {
    x.dense_is_mn ? launch<Element, Major::kK, Major::kMN, kStored>(x)
                  : launch<Element, Major::kK, Major::kK, kStored>(x);
  }
}

template <class Element>
void run(const SparseDense& x) {
  if (x.parts.count > 1) return run_stored<Element, Stored::kParts>(x);
  x.transposed ? run_stored<Element, Stored::kTransposed>(x)
               : run_stored<Element, Stored::kRows>(x);
}

extern template void run<__half>(const Sdd& x);
extern template void run<__half>(const SparseDense& x);

}  // namespace dropless::cuda::sm90_block_sparse
