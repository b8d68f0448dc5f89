// A pass over one new token of each row, as when text is generated: its dense products, and what
// stands between products. On a GPU such a pass takes as long as its weights take to be read, and
// each kernel's start and end on top. So what stands between two products is one kernel, and all of
// these begin while the one before them ends; a product has then read the first of its weights.
//
//   decode_product     out = x w^T + bias
//   decode_add_norm    x += y;  out = norm(x)
//   decode_attention   q, k and v as one product left them: clip, norm, clip, RoPE; k and v go into
//                      the cache; out_h = sum_j softmax_j(s_hj) v_j over the places j of the cache
//                      that are seen
//
//   norm(x) = weight x / sqrt(mean(x^2) + eps)                    RMSNorm (arXiv:1910.07467)
//           = weight (x - mean(x)) / sqrt(var(x) + eps) + bias    LayerNorm (arXiv:1607.06450)
//   RoPE    x'_i = x_i cos_i - x_{i + d/2} sin_i,   x'_{i + d/2} = x_{i + d/2} cos_i + x_i sin_i
//           (arXiv:2104.09864; halves, not neighbours), the tables' row being the token's position
//   s_hj    scale <q_h, k_j>, as c tanh(s / c) with a cap c, plus slope_h (j - position) (ALiBi,
//           arXiv:2108.12409)
//
// Seen are the places j <= position, with a window W j >= position - W, and with padding
// j >= pads[b]; the token's own always.
//
// Shapes: B rows, N columns of a product over K, D model width, H heads in G groups that share keys
// and values (H a multiple of G), d head width (even, up to kDecodeMostHeadDim), C places of the
// cache, P rows of RoPE's tables (at least C). Types: a norm's x, norms' weights, biases, tables and
// slopes fp32; the others one of bf16 and fp16, on a CPU fp32 too. position_1 int64 [1] below C,
// where a GPU's kernels find it when they run; pads_B int64 [B]. All contiguous. On a GPU nothing
// waits or allocates, and a CUDA graph may hold the calls; d is a multiple of 8, D of 4 up to
// kDecodeMostWidth, B of a product up to kDecodeMostRows, N up to kDecodeMostColumns and K a
// multiple of 8 up to kDecodeMostInputs; tensors begin at multiples of 16 bytes, and no op of this
// library that is queued before writes weights. Throws Error(kInvalidArgument) naming the tensor and
// the shapes. On a CPU these are plain loops, to check with.
#pragma once

#include <cstdint>
#include <string>

#include "dropless/backend.h"
#include "dropless/view.h"

namespace dropless {

inline constexpr std::int64_t kDecodeMostHeadDim = 256;
// On a GPU:
inline constexpr std::int64_t kDecodeHeadDimMultiple = 8;
inline constexpr std::int64_t kDecodeMostWidth = 16384;      // D
inline constexpr std::int64_t kDecodeMostRows = 8;           // B of a product
inline constexpr std::int64_t kDecodeMostColumns = 1 << 30;  // N
inline constexpr std::int64_t kDecodeMostInputs = 49152;     // K

// Why the ops cannot run on tensors of this type there; empty where they can.
std::string decode_unsupported(DType dtype, Device device);

// Whether decode_product() is faster than cuBLAS in a row of such kernels, where that was measured: on
// Hopper one row, and more of narrow products (docs/benchmarks.md).
bool decode_product_pays(std::int64_t rows, std::int64_t columns, Device device);

// x_BK [B, K], w_NK [N, K], out_BN [B, N]; bias_N [N], fp32, may be absent.
void decode_product(ConstTensorView x_BK, ConstTensorView w_NK, ConstTensorView bias_N,
                    TensorView out_BN, Stream stream = nullptr);

// weight_D absent: no norm. bias_D: of LayerNorm, may be absent.
struct DecodeNorm {
  bool rms = true;
  double eps = 1e-5;
  ConstTensorView weight_D, bias_D;
};

// y_BD may be absent. x_BD, out_BD [B, D].
void decode_add_norm(TensorView x_BD, ConstTensorView y_BD, const DecodeNorm& norm,
                     TensorView out_BD, Stream stream = nullptr);

struct DecodeAttention {
  std::int64_t heads = 1, groups = 1, head_dim = 0;
  // Weights [d]: over each head; of all heads' width: over all of them together.
  DecodeNorm q_norm{}, k_norm{};
  double clip = 0;                     // of q, k and v to [-clip, clip]; 0: off
  bool clip_after_norm = false;        // else before it
  ConstTensorView cos_PI{}, sin_PI{};  // [P, d / 2]; absent: no RoPE
  double scale = 1;
  double softcap = 0;          // c; 0: off
  std::int64_t window = -1;    // W; -1: off
  ConstTensorView slopes_H{};  // absent: no ALiBi
};

// qkv_BN [B, (H + 2 G) d]: the rows of q, then of k, then of v. keys and values [B, G, C, d], of which the place
// position_1 is written and those before it are read; pads_B may be absent. out_BHI [B, H, d].
void decode_attention(const DecodeAttention& attention, ConstTensorView qkv_BN,
                      ConstTensorView position_1, ConstTensorView pads_B, TensorView keys_BGCI,
                      TensorView values_BGCI, TensorView out_BHI, Stream stream = nullptr);

}  // namespace dropless
