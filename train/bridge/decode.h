// The kernels between the products of a pass over one new token of each row (include/dropless/decode.h), on
// libtorch's tensors and its current stream.
#pragma once

#include <cstdint>

#include "train/bridge/torch.h"

namespace dropless::train {

// Whether they run for products of this type on this device, a GPU, and a model of these widths.
bool has_decode_kernels(at::ScalarType type, at::Device device, std::int64_t d_model,
                        std::int64_t head_dim);

struct DecodeNormTensors {
  bool rms = true;
  double eps = 1e-5;
  at::Tensor weight_D, bias_D;  // fp32; undefined: none
};

// x_BD (fp32) += y_BD, where that is defined; returns norm(x) in `type`.
at::Tensor decode_add_norm(const at::Tensor& x_BD, const at::Tensor& y_BD,
                           const DecodeNormTensors& norm, at::ScalarType type);

struct DecodeAttentionTensors {
  std::int64_t heads = 1, groups = 1, head_dim = 0;
  DecodeNormTensors q_norm, k_norm;
  double clip = 0;
  bool clip_after_norm = false;
  at::Tensor cos_PI, sin_PI;
  double scale = 1;
  double softcap = 0;
  std::int64_t window = -1;
  at::Tensor slopes_H;
};

// Writes keys and values of the rows' token into the cache [B, G, C, d], and returns what each query makes of
// those that it sees, [B, H d].
at::Tensor decode_attention(const DecodeAttentionTensors& attention, const at::Tensor& qkv_BN,
                            const at::Tensor& position_1, const at::Tensor& pads_B,
                            const at::Tensor& keys_BGCI, const at::Tensor& values_BGCI);

}  // namespace dropless::train
