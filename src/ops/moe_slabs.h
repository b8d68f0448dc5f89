// How the backward on a GPU cuts d_model into slabs: a pure function of sizes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "src/common/math.h"

namespace dropless {

struct Slab {
  std::int64_t begin = 0, width = 0;  // columns of d_model
  int space = 0;                      // where their rows lie
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
  // Whether the rows of slab i + 1 may come while those of slab i are read.
  bool apart(int i) const { return i + 1 < count && (*this)[i].space != (*this)[i + 1].space; }
};

// `columns` of d_model as few slabs of about one width, whole tiles but for the last. Two spaces of most[0] and most[1]
// columns take turns; the first slab is in space 0 or, `ends_in_second`, the last one in space 1. Without room for a
// tile in space 1 all slabs are in space 0, of a tile at least.
inline Slabs cut_slabs(std::int64_t columns, std::array<std::int64_t, 2> most, bool ends_in_second,
                       std::int64_t tile) {
  const std::int64_t tiles = ceil_div(columns, tile);
  const std::array<std::int64_t, 2> room = {std::max<std::int64_t>(most[0] / tile, 1),
                                            most[1] / tile};
  const auto space = [&](int i, int count) {
    if (room[1] == 0) return 0;
    return ends_in_second ? (count - i) % 2 : i % 2;
  };
  // Room of the slabs from i on.
  const auto left = [&](int i, int count) {
    std::int64_t sum = 0;
    for (; i < count; ++i) sum += room[static_cast<std::size_t>(space(i, count))];
    return sum;
  };
  Slabs slabs;
  slabs.count = 1;
  while (slabs.count < Slabs::kMost && left(0, slabs.count) < tiles) ++slabs.count;
  std::int64_t begin = 0;
  for (int i = 0; i < slabs.count; ++i) {
    const std::int64_t rest = tiles - begin;
    const int at = space(i, slabs.count);
    const std::int64_t even = ceil_div(rest, std::int64_t{slabs.count - i});
    const std::int64_t width = std::min({room[static_cast<std::size_t>(at)], rest,
                                         std::max(even, rest - left(i + 1, slabs.count))});
    slabs.all[static_cast<std::size_t>(i)] = {begin * tile,
                                              std::min(width * tile, columns - begin * tile), at};
    begin += width;
  }
  return slabs;
}

}  // namespace dropless
