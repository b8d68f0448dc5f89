#include "train/bridge/decode.h"

#include "dropless/decode.h"
#include "train/bridge/device.h"
#include "train/bridge/views.h"

namespace dropless::train {
namespace {

DecodeNorm view_of(const DecodeNormTensors& norm) {
  return {norm.rms, norm.eps, train::view_of(norm.weight_D), train::view_of(norm.bias_D)};
}

}  // namespace

bool has_decode_kernels(at::ScalarType type, at::Device device, std::int64_t d_model,
                        std::int64_t head_dim) {
  const bool fits = d_model % 4 == 0 && d_model <= kDecodeMostWidth &&
                    head_dim % kDecodeHeadDimMultiple == 0 && head_dim <= kDecodeMostHeadDim;
  return fits && device.is_cuda() && decode_unsupported(dtype_of(type), device_of(device)).empty();
}

at::Tensor decode_add_norm(const at::Tensor& x_BD, const at::Tensor& y_BD,
                           const DecodeNormTensors& norm, at::ScalarType type) {
  at::Tensor out_BD = at::empty(x_BD.sizes(), x_BD.options().dtype(type));
  dropless::decode_add_norm(train::view_of(x_BD), train::view_of(y_BD), view_of(norm),
                            train::view_of(out_BD), current_stream(x_BD.device()));
  return out_BD;
}

at::Tensor decode_attention(const DecodeAttentionTensors& attention, const at::Tensor& qkv_BN,
                            const at::Tensor& position_1, const at::Tensor& pads_B,
                            const at::Tensor& keys_BGCI, const at::Tensor& values_BGCI) {
  const DecodeAttentionTensors& a = attention;
  const DecodeAttention views{a.heads,
                              a.groups,
                              a.head_dim,
                              view_of(a.q_norm),
                              view_of(a.k_norm),
                              a.clip,
                              a.clip_after_norm,
                              train::view_of(a.cos_PI),
                              train::view_of(a.sin_PI),
                              a.scale,
                              a.softcap,
                              a.window,
                              train::view_of(a.slopes_H)};
  const std::int64_t B = qkv_BN.size(0);
  at::Tensor out_BHI = at::empty({B, a.heads, a.head_dim}, qkv_BN.options());
  dropless::decode_attention(views, train::view_of(qkv_BN), train::view_of(position_1),
                             train::view_of(pads_B), train::view_of(keys_BGCI),
                             train::view_of(values_BGCI), train::view_of(out_BHI),
                             current_stream(qkv_BN.device()));
  return out_BHI.view({B, a.heads * a.head_dim});
}

}  // namespace dropless::train
