// Rungs 7 and 8: the shipped main loop (src/cuda/device/gemm.cuh), without and with its cluster.
//
// Rung 7: one CTA an SM stays for the whole product and walks the tiles in bands, which keeps the tiles
// in flight a near-square in L2; the loader is already in the next tile while this one is stored, and a
// finished tile goes out, by the copy engine, in pieces between the slices of the next.
// Rung 8: two CTAs with neighbouring rows of one expert load half of w each and multicast it to both.
#include "dropless/view.h"
#include "examples/ladder/ladder.h"
#include "src/cuda/device/gemm.cuh"
#include "src/cuda/launch.cuh"
#include "src/cuda/operands.cuh"

namespace dropless::ladder {
namespace {

constexpr Device kGpu{DeviceType::kCuda, 0};

template <int kClusterM>
void launch(const Problem& p, cudaStream_t stream) {
  using namespace cuda;
  using Tile = Tile<128, 256, 4, 2, kClusterM, 1, Major::kK, Major::kK>;
  using Schedule = RowTileSchedule<Tile>;
  using Epilogue = StoreEpilogue<Tile, __nv_bfloat16, StoreMode::kOverwrite>;
  constexpr int kBand = 8;  // clusters along the rows
  const ConstTensorView x(p.x_RK, DType::kBFloat16, {p.rows, p.k}, kGpu);
  const ConstTensorView w(p.w_ENK, DType::kBFloat16, {p.experts, p.n, p.k}, kGpu);
  const TensorView out(p.out_RN, DType::kBFloat16, {p.rows, p.n}, kGpu);
  launch_persistent(gemm_kernel<Tile, Schedule, Epilogue>, kGemmThreads, Tile::kSharedBytes,
                    Tile::kCluster, row_tile_bound<Tile>(p.rows, p.experts, p.n), stream,
                    one_term(row_operand<Tile>(x), weight_operand<Tile>(w)),
                    row_tile_schedule<Tile>(p.row_tiles, p.n, p.k, kBand),
                    typename Epilogue::Params{row_output<__nv_bfloat16>(out), {}});
}

}  // namespace

void persistent(const Problem& problem, cudaStream_t stream) { launch<1>(problem, stream); }
void cluster(const Problem& problem, cudaStream_t stream) { launch<2>(problem, stream); }

}  // namespace dropless::ladder
