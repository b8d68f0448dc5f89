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

template <bool kGather, bool kGlu, DeviceActivation kActivation>
void launch_forward(const ConstTensorView& x, const std::int32_t* list_R,
                    const ConstTensorView& w1_EFD, const ConstTensorView& v1_EFD,
                    const void* row_tiles, const TensorView& gate_RF, const TensorView& up_RF,
                    const TensorView& act_RF, cudaStream_t stream) {
  using UpTile = Tile<128, 256, 4, 2, 2, 1, Major::kK, Major::kK, kGlu ? 2 : 1, 1, kGather>;
  using Schedule = RowTileSchedule<UpTile>;
  using Epilogue = ActivationEpilogue<UpTile, kActivation>;
  const std::int64_t rows = act_RF.shape[0], d = x.shape[1], f = act_RF.shape[1];
  const CUtensorMap map_w1 = weight_operand<UpTile>(w1_EFD);
  Operands operands =
      kGather ? gathered(x, list_R, map_w1) : one_term(row_operand<UpTile>(x), map_w1);
  if (kGlu) operands.b[1] = weight_operand<UpTile>(v1_EFD);
  typename Epilogue::Params epilogue{};
  epilogue.act = row_output<__nv_bfloat16>(act_RF);
  epilogue.save = static_cast<bool>(gate_RF);
  if (epilogue.save) {
    epilogue.gate = row_output<__nv_bfloat16>(gate_RF);
    if (kGlu) epilogue.up = row_output<__nv_bfloat16>(up_RF);
  }
  launch_persistent(gemm_kernel<UpTile, Schedule, Epilogue>, kGemmThreads, UpTile::kSharedBytes,
                    UpTile::kCluster, row_tile_bound<UpTile>(rows, w1_EFD.shape[0], f), stream,
                    operands, row_tile_schedule<UpTile>(row_tiles, f, d, kRasterWidth), epilogue);
}

template <bool kGlu, DeviceActivation kActivation>
void launch_backward(const ConstTensorView& d_out_TD, const std::int32_t* tokens_R,
                     const ConstTensorView& w2_EFD, const float* scores_R, const void* row_tiles,
                     const TensorView& gate_RF, const TensorView& up_RF, const TensorView& act_RF,
                     float* d_scores_NR, cudaStream_t stream) {
  using GradTile = Tile<128, kActivationGradColumns, 4, 2, 2, 1, Major::kK, Major::kK, 1, 1, true>;
  using Schedule = RowTileSchedule<GradTile>;
  using Epilogue = ActivationGradEpilogue<GradTile, kActivation, kGlu>;
  const std::int64_t rows = act_RF.shape[0], d = d_out_TD.shape[1], f = act_RF.shape[1];
  const auto whole_rows = [&](const TensorView& plane) {
    return make_tensor_map({.data = plane.data,
                            .dims = {f, rows, 1},
                            .row_pitch = plane.stride[0],
                            .box = {64, GradTile::kBlockM}});
  };
  typename Epilogue::Params epilogue{};
  epilogue.load_gate = whole_rows(gate_RF);
  epilogue.gate = row_output<__nv_bfloat16>(gate_RF);
  if (kGlu) {
    epilogue.load_up = whole_rows(up_RF);
    epilogue.up = row_output<__nv_bfloat16>(up_RF);
  }
  epilogue.act = row_output<__nv_bfloat16>(act_RF);
  epilogue.scores_R = scores_R;
  epilogue.d_scores_NR = d_scores_NR;
  epilogue.rows = rows;
  launch_persistent(gemm_kernel<GradTile, Schedule, Epilogue>, kGemmThreads, GradTile::kSharedBytes,
                    GradTile::kCluster, row_tile_bound<GradTile>(rows, w2_EFD.shape[0], f), stream,
                    gathered(d_out_TD, tokens_R, weight_operand<GradTile>(w2_EFD)),
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

void grouped_gemm_activation(Activation activation, ConstTensorView x, const std::int32_t* list_R,
                             ConstTensorView w1_EFD, ConstTensorView v1_EFD, const void* row_tiles,
                             TensorView gate_RF, TensorView up_RF, TensorView act_RF,
                             Stream stream) {
  if (act_RF.numel() == 0) return;
  for_activation(activation, [&](auto constant) {
    const auto launch = [&]<bool kGather, bool kGlu>() {
      launch_forward<kGather, kGlu, constant.value>(x, list_R, w1_EFD, v1_EFD, row_tiles, gate_RF,
                                                    up_RF, act_RF,
                                                    static_cast<cudaStream_t>(stream));
    };
    if (list_R != nullptr) {
      v1_EFD ? launch.template operator()<true, true>() : launch.template operator()<true, false>();
    } else {
      v1_EFD ? launch.template operator()<false, true>()
             : launch.template operator()<false, false>();
    }
  });
}

void grouped_gemm_activation_grad(Activation activation, ConstTensorView d_out_TD,
                                  const std::int32_t* tokens_R, ConstTensorView w2_EFD,
                                  const float* scores_R, const void* row_tiles, TensorView gate_RF,
                                  TensorView up_RF, TensorView act_RF, float* d_scores_NR,
                                  Stream stream) {
  if (act_RF.numel() == 0) return;
  for_activation(activation, [&](auto constant) {
    const auto launch = [&]<bool kGlu>() {
      launch_backward<kGlu, constant.value>(d_out_TD, tokens_R, w2_EFD, scores_R, row_tiles,
                                            gate_RF, up_RF, act_RF, d_scores_NR,
                                            static_cast<cudaStream_t>(stream));
    };
    up_RF ? launch.template operator()<true>() : launch.template operator()<false>();
  });
}

}  // namespace dropless::cuda
