// Up projection with the activation in its epilogue on Hopper.
#pragma once

#include "src/cuda/activations.cuh"
#include "src/cuda/check.h"
#include "src/cuda/device/epilogue_activation.cuh"
#include "src/cuda/device/gemm.cuh"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"
#include "src/cuda/operands.cuh"

namespace dropless::cuda::sm90_activation {

struct Arguments {
  ConstTensorView x;
  const std::int32_t* list_R;  // or null
  ConstTensorView w1_EFD, v1_EFD;
  const void* row_tiles;
  TensorView gate_RF, up_RF, act_RF;
  cudaStream_t stream;
  ConstTensorView b1_EF, bv1_EF;  // with kBias
};

template <class Element, bool kBias, bool kGather, bool kGlu, DeviceActivation kActivation>
void launch(const Arguments& x) {
  constexpr int kRasterWidth = 8;
  using UpTile =
      Tile<128, 256, 4, 2, 2, 1, Major::kK, Major::kK, kGlu ? 2 : 1, 1, kGather, Element>;
  using Schedule = RowTileSchedule<UpTile>;
  using Epilogue = ActivationEpilogue<UpTile, kActivation, kBias>;
  const std::int64_t rows = x.act_RF.shape[0], d = x.x.shape[1], f = x.act_RF.shape[1];
  const CUtensorMap map_w1 = weight_operand<UpTile>(x.w1_EFD);
  Operands operands =
      kGather ? gathered(x.x, x.list_R, map_w1) : one_term(row_operand<UpTile>(x.x), map_w1);
  if (kGlu) operands.b[1] = weight_operand<UpTile>(x.v1_EFD);
  typename Epilogue::Params epilogue{};
  epilogue.act = row_output<Element>(x.act_RF);
  epilogue.save = static_cast<bool>(x.gate_RF);
  if (epilogue.save) {
    epilogue.gate = row_output<Element>(x.gate_RF);
    if (kGlu) epilogue.up = row_output<Element>(x.up_RF);
  }
  if constexpr (kBias) {
    epilogue.bias[0] = expert_bias<Element>(x.b1_EF);
    if constexpr (kGlu) epilogue.bias[1] = expert_bias<Element>(x.bv1_EF);
  }
  launch_persistent(gemm_kernel<UpTile, Schedule, Epilogue>, kGemmThreads, UpTile::kSharedBytes,
                    UpTile::kCluster, row_tile_bound<UpTile>(rows, x.w1_EFD.shape[0], f), x.stream,
                    operands, row_tile_schedule<UpTile>(x.row_tiles, f, d, kRasterWidth), epilogue);
}

template <class Element, bool kBias>
void run(Activation activation, const Arguments& x) {
  for_activation(activation, [&](auto constant) {
    constexpr DeviceActivation kActivation = constant.value;
    if (x.list_R != nullptr) {
      x.v1_EFD ? launch<Element, kBias, true, true, kActivation>(x)
               : launch<Element, kBias, true, false, kActivation>(x);
    } else {
      x.v1_EFD ? launch<Element, kBias, false, true, kActivation>(x)
               : launch<Element, kBias, false, false, kActivation>(x);
    }
  });
}

// Each in a file of its own: they build in parallel.
extern template void run<__nv_bfloat16, true>(Activation, const Arguments&);
extern template void run<__half, false>(Activation, const Arguments&);
extern template void run<__half, true>(Activation, const Arguments&);

}  // namespace dropless::cuda::sm90_activation
