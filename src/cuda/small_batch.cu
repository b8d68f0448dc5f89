// The experts of a small batch: one persistent kernel, device/small_batch.cuh says how it works, behind
// the router's.
#include "src/cuda/small_batch.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "src/common/math.h"
#include "src/common/workspace.h"
#include "src/cuda/activations.cuh"
#include "src/cuda/check.h"
#include "src/cuda/device/small_batch_feed.cuh"
#include "src/cuda/device/small_batch_multiply.cuh"
#include "src/cuda/launch.cuh"
#include "src/cuda/small_batch_parts.h"
#include "src/cuda/streamed_tensor_map.h"

namespace dropless::cuda {
namespace {

template <class Tile>
__global__ void __launch_bounds__(kSmallThreads, 1)
    small_batch_kernel(const SmallParams p, const __grid_constant__ CUtensorMap w1,
                       const __grid_constant__ CUtensorMap v1,
                       const __grid_constant__ CUtensorMap w2) {
  extern __shared__ unsigned char dynamic[];
  __shared__ SmallShared shared;
  const std::uint32_t stages = (ptx::shared_address(dynamic) + 1023) & ~1023u;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  ptx::launch_dependents();
  if (threadIdx.x == 0) {
    for (int s = 0; s < kSmallStages; ++s) {
      // Full: the weights warp's announcement and each lane of the rows warp.
      ptx::mbarrier_init(ptx::shared_address(&shared.full[s]), 33);
      ptx::mbarrier_init(ptx::shared_address(&shared.empty[s]), kSmallConsumers);
      ptx::mbarrier_init(ptx::shared_address(&shared.announced[s]), 1);
    }
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_init(ptx::shared_address(&shared.signal_full[i]), 1);
      ptx::mbarrier_init(ptx::shared_address(&shared.signal_empty[i]), 1);
    }
    ptx::fence_mbarrier_init();
    ptx::prefetch_tensor_map(&w1);
    ptx::prefetch_tensor_map(&v1);
    ptx::prefetch_tensor_map(&w2);
  }
  __syncthreads();
  ptx::dependency_wait();
  if (warp < kSmallConsumerWarps) {
    SmallMultiplier<Tile>{p, stages + kSmallStages * Tile::kStageBytes, warp, lane, shared, stages}
        .run();
  } else if (warp == kSmallConsumerWarps) {
    if (lane == 0) SmallWeights<Tile>{p, w1, v1, w2, shared, stages}.run();
  } else if (warp == kSmallConsumerWarps + 1) {
    small_rows_warp<Tile>(p, shared, stages);
  } else {
    if (lane == 0) small_signal_thread(shared);
  }
}

template <int kRows>
using TileOf = SmallTile<kRows, small_batch_tile(kRows).up, small_batch_tile(kRows).up_k,
                         small_batch_tile(kRows).down, small_batch_tile(kRows).down_k>;

template <class Launch>
void for_tile(int rows, Launch launch) {
  if (rows == 16) return launch(TileOf<16>{});
  launch(TileOf<32>{});
}

CUtensorMap weights_map(const ConstTensorView& w, int box_rows) {
  return make_streamed_tensor_map({.data = w.data,
                                   .dims = {w.shape[2], w.shape[1], w.shape[0]},
                                   .row_pitch = w.stride[1],
                                   .batch_pitch = w.stride[0],
                                   .box = {64, box_rows}});
}

std::int64_t max_items(const SmallBatchPlan& plan, std::int64_t rows, std::int64_t experts) {
  return std::min(experts, rows) + rows / plan.rows;
}

SmallBatchBuffers carve(WorkspaceCarver& carver, const SmallBatchPlan& plan, std::int64_t tokens,
                        std::int64_t top_k, std::int64_t d, std::int64_t f, std::int64_t experts) {
  const std::int64_t rows = tokens * top_k;
  const std::int64_t items = max_items(plan, rows, experts);
  return {.control = carver.take<SmallControl>(1),
          .up_done = carver.take<int>(items),
          .items = carver.take<SmallItem>(items),
          .tokens_R = carver.take<int>(rows),
          .h_RF = carver.take<__nv_bfloat16>(rows * f),
          .y_RD = carver.take<float>(rows * d)};
}

SmallParams make_params(const SmallBatchPlan& plan, const SmallBatch& layer,
                        const SmallBatchBuffers& buffers) {
  const SmallBatchTile tile = small_batch_tile(plan.rows);
  const std::int64_t d = layer.d_model, f = layer.d_ffn;
  return {
      .tokens = static_cast<int>(layer.tokens),
      .top_k = static_cast<int>(layer.top_k),
      .d = static_cast<int>(d),
      .f = static_cast<int>(f),
      .glu = layer.glu,
      .activation = device_activation(layer.activation),
      .up_blocks = static_cast<int>(ceil_div(f, (layer.glu ? 1 : 2) * tile.up)),
      .down_blocks = static_cast<int>(ceil_div(d, tile.down)),
      .combine_units = static_cast<int>(ceil_div(layer.tokens * d / 4, kSmallConsumers)),
      .max_items = static_cast<int>(max_items(plan, layer.tokens * layer.top_k, layer.num_experts)),
      .control = buffers.control,
      .items = buffers.items,
      .up_done = buffers.up_done,
      .x_TD = static_cast<const __nv_bfloat16*>(layer.x_TD.data),
      .tokens_R = buffers.tokens_R,
      .rows_TK = layer.rows_TK,
      .weights_TK = layer.weights_TK,
      .gate_RF = static_cast<__nv_bfloat16*>(layer.gate_RF.data),
      .up_RF = static_cast<__nv_bfloat16*>(layer.up_RF.data),
      .h_RF = buffers.h_RF,
      .y_RD = buffers.y_RD,
      .out_TD = static_cast<__nv_bfloat16*>(layer.out_TD.data)};
}

}  // namespace

std::size_t small_batch_workspace_bytes(const SmallBatchPlan& plan, std::int64_t tokens,
                                        std::int64_t top_k, std::int64_t d_model,
                                        std::int64_t d_ffn, std::int64_t num_experts) {
  WorkspaceCarver carver;
  carve(carver, plan, tokens, top_k, d_model, d_ffn, num_experts);
  return carver.used();
}

void small_batch_forward(const SmallBatchPlan& plan, const SmallBatch& layer, void* workspace,
                         Stream stream) {
  if (!small_batch_fits(layer.tokens, layer.num_experts, layer.top_k)) {
    throw Error(ErrorKind::kInvalidArgument,
                "small_batch: " + std::to_string(layer.tokens) + " tokens of " +
                    std::to_string(layer.num_experts) + " experts",
                "ask small_batch_fits() before", __FILE__, __LINE__);
  }
  WorkspaceCarver carver(workspace, 0);
  const SmallBatchBuffers buffers =
      carve(carver, plan, layer.tokens, layer.top_k, layer.d_model, layer.d_ffn, layer.num_experts);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const int grid = multiprocessors();
  small_batch_route(layer, plan.rows, grid, buffers, cuda_stream);
  const SmallParams params = make_params(plan, layer, buffers);
  for_tile(plan.rows, [&](auto tile) {
    using Tile = decltype(tile);
    const CUtensorMap w1 = weights_map(layer.w1_EFD, Tile::kUpM);
    const CUtensorMap v1 = layer.glu ? weights_map(layer.v1_EFD, Tile::kUpM) : w1;
    const CUtensorMap w2 = weights_map(layer.w2_EFD, Tile::kDownSlice);
    launch_dependent(small_batch_kernel<Tile>, grid, kSmallThreads, Tile::kSharedBytes, 1,
                     cuda_stream, params, w1, v1, w2);
  });
}

}  // namespace dropless::cuda
