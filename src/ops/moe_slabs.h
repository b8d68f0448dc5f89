// How the backward on a GPU cuts d_model into slabs, and what goes beside what: a pure function of sizes.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "src/common/math.h"

namespace dropless {

// Where a slab of rows lies: in the workspace, in dW1 or dV1 before those are written, in scaled_h when it is done with.
enum class RowSpace { kWorkspace, kW1, kV1, kScaledH };
inline constexpr int kRowSpaces = 4;

struct Slab {
  std::int64_t begin = 0, width = 0;  // columns of d_model
  RowSpace space = RowSpace::kWorkspace;
};

// In the order of their columns.
struct Slabs {
  static constexpr int kMost = 64;
  std::array<Slab, kMost> all;
  int count = 0;
  const Slab& operator[](int i) const { return all[static_cast<std::size_t>(i)]; }
  const Slab& back() const { return (*this)[count - 1]; }
  std::int64_t widest() const {
    std::int64_t width = 0;
    for (int i = 0; i < count; ++i) width = std::max(width, (*this)[i].width);
    return width;
  }
  // Whether slab i's space holds none of the slabs from `first` on, those before i.
  bool free(int i, int first) const {
    for (; first < i; ++first) {
      if ((*this)[first].space == (*this)[i].space) return false;
    }
    return true;
  }
};

// Tiles of columns that each space has room for.
using RowRoom = std::array<std::int64_t, kRowSpaces>;

// `columns` of d_model as few slabs of about one width, whole tiles but for the last; slab i lies in space_of(i), which
// has room for a tile at least.
template <class SpaceOf>
Slabs cut_slabs(std::int64_t columns, const RowRoom& room, std::int64_t tile, SpaceOf space_of) {
  const std::int64_t tiles = ceil_div(columns, tile);
  const auto room_of = [&](int i) { return room[static_cast<std::size_t>(space_of(i))]; };
  // Room of the slabs from i on.
  const auto left = [&](int i, int count) {
    std::int64_t sum = 0;
    for (; i < count; ++i) sum += room_of(i);
    return sum;
  };
  int count = 1;
  while (count < Slabs::kMost && left(0, count) < tiles) ++count;
  Slabs slabs;
  std::int64_t begin = 0;
  for (; slabs.count < count; ++slabs.count) {
    const int i = slabs.count;
    const std::int64_t rest = tiles - begin;
    const std::int64_t even = ceil_div(rest, std::int64_t{count - i});
    const std::int64_t width =
        std::min({room_of(i), rest, std::max(even, rest - left(i + 1, count))});
    slabs.all[static_cast<std::size_t>(i)] = {
        begin * tile, std::min(width * tile, columns - begin * tile), space_of(i)};
    begin += width;
  }
  return slabs;
}

// The products of d_x need nothing gathered, last long and move few bytes: gathers beside them cost next to nothing. So
// they come first, and again before the gradients of w1 and v1:
//
//   d_x[i], i < ahead    beside it d_out[i]
//   dW2 of d_out[i]      beside it d_out[i + ahead], as soon as its space is free
//   d_x[ahead + j]       beside it x[j]
//   dW1, dV1 of x[j]     beside it x[j + 1], where all products of d_x are done
//
// For wide experts gathers are little; there the products of d_x come last, each over its slab of x, x[0] beside dW2 and
// x[j + 1] beside d_x[j].
struct BackwardSlabs {
  Slabs d_x, d_out, x;
  int ahead = 0;
  bool d_x_over_x = false;  // d_x is x

  // Products of d_x between dW2 and the last dW1.
  int late() const { return d_x_over_x ? 0 : d_x.count - ahead; }
};

// room: columns for all T k rows in each space; the workspace has a tile at least. d_x_slabs: products of d_x, if d_model is
// wide enough; 0: they come last.
inline BackwardSlabs cut_backward(std::int64_t columns, const RowRoom& room, int d_x_slabs,
                                  std::int64_t tile) {
  constexpr std::int64_t kLeastTiles = 2;  // of a product of d_x
  RowRoom tiles;
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    tiles[i] = room[i] >= columns ? ceil_div(columns, tile) : room[i] / tile;
  }
  const auto has_room = [&](RowSpace space) { return tiles[static_cast<std::size_t>(space)] > 0; };
  tiles[0] = std::max<std::int64_t>(tiles[0], 1);

  BackwardSlabs slabs;
  std::array<RowSpace, 3> turns;
  std::size_t spare = 0;
  for (const RowSpace space : {RowSpace::kW1, RowSpace::kV1}) {
    if (has_room(space)) turns[spare++] = space;
  }
  turns[spare] = RowSpace::kWorkspace;
  slabs.d_out = cut_slabs(columns, tiles, tile,
                          [&](int i) { return turns[static_cast<std::size_t>(i) % (spare + 1)]; });

  if (d_x_slabs > 0) {
    RowRoom product = tiles;
    const std::int64_t even = ceil_div(ceil_div(columns, tile), std::int64_t{d_x_slabs});
    product[0] = std::min(product[0], std::max(kLeastTiles, even));
    slabs.d_x = cut_slabs(columns, product, tile, [](int) { return RowSpace::kWorkspace; });
    slabs.ahead =
        std::min({static_cast<int>(spare), slabs.d_out.count, std::max(1, slabs.d_x.count / 2)});
  }
  const bool second = has_room(RowSpace::kScaledH);
  slabs.x = cut_slabs(columns, tiles, tile, [&](int i) {
    const int after = i - slabs.late();  // of those that no product of d_x is left for
    return second && (after < 0 || after % 2 == 1) ? RowSpace::kScaledH : RowSpace::kWorkspace;
  });
  if (d_x_slabs == 0) {
    slabs.d_x = slabs.x;
    slabs.d_x_over_x = true;
  }
  return slabs;
}

}  // namespace dropless
