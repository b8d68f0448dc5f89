// The router's products on the grouped main loop: logits = x Wr^T, d_x = d_logits Wr, d_router =
// d_logits^T x. They have one "expert", all tokens, and hardly any arithmetic: x's bytes decide.
//
// d_logits are fp32. Each enters the tensor cores as the sum of two numbers of x's type, hi + lo, side
// by side along the experts' axis: [T, 2 P] with P the padded number of experts.
//
//   d_x       = [hi | lo] [Wr; Wr]                      k runs over 2 P
//   d_router  = sum over chunks of tokens, in order, of (hi^T x + lo^T x)
//
// Hopper has one kernel for both (device/router_gradients.cuh) as long as the experts fit it. Elsewhere the chunks of tokens
// pose as experts of the main loop, since one expert would give too few tiles.
#include <cuda_runtime.h>

#include <algorithm>

#include "src/common/math.h"
#include "src/common/workspace.h"
#include "src/cuda/check.h"
#include "src/cuda/device/scheduler.cuh"
#include "src/cuda/element.h"
#include "src/cuda/kernels.h"
#include "src/cuda/path.h"

namespace dropless::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockM = 128;
constexpr std::int64_t kMaxChunks = 64;
constexpr std::int64_t kClusters = 66;  // of two CTAs, on 132 multiprocessors

// Row tiles of one expert that owns all tokens.
__global__ void __launch_bounds__(kThreads)
    all_tokens_kernel(std::int64_t tokens, int* count, RowTile* tiles) {
  const std::int64_t tile = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t row = tile * kBlockM;
  if (tile == 0) *count = static_cast<int>((tokens + kBlockM - 1) / kBlockM);
  if (row < tokens) {
    tiles[tile] = {0, static_cast<int>(row),
                   static_cast<int>(min(tokens - row, std::int64_t{kBlockM})), 0};
  }
}

// [hi | lo] of each token, zeros between E and P; and where each chunk of tokens begins.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    split_kernel(const float* d_logits_TP, std::int64_t tokens, int experts, int pitch,
                 std::int64_t chunk, int chunks, Element* split_T2P, std::int64_t* chunk_offsets) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i <= chunks) chunk_offsets[i] = min(i * chunk, tokens);
  if (i >= tokens * pitch) return;
  const std::int64_t token = i / pitch;
  const int expert = static_cast<int>(i - token * pitch);
  const float value = expert < experts ? d_logits_TP[i] : 0.0f;
  const Element hi = static_cast<Element>(value);
  Element* out = split_T2P + token * 2 * pitch + expert;
  out[0] = hi;
  out[pitch] = static_cast<Element>(value - static_cast<float>(hi));
}

// [Wr; Wr], each padded to P rows with zeros. `vectors` of 16 bytes a row.
__global__ void __launch_bounds__(kThreads)
    stack_kernel(const uint4* router_ED, int experts, int pitch, int vectors, uint4* stacked_2PD) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= static_cast<std::int64_t>(pitch) * vectors) return;
  const uint4 value =
      i < static_cast<std::int64_t>(experts) * vectors ? router_ED[i] : make_uint4(0, 0, 0, 0);
  stacked_2PD[i] = value;
  stacked_2PD[i + static_cast<std::int64_t>(pitch) * vectors] = value;
}

// `parts` of `part` elements each, of which the first `elements` count.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(const float* partials_SPD, int parts, std::int64_t part, std::int64_t elements,
                     Element* out_ED) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int s = 0; s < parts; ++s) sum += partials_SPD[s * part + i];
  out_ED[i] = static_cast<Element>(sum);
}

unsigned blocks_for(std::int64_t threads) {
  return static_cast<unsigned>(ceil_div(threads, kThreads));
}

struct Buffers {
  void* row_tiles;
  void* split_T2P;  // x's type
  void* stacked_2PD;
  std::int64_t* chunk_offsets;
  float* partials_SPD;  // two of each chunk where hi and lo are summed apart
};

bool in_one_pass(std::int64_t experts) {
  return !portable_path() && experts <= sm90::kMostRouterExperts;
}

// Enough chunks for one wave of clusters.
std::int64_t chunk_count(std::int64_t tokens, std::int64_t d_model, std::int64_t pitch) {
  const GemmConfig config = choose_weight_grad(d_model);
  const std::int64_t clusters = ceil_div(2 * pitch, config.block_m * config.cluster_m) *
                                ceil_div(d_model, config.block_n * config.cluster_n);
  const std::int64_t wanted =
      std::clamp(ceil_div(kClusters, clusters), std::int64_t{1}, kMaxChunks);
  return std::clamp(ceil_div(tokens, std::int64_t{64}), std::int64_t{1}, wanted);
}

Buffers carve(WorkspaceCarver& carver, std::int64_t tokens, std::int64_t d_model,
              std::int64_t experts) {
  const std::int64_t pitch = router_pitch(experts);
  const std::int64_t chunks = chunk_count(tokens, d_model, pitch);
  const std::int64_t parts =
      std::max(2 * chunks, sm90::router_gradient_chunks(tokens, d_model, experts));
  return {.row_tiles = carver.take_bytes(row_tiles_bytes(tokens, 1, kBlockM)),
          .split_T2P = carver.take<std::uint16_t>(tokens * 2 * pitch),
          .stacked_2PD = carver.take<std::uint16_t>(2 * pitch * d_model),
          .chunk_offsets = carver.take<std::int64_t>(chunks + 1),
          .partials_SPD = carver.take<float>(parts * pitch * d_model)};
}

Buffers carve(void* workspace, const ConstTensorView& x_TD, const ConstTensorView& router_ED) {
  WorkspaceCarver carver(workspace, 0);
  return carve(carver, x_TD.shape[0], x_TD.shape[1], router_ED.shape[0]);
}

// One expert's view of the router: [1, E, D].
ConstTensorView as_one_expert(const void* data, DType dtype, std::int64_t rows, std::int64_t width,
                              Device device) {
  return {data, dtype, {1, rows, width}, device};
}

void tile_all_tokens(std::int64_t tokens, void* row_tiles, cudaStream_t stream) {
  auto* count = static_cast<int*>(row_tiles);
  all_tokens_kernel<<<blocks_for(ceil_div(tokens, kBlockM)), kThreads, 0, stream>>>(
      tokens, count, reinterpret_cast<RowTile*>(count + 4));
}

}  // namespace

std::size_t router_workspace_bytes(std::int64_t num_tokens, std::int64_t d_model,
                                   std::int64_t num_experts) {
  WorkspaceCarver carver;
  carve(carver, num_tokens, d_model, num_experts);
  return carver.used();
}

void router_logits(ConstTensorView x_TD, ConstTensorView router_ED, float* logits_TP,
                   void* workspace, Stream stream) {
  const std::int64_t T = x_TD.shape[0], D = x_TD.shape[1], E = router_ED.shape[0];
  if (T == 0) return;
  const Buffers buffers = carve(workspace, x_TD, router_ED);
  tile_all_tokens(T, buffers.row_tiles, static_cast<cudaStream_t>(stream));
  TensorView logits(logits_TP, DType::kFloat32, {T, E}, x_TD.device);
  logits.stride[0] = router_pitch(E);
  grouped_gemm(x_TD, as_one_expert(router_ED.data, x_TD.dtype, E, D, x_TD.device), false,
               buffers.row_tiles, logits, choose_grouped_gemm(E), stream);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

void router_backward(ConstTensorView x_TD, ConstTensorView router_ED, const float* d_logits_TP,
                     TensorView d_x_TD, TensorView d_router_ED, void* workspace, Stream stream) {
  const std::int64_t T = x_TD.shape[0], D = x_TD.shape[1], E = router_ED.shape[0];
  const std::int64_t P = router_pitch(E);
  const bool one_pass = in_one_pass(E) && T > 0;
  const std::int64_t chunks =
      one_pass ? sm90::router_gradient_chunks(T, D, E) : chunk_count(T, D, P);
  const std::int64_t chunk = round_up(ceil_div(T, chunks), 64);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const Buffers buffers = carve(workspace, x_TD, router_ED);
  const Device device = x_TD.device;

  for_16_bit(x_TD.dtype, "router_backward", [&](auto element) {
    split_kernel<<<blocks_for(std::max(T * P, chunks + 1)), kThreads, 0, cuda_stream>>>(
        d_logits_TP, T, static_cast<int>(E), static_cast<int>(P), chunk, static_cast<int>(chunks),
        static_cast<decltype(element)*>(buffers.split_T2P), buffers.chunk_offsets);
  });
  const ConstTensorView split(buffers.split_T2P, x_TD.dtype, {T, 2 * P}, device);
  if (one_pass) {
    sm90::router_gradients(x_TD, router_ED, buffers.split_T2P, chunk, chunks, d_x_TD,
                           buffers.partials_SPD, stream);
  } else {
    grouped_gemm_weight_grad(split, x_TD, buffers.chunk_offsets,
                             {buffers.partials_SPD, DType::kFloat32, {chunks, 2 * P, D}, device},
                             false, choose_weight_grad(D), stream);
  }
  for_16_bit(x_TD.dtype, "router_backward", [&](auto element) {
    sum_parts_kernel<<<blocks_for(E * D), kThreads, 0, cuda_stream>>>(
        buffers.partials_SPD, static_cast<int>(one_pass ? chunks : 2 * chunks), P * D, E * D,
        static_cast<decltype(element)*>(d_router_ED.data));
  });

  if (T > 0 && !one_pass) {
    stack_kernel<<<blocks_for(P * (D / 8)), kThreads, 0, cuda_stream>>>(
        static_cast<const uint4*>(router_ED.data), static_cast<int>(E), static_cast<int>(P),
        static_cast<int>(D / 8), static_cast<uint4*>(buffers.stacked_2PD));
    tile_all_tokens(T, buffers.row_tiles, cuda_stream);
    grouped_gemm(split, as_one_expert(buffers.stacked_2PD, x_TD.dtype, 2 * P, D, device), true,
                 buffers.row_tiles, d_x_TD, choose_grouped_gemm(D), stream);
  }
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
