// 16-byte vectors of tensor elements and their conversion to fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace dropless::cuda {

template <class Element>
inline constexpr int kPerVector = 16 / sizeof(Element);

__device__ __forceinline__ void to_floats(const uint4& raw, float (&out)[4], float) {
  out[0] = __uint_as_float(raw.x);
  out[1] = __uint_as_float(raw.y);
  out[2] = __uint_as_float(raw.z);
  out[3] = __uint_as_float(raw.w);
}
__device__ __forceinline__ void to_floats(const uint4& raw, float (&out)[8], __nv_bfloat16) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void to_floats(const uint4& raw, float (&out)[8], __half) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i])));
    out[2 * i + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i] >> 16)));
  }
}

__device__ __forceinline__ uint4 from_floats(const float (&in)[4], float) {
  return make_uint4(__float_as_uint(in[0]), __float_as_uint(in[1]), __float_as_uint(in[2]),
                    __float_as_uint(in[3]));
}
__device__ __forceinline__ uint4 from_floats(const float (&in)[8], __nv_bfloat16) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(in[2 * i + 1]), "f"(in[2 * i]));
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}
__device__ __forceinline__ uint4 from_floats(const float (&in)[8], __half) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(in[2 * i + 1]), "f"(in[2 * i]));
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace dropless::cuda
