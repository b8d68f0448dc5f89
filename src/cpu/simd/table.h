// The inner loops that are compiled once per instruction set, and the choice among them at run
// time.
//
// The threaded kernels (src/cpu/*.cc) split work over threads and call these on ranges. Results may
// differ between instruction sets (other vector widths, fused or unfused products) but never with
// the split.
#pragma once

#include <cstdint>

#include "src/cpu/kernels.h"

namespace dropless::cpu {

// How a packed operand lies in memory: element (row i, k) of A is a[row(i) * stride + k] (kAlongK)
// or a[row(k) * stride + i] (kAcrossK), where row(r) = rows ? rows[r] : r. The same for B with
// columns for rows.
enum class OperandLayout : std::uint8_t { kAlongK, kAcrossK };

struct GemmOperand {
  const void* data = nullptr;
  DType dtype{};
  const std::int32_t* rows = nullptr;
  std::int64_t stride = 0;
  // Of one that lies along k and is packed step after step: how far.
  std::int64_t whole_k = 0;
};

// One block of a product: out [rows, cols] = sum over terms of A [rows, k] B [k, cols], summed in
// the accumulator type, in the order of k, term after term. At most the shape's block limits; k >
// 0.
struct GemmBlock {
  std::int64_t rows, cols, k;
  OperandLayout a_layout, b_layout;
  int num_terms;
  GemmOperand a[2], b[2];
  void* out;
  DType out_dtype;
  std::int64_t out_stride;
  void* slot;                  // packing buffers, kGemmSlotBytes
  const void* bias = nullptr;  // [cols], b's type: added to each row before it is rounded
  bool accumulate = false;     // adds to `out`, which has the accumulator's type
};

// Block limits for one pair of operand and output type; rows and cols of a block are best multiples
// of the tile. Packed pieces are of type `packed`: at most step_k along k, packed_row elements for
// each row of A, k rounded up to whole groups.
struct GemmShape {
  DType packed;
  int tile_rows, tile_cols;
  int max_rows, max_cols;
  // The limit of columns of a block of one term with k <= step_k and no bias, whose sums need no
  // memory.
  int one_step_cols;
  // Blocks of at most so many rows, A along k, may have that many columns: wider ones read longer runs
  // of B.
  int few_rows, few_rows_cols;
  int step_k, packed_row, group;
};

// The type of the operands of a product: where they differ one is an accumulator and decides.
constexpr DType product_type(DType a, DType b) { return dtype_bytes(a) > dtype_bytes(b) ? a : b; }

// The steps of gemm_block one by one, for products that use a packed operand several times. Both
// operands have one type; sums are double for fp64, else float.

// Packs an operand of `size` rows (A) or columns (B) by k <= step_k. A takes round_up(size,
// tile_rows) * packed_row elements of the packed type, B round_up(size, tile_cols) * round_up(k,
// group).
struct GemmPack {
  GemmOperand operand;
  OperandLayout layout;
  std::int64_t size, k;
  void* to;
};

// out [rows, cols] = A B, or += with `add`, of packed operands.
struct GemmTiles {
  DType packed;  // of gemm_shape
  OperandLayout a_layout;
  std::int64_t rows, cols, k;
  const void *a, *b;
  void* out;
  std::int64_t out_stride;
  bool add;
};

// out [rows, cols] = sums, rounded where the output has 16 bits.
struct GemmRound {
  std::int64_t rows, cols;
  const float* sums;
  std::int64_t sums_stride;
  void* out;
  DType out_dtype;
  std::int64_t out_stride;
};

struct SimdTable {
  const char* name;
  GemmShape (*gemm_shape)(DType operands, DType out);
  void (*gemm_block)(const GemmBlock& block);
  void (*gemm_pack_a)(const GemmPack& pack);
  void (*gemm_pack_b)(const GemmPack& pack);
  void (*gemm_tiles)(const GemmTiles& tiles);
  void (*gemm_round)(const GemmRound& round);
  // Tokens [begin, end). Adds to the chunk's sums and counts.
  void (*route_forward)(const RouteForwardArgs& args, std::int64_t begin, std::int64_t end,
                        const RouteChunk& chunk);
  void (*route_backward)(const RouteBackwardArgs& args, std::int64_t begin, std::int64_t end);
  void (*combine)(const CombineArgs& args, std::int64_t begin, std::int64_t end);
  void (*combine_backward)(const CombineBackwardArgs& args, std::int64_t begin, std::int64_t end);
  void (*expert_backward)(const ExpertBackwardArgs& args, std::int64_t begin, std::int64_t end);
  // Elements [begin, end).
  void (*activation_forward)(const ActivationForwardArgs& args, std::int64_t begin,
                             std::int64_t end);
  void (*activation_backward)(const ActivationBackwardArgs& args, std::int64_t begin,
                              std::int64_t end);
};

enum class SimdLevel : std::uint8_t { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The widest level this processor and build have, at most the one named by the environment variable
// DROPLESS_CPU_ISA (generic, avx2, avx512, avx512_bf16 or amx). For amx the process asks the kernel, the
// first time this is called, to let it use the matrix unit, which makes its signal frames larger for good.
SimdLevel simd_level();

// Lowers the level for the whole process (tests compare levels); not while kernels run.
void set_simd_level(SimdLevel level);

// The loops of the current level.
const SimdTable& simd();

}  // namespace dropless::cpu
