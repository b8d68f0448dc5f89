// The order of the products of the backward on a GPU that read or write rows of d_model columns, slabs of columns at a time,
// and which gather goes beside which: a pure function of sizes.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace dropless {

// Where a slab of rows lies: in the workspace, in dW1 or dV1 before those are written, in scaled_h when dW2 is done.
enum class RowSpace { kWorkspace, kW1, kV1, kScaledH };
inline constexpr int kRowSpaces = 4;
// Columns of all T k rows that each space has room for.
using RowRoom = std::array<std::int64_t, kRowSpaces>;

struct Slab {
  std::int64_t begin = 0, width = 0;  // columns of d_model
  RowSpace space = RowSpace::kWorkspace;
};

enum class RowSource { kDOut, kX };
struct SlabGather {
  RowSource from;
  Slab slab;
};

enum class SlabProduct {
  kNone,   // the gather alone
  kDX,     // columns of d_x, from d_gate and d_up: rows are written and combined at once
  kDW2,    // columns of dW2, from d_out's rows
  kDW1V1,  // columns of dW1 and dV1, from x's rows
};

struct BackwardStep {
  SlabProduct product;
  Slab slab = {};
  // Beside the product: into another space than those in use.
  std::optional<SlabGather> gather = {};
};

// Narrow experts (d_x_slabs > 0, so many products of d_x if d_model is wide enough): those products need nothing gathered,
// last long and move few bytes, so that gathers beside them cost least. Some come first and bring d_out's rows into
// dW1 and dV1, the others come before dW1 and dV1 and bring x's into scaled_h; what is left goes beside dW2 and dW1.
// Wide experts (0): gathers are little. dW2, then dW1 and dV1, then d_x over the same rows, each with the next gather.
//
// Slabs are whole tiles of `tile` columns but for the last. The workspace has room for a tile at least; another space with
// less is not used.
std::vector<BackwardStep> plan_backward(std::int64_t columns, const RowRoom& room, int d_x_slabs,
                                        std::int64_t tile);

}  // namespace dropless
