// Both products of the router's gradient in one kernel: device/router_gradients.cuh.
#include <algorithm>

#include "src/common/math.h"
#include "src/cuda/device/router_gradients.cuh"
#include "src/cuda/element.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/operands.cuh"
#include "src/cuda/path.h"

namespace dropless::cuda::sm90 {
namespace {

constexpr std::int64_t kMultiprocessors = 132;

// f(the tile for so many experts).
template <class Element, class Function>
auto for_tile(std::int64_t experts, Function&& f) {
  return experts <= 64 ? f(RouterGradientTile<Element, 64>{})
                       : f(RouterGradientTile<Element, kMostRouterExperts>{});
}

template <class Tile>
std::int64_t slices_of(Tile, std::int64_t d_model) {
  return ceil_div(d_model, std::int64_t{Tile::kColumns});
}

}  // namespace

// One wave of CTAs, if the tokens suffice; one for experts that do not fit.
std::int64_t router_gradient_chunks(std::int64_t num_tokens, std::int64_t d_model,
                                    std::int64_t num_experts) {
  if (num_experts > kMostRouterExperts) return 1;
  const std::int64_t slices =
      for_tile<__nv_bfloat16>(num_experts, [&](auto tile) { return slices_of(tile, d_model); });
  return std::max(std::min(kMultiprocessors / slices, ceil_div(num_tokens, std::int64_t{64})),
                  std::int64_t{1});
}

void router_gradients(ConstTensorView x_TD, ConstTensorView router_ED, const void* split_T2P,
                      std::int64_t chunk, std::int64_t chunks, TensorView d_x_TD,
                      float* partials_SPD, Stream stream) {
  const std::int64_t T = x_TD.shape[0], D = x_TD.shape[1], P = router_pitch(router_ED.shape[0]);
  const auto boxes = [&](const ConstTensorView& rows) {
    return make_tensor_map({.data = rows.data,
                            .dtype = rows.dtype,
                            .dims = {rows.shape[1], rows.shape[0], 1},
                            .row_pitch = rows.stride[0],
                            .box = {64, 64}});
  };
  // hi and lo lie side by side in a row. A map each: one with hi and lo as its last dimension would step by less in
  // that than in rows, which the driver's documentation does not allow.
  const auto split_boxes = [&](std::int64_t part) {
    const auto* data = static_cast<const std::uint16_t*>(split_T2P) + part * P;
    ConstTensorView split_TP(data, x_TD.dtype, {T, P}, x_TD.device);
    split_TP.stride[0] = 2 * P;
    return boxes(split_TP);
  };
  for_16_bit(x_TD.dtype, "router_gradients", [&](auto element) {
    using Element = decltype(element);
    const RouterGradientParams<Element> params{.split = {split_boxes(0), split_boxes(1)},
                                               .x = boxes(x_TD),
                                               .router = boxes(router_ED),
                                               .d_x = row_output<Element>(d_x_TD),
                                               .partials_SPD = partials_SPD,
                                               .tokens = static_cast<int>(T),
                                               .chunk = static_cast<int>(chunk),
                                               .pitch = static_cast<int>(P)};
    for_tile<Element>(router_ED.shape[0], [&](auto tile) {
      using Tile = decltype(tile);
      launch_dependent(router_gradients_kernel<Tile>, static_cast<int>(slices_of(tile, D) * chunks),
                       Tile::kThreads, Tile::kSharedBytes, 1, static_cast<cudaStream_t>(stream),
                       params);
    });
  });
}

}  // namespace dropless::cuda::sm90
