// Block-sparse products and topologies, plain loops. The contract is include/dropless/block_sparse.h.
#include <algorithm>

#include "src/common/dispatch.h"
#include "src/common/math.h"
#include "src/cpu/kernels.h"

namespace dropless::cpu::reference {
namespace {

// x[i, j] of a row-major matrix, or of the transpose of one.
template <class S>
struct Matrix {
  const S* data;
  std::int64_t stride;
  bool transposed;
  auto operator()(std::int64_t i, std::int64_t j) const {
    return to_float(data[transposed ? j * stride + i : i * stride + j]);
  }
};

// Block n of the walk, as the product uses it.
template <class S>
Matrix<S> block_of(const SparseDenseArgs& args, std::int64_t n) {
  const std::int64_t block = args.walk.blocks == nullptr ? n : args.walk.blocks[n];
  return {static_cast<const S*>(args.data) + block * args.block_size * args.block_size,
          args.block_size, args.transpose_blocks};
}

}  // namespace

// out_n[i, j] = sum_k a[row_n S + i, k] b[k, column_n S + j]
void sdd(const SddArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using Type = decltype(zero);
    const std::int64_t S = args.block_size;
    const Matrix<Type> a{static_cast<const Type*>(args.a),
                         args.transpose_a ? args.rows : args.depth, args.transpose_a};
    const Matrix<Type> b{static_cast<const Type*>(args.b),
                         args.transpose_b ? args.depth : args.cols, args.transpose_b};
    for (std::int64_t n = 0; n < args.blocks; ++n) {
      for (std::int64_t i = 0; i < S; ++i) {
        for (std::int64_t j = 0; j < S; ++j) {
          Accumulator<Type> sum = 0;
          for (std::int64_t k = 0; k < args.depth; ++k) {
            sum += a(args.row_indices[n] * S + i, k) * b(k, args.column_indices[n] * S + j);
          }
          static_cast<Type*>(args.out)[(n * S + i) * S + j] = from_float<Type>(sum);
        }
      }
    }
  });
}

// out[l S + i, j] = sum over the blocks n of line l, over k, of  block_n[i, k] b[index_n S + k, j]
void dsd(const SparseDenseArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using Type = decltype(zero);
    const std::int64_t S = args.block_size, N = args.dense_size;
    const Matrix<Type> b{static_cast<const Type*>(args.dense),
                         args.transpose_dense ? args.depth : N, args.transpose_dense};
    for (std::int64_t l = 0; l < args.walk.lines; ++l) {
      for (std::int64_t i = 0; i < S; ++i) {
        for (std::int64_t j = 0; j < N; ++j) {
          Accumulator<Type> sum = 0;
          for (std::int64_t n = args.walk.offsets[l]; n < args.walk.offsets[l + 1]; ++n) {
            const Matrix<Type> block = block_of<Type>(args, n);
            for (std::int64_t k = 0; k < S; ++k) {
              sum += block(i, k) * b(args.walk.indices[n] * S + k, j);
            }
          }
          static_cast<Type*>(args.out)[(l * S + i) * N + j] = from_float<Type>(sum);
        }
      }
    }
  });
}

// out[i, l S + j] = sum over the blocks n of line l, over k, of  a[i, index_n S + k] block_n[k, j]
void dds(const SparseDenseArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using Type = decltype(zero);
    const std::int64_t S = args.block_size, N = args.walk.lines * S;
    const Matrix<Type> a{static_cast<const Type*>(args.dense),
                         args.transpose_dense ? args.dense_size : args.depth, args.transpose_dense};
    for (std::int64_t l = 0; l < args.walk.lines; ++l) {
      for (std::int64_t i = 0; i < args.dense_size; ++i) {
        for (std::int64_t j = 0; j < S; ++j) {
          Accumulator<Type> sum = 0;
          for (std::int64_t n = args.walk.offsets[l]; n < args.walk.offsets[l + 1]; ++n) {
            const Matrix<Type> block = block_of<Type>(args, n);
            for (std::int64_t k = 0; k < S; ++k) {
              sum += a(i, args.walk.indices[n] * S + k) * block(k, j);
            }
          }
          static_cast<Type*>(args.out)[i * N + l * S + j] = from_float<Type>(sum);
        }
      }
    }
  });
}

void expert_topology(const ExpertTopologyArgs& args) {
  std::int64_t row = 0;
  std::int32_t block = 0;
  args.offsets[0] = 0;
  args.padded_offsets_E1[0] = 0;
  for (std::int64_t e = 0; e < args.experts; ++e) {
    const std::int64_t size = args.offsets_E1[e + 1] - args.offsets_E1[e];
    for (std::int64_t i = 0; i < ceil_div(size, args.block_size); ++i, ++row) {
      for (std::int64_t j = 0; j < args.blocks_per_row; ++j, ++block) {
        args.row_indices[block] = static_cast<std::int32_t>(row);
        args.column_indices[block] = static_cast<std::int32_t>(e * args.blocks_per_row + j);
      }
      args.offsets[row + 1] = block;
    }
    args.padded_offsets_E1[e + 1] = row * args.block_size;
  }
}

// A counting sort by column, stable: within a column by row.
void transpose_topology(const TransposeTopologyArgs& args) {
  std::int32_t* offsets = args.offsets_t;
  std::fill_n(offsets, args.columns + 1, 0);
  for (std::int64_t n = 0; n < args.blocks; ++n) ++offsets[args.column_indices[n] + 1];
  for (std::int64_t j = 0; j < args.columns; ++j) offsets[j + 1] += offsets[j];
  // offsets[j] now counts up from the column's first entry to the next column's.
  for (std::int64_t n = 0; n < args.blocks; ++n) {
    const std::int32_t to = offsets[args.column_indices[n]]++;
    args.column_indices_t[to] = args.row_indices[n];
    args.block_offsets_t[to] = static_cast<std::int32_t>(n);
  }
  std::copy_backward(offsets, offsets + args.columns, offsets + args.columns + 1);
  offsets[0] = 0;
}

}  // namespace dropless::cpu::reference
