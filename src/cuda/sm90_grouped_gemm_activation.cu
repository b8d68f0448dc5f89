// Up projection with the activation in its epilogue, and the gradient through both, on Hopper.
#include <string>

#include "src/cuda/check.h"
#include "src/cuda/device/epilogue_activation.cuh"
#include "src/cuda/device/gemm.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/operands.cuh"

namespace dropless::cuda {
namespace {

constexpr int kRasterWidth = 8;

template <bool kGlu, DeviceActivation kActivation>
void launch_forward(const ConstTensorView& x_RD, const ConstTensorView& w1_EFD,
                    const ConstTensorView& v1_EFD, const void* row_tiles, const TensorView& gate_RF,
                    const TensorView& up_RF, const TensorView& act_RF, cudaStream_t stream) {
  using UpTile = Tile<128, 256, 4, 2, 2, 1, Major::kK, Major::kK, kGlu ? 2 : 1>;
  using Schedule = RowTileSchedule<UpTile>;
  using Epilogue = ActivationEpilogue<UpTile, kActivation>;
  const std::int64_t rows = x_RD.shape[0], d = x_RD.shape[1], f = act_RF.shape[1];
  const CUtensorMap map_x = row_operand<UpTile>(x_RD);
  const CUtensorMap map_w1 = weight_operand<UpTile>(w1_EFD);
  typename Epilogue::Params epilogue{};
  epilogue.act = row_output<__nv_bfloat16>(act_RF);
  epilogue.save = static_cast<bool>(gate_RF);
  if (epilogue.save) {
    epilogue.gate = row_output<__nv_bfloat16>(gate_RF);
    if (kGlu) epilogue.up = row_output<__nv_bfloat16>(up_RF);
  }
  launch_persistent(
      gemm_kernel<UpTile, Schedule, Epilogue>, kGemmThreads, UpTile::kSharedBytes, UpTile::kCluster,
      row_tile_bound<UpTile>(rows, w1_EFD.shape[0], f), stream,
      Operands{{map_x, map_x}, {map_w1, kGlu ? weight_operand<UpTile>(v1_EFD) : map_w1}},
      row_tile_schedule<UpTile>(row_tiles, f, d, kRasterWidth), epilogue);
}

template <bool kGlu, DeviceActivation kActivation>
void launch_backward(const ConstTensorView& d_out_RD, const ConstTensorView& w2_EFD,
                     const float* scores_R, const void* row_tiles, const TensorView& gate_RF,
                     const TensorView& up_RF, const TensorView& act_RF, float* d_scores_NR,
                     cudaStream_t stream) {
  using GradTile = Tile<128, kActivationGradColumns, 4, 2, 2, 1, Major::kK, Major::kK>;
  using Schedule = RowTileSchedule<GradTile>;
  using Epilogue = ActivationGradEpilogue<GradTile, kActivation, kGlu>;
  const std::int64_t rows = d_out_RD.shape[0], d = d_out_RD.shape[1], f = act_RF.shape[1];
  typename Epilogue::Params epilogue{};
  epilogue.gate = row_output<__nv_bfloat16>(gate_RF);
  if (kGlu) epilogue.up = row_output<__nv_bfloat16>(up_RF);
  epilogue.act = row_output<__nv_bfloat16>(act_RF);
  epilogue.scores_R = scores_R;
  epilogue.d_scores_NR = d_scores_NR;
  epilogue.rows = rows;
  launch_persistent(gemm_kernel<GradTile, Schedule, Epilogue>, kGemmThreads, GradTile::kSharedBytes,
                    GradTile::kCluster, row_tile_bound<GradTile>(rows, w2_EFD.shape[0], f), stream,
                    one_term(row_operand<GradTile>(d_out_RD), weight_operand<GradTile>(w2_EFD)),
                    row_tile_schedule<GradTile>(row_tiles, f, d, kRasterWidth), epilogue);
}

template <DeviceActivation kActivation>
struct Constant {
  static constexpr DeviceActivation value = kActivation;
};

template <class Launch>
void for_activation(Activation activation, Launch launch) {
  switch (activation) {
    case Activation::kSilu:
      return launch(Constant<DeviceActivation::kSilu>{});
    case Activation::kGeluTanh:
      return launch(Constant<DeviceActivation::kGeluTanh>{});
    case Activation::kGelu:
      return launch(Constant<DeviceActivation::kGelu>{});
    case Activation::kRelu:
      return launch(Constant<DeviceActivation::kRelu>{});
    case Activation::kQuickGelu:
      return launch(Constant<DeviceActivation::kQuickGelu>{});
  }
}

}  // namespace

void grouped_gemm_activation(Activation activation, ConstTensorView x_RD, ConstTensorView w1_EFD,
                             ConstTensorView v1_EFD, const void* row_tiles, TensorView gate_RF,
                             TensorView up_RF, TensorView act_RF, Stream stream) {
  if (act_RF.numel() == 0) return;
  for_activation(activation, [&](auto constant) {
    if (v1_EFD) {
      launch_forward<true, constant.value>(x_RD, w1_EFD, v1_EFD, row_tiles, gate_RF, up_RF, act_RF,
                                           static_cast<cudaStream_t>(stream));
    } else {
      launch_forward<false, constant.value>(x_RD, w1_EFD, v1_EFD, row_tiles, gate_RF, up_RF, act_RF,
                                            static_cast<cudaStream_t>(stream));
    }
  });
}

void grouped_gemm_activation_grad(Activation activation, ConstTensorView d_out_RD,
                                  ConstTensorView w2_EFD, const float* scores_R,
                                  const void* row_tiles, TensorView gate_RF, TensorView up_RF,
                                  TensorView act_RF, float* d_scores_NR, Stream stream) {
  if (act_RF.numel() == 0) return;
  for_activation(activation, [&](auto constant) {
    if (up_RF) {
      launch_backward<true, constant.value>(d_out_RD, w2_EFD, scores_R, row_tiles, gate_RF, up_RF,
                                            act_RF, d_scores_NR, static_cast<cudaStream_t>(stream));
    } else {
      launch_backward<false, constant.value>(d_out_RD, w2_EFD, scores_R, row_tiles, gate_RF, up_RF,
                                             act_RF, d_scores_NR,
                                             static_cast<cudaStream_t>(stream));
    }
  });
}

}  // namespace dropless::cuda
