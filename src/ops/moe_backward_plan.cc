#include "src/ops/moe_backward_plan.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "src/common/math.h"

namespace dropless {
namespace {

using Slabs = std::vector<Slab>;

// `columns` as few slabs of about one width; slab i lies in space_of(i). room: tiles, at least one in each such space.
template <class SpaceOf>
Slabs cut(std::int64_t columns, const RowRoom& room, std::int64_t tile, SpaceOf space_of) {
  const std::int64_t tiles = ceil_div(columns, tile);
  const auto room_of = [&](int i) { return room[static_cast<std::size_t>(space_of(i))]; };
  int count = 0;
  std::int64_t left = 0;  // room of the slabs from the next on
  while (left < tiles) left += room_of(count++);
  Slabs slabs;
  std::int64_t begin = 0;
  for (int i = 0; i < count; ++i) {
    left -= room_of(i);
    const std::int64_t rest = tiles - begin;
    const std::int64_t even = ceil_div(rest, std::int64_t{count - i});
    const std::int64_t width = std::min({room_of(i), rest, std::max(even, rest - left)});
    slabs.push_back({begin * tile, std::min(width * tile, columns - begin * tile), space_of(i)});
    begin += width;
  }
  return slabs;
}

int size_of(const Slabs& slabs) { return static_cast<int>(slabs.size()); }

// The gathers of some slabs, in their order.
class Gathers {
 public:
  Gathers(RowSource from, Slabs slabs) : from_(from), slabs_(std::move(slabs)) {}

  const Slab& operator[](int i) const { return slabs_[static_cast<std::size_t>(i)]; }
  int count() const { return size_of(slabs_); }
  int done() const { return done_; }

  SlabGather next() { return {from_, (*this)[done_++]}; }
  // If the next one's space holds none of the slabs from `first` on.
  std::optional<SlabGather> next_beside(int first) {
    if (done_ == count()) return std::nullopt;
    for (int i = first; i < done_; ++i) {
      if ((*this)[i].space == (*this)[done_].space) return std::nullopt;
    }
    return next();
  }

 private:
  RowSource from_;
  Slabs slabs_;
  int done_ = 0;
};

}  // namespace

std::vector<BackwardStep> plan_backward(std::int64_t columns, const RowRoom& room, int d_x_slabs,
                                        std::int64_t tile) {
  constexpr std::int64_t kLeastTiles = 2;  // of a product of d_x
  RowRoom tiles;
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    tiles[i] = room[i] >= columns ? ceil_div(columns, tile) : room[i] / tile;
  }
  tiles[0] = std::max<std::int64_t>(tiles[0], 1);
  const auto has_room = [&](RowSpace space) { return tiles[static_cast<std::size_t>(space)] > 0; };

  std::vector<RowSpace> turns;
  for (const RowSpace space : {RowSpace::kW1, RowSpace::kV1}) {
    if (has_room(space)) turns.push_back(space);
  }
  turns.push_back(RowSpace::kWorkspace);
  Gathers d_out(RowSource::kDOut, cut(columns, tiles, tile, [&](int i) {
                  return turns[static_cast<std::size_t>(i) % turns.size()];
                }));

  Slabs d_x;  // that need no slab of x's
  int early = 0;
  if (d_x_slabs > 0) {
    RowRoom product = tiles;
    const std::int64_t even = ceil_div(ceil_div(columns, tile), std::int64_t{d_x_slabs});
    product[0] = std::min(product[0], std::max(kLeastTiles, even));
    d_x = cut(columns, product, tile, [](int) { return RowSpace::kWorkspace; });
    early = std::min(
        {static_cast<int>(turns.size()) - 1, d_out.count(), std::max(1, size_of(d_x) / 2)});
  }
  const int late = size_of(d_x) - early;
  const bool second = has_room(RowSpace::kScaledH);
  Gathers x(RowSource::kX, cut(columns, tiles, tile, [&](int i) {
              const int after = i - late;  // of those that no product of d_x is left for
              return second && (after < 0 || after % 2 == 1) ? RowSpace::kScaledH
                                                             : RowSpace::kWorkspace;
            }));

  std::vector<BackwardStep> steps;
  const auto d_x_step = [&](int i, std::optional<SlabGather> gather) {
    steps.push_back({SlabProduct::kDX, d_x[static_cast<std::size_t>(i)], gather});
  };
  for (int i = 0; i < early; ++i) d_x_step(i, d_out.next());

  for (int i = 0; i < d_out.count(); ++i) {
    if (d_out.done() == i) steps.push_back({SlabProduct::kNone, {}, d_out.next()});
    const bool last = i + 1 == d_out.count();
    std::optional<SlabGather> beside = d_out.next_beside(i);
    if (last && late == 0 && d_out[i].space != x[0].space) beside = x.next();
    steps.push_back({SlabProduct::kDW2, d_out[i], beside});
  }

  for (int i = 0; i < std::max(late, x.count()); ++i) {
    if (i < late) {
      const bool beside = i < x.count() && x[i].space == RowSpace::kScaledH;
      d_x_step(early + i, beside ? std::optional(x.next()) : std::nullopt);
    }
    if (i >= x.count()) continue;
    if (x.done() == i) steps.push_back({SlabProduct::kNone, {}, x.next()});
    const std::optional<SlabGather> beside = x.next_beside(i);
    const bool over_x = d_x_slabs == 0;
    steps.push_back({SlabProduct::kDW1V1, x[i], over_x ? std::nullopt : beside});
    if (over_x) steps.push_back({SlabProduct::kDX, x[i], beside});
  }
  return steps;
}

}  // namespace dropless
