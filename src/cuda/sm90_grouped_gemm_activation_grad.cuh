// The gradient through the down projection and the activation on Hopper.
#pragma once

#include <algorithm>

#include "src/cuda/activations.cuh"
#include "src/cuda/check.h"
#include "src/cuda/device/epilogue_activation_grad.cuh"
#include "src/cuda/device/gemm.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/operands.cuh"

namespace dropless::cuda::sm90_activation_grad {

struct Arguments {
  ConstTensorView d_out_TD;
  const std::int32_t* tokens_R;
  ConstTensorView w2_EFD;
  const float* scores_R;
  const void* row_tiles;
  TensorView gate_RF, up_RF, act_RF;
  float* d_scores_NR;
  cudaStream_t stream;
};

template <class Element, bool kGlu, DeviceActivation kActivation>
void launch(const Arguments& x) {
  constexpr int kRasterWidth = 8;
  using GradTile =
      Tile<128, kActivationGradColumns, 4, 2, 2, 1, Major::kK, Major::kK, 1, 1, true, Element>;
  using Schedule = RowTileSchedule<GradTile>;
  using Epilogue = ActivationGradEpilogue<GradTile, kActivation, kGlu>;
  const std::int64_t rows = x.act_RF.shape[0], d = x.d_out_TD.shape[1], f = x.act_RF.shape[1];
  const auto pieces_of = [&](const TensorView& plane) {
    Output<Element> out = row_output<Element>(plane);
    out.map = make_tensor_map({.data = plane.data,
                               .dtype = plane.dtype,
                               .dims = {f, rows, 1},
                               .row_pitch = plane.stride[0],
                               .box = {Epilogue::kColumns, 16},
                               .row_bytes = 64});
    return out;
  };
  typename Epilogue::Params epilogue{};
  epilogue.gate = pieces_of(x.gate_RF);
  if (kGlu) epilogue.up = pieces_of(x.up_RF);
  epilogue.act = pieces_of(x.act_RF);
  epilogue.scores_R = x.scores_R;
  epilogue.d_scores_NR = x.d_scores_NR;
  epilogue.rows = rows;
  epilogue.slices = std::max<int>(1, static_cast<int>(d / kBlockK) / Epilogue::kPieces);
  launch_persistent(gemm_kernel<GradTile, Schedule, Epilogue>, kGemmThreads, GradTile::kSharedBytes,
                    GradTile::kCluster, row_tile_bound<GradTile>(rows, x.w2_EFD.shape[0], f),
                    x.stream, gathered(x.d_out_TD, x.tokens_R, weight_operand<GradTile>(x.w2_EFD)),
                    row_tile_schedule<GradTile>(x.row_tiles, f, d, kRasterWidth), epilogue);
}

template <class Element>
void run(Activation activation, const Arguments& x) {
  for_activation(activation, [&](auto constant) {
    x.up_RF ? launch<Element, true, constant.value>(x) : launch<Element, false, constant.value>(x);
  });
}

extern template void run<__half>(Activation, const Arguments&);  // builds in parallel

}  // namespace dropless::cuda::sm90_activation_grad
