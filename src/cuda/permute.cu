// Moving token rows to expert order and back. All three are limited by memory: every byte is read
// or written once, 16 at a time.
//
//   gather            x_RD[rows[t, k]] = x_TD[t]
//   combine           out_TD[t] (+)= sum_k w[t, k] y_RD[rows[t, k]]  in the order of k, fp32
//   combine_backward  d_y[rows[t, k]] = w[t, k] d_out[t];  d_w[t, k] = <y[rows[t, k]], d_out[t]>
#include <cuda_runtime.h>

#include <string>

#include "src/common/math.h"
#include "src/cuda/check.h"
#include "src/cuda/device/vector.cuh"
#include "src/cuda/kernels.h"

namespace dropless::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBatch = 8;  // loads of a thread in flight at a time

// A thread per vector of x: it is read once and written K times, streaming, since nothing of a large
// layer's rows stays in L2 until they are used.
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const uint4* x, std::int64_t pitch, const int* rows_TK, int top_k, int vectors,
                  std::int64_t total, uint4* out) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= total) return;
  const std::int64_t token = index / vectors;
  const auto at = static_cast<int>(index - token * vectors);
  const uint4 value = x[token * pitch + at];
  for (int k = 0; k < top_k; ++k) {
    const std::int64_t row = __ldg(rows_TK + token * top_k + k);
    if (row >= 0) __stcs(out + row * vectors + at, value);
  }
}

// A thread sums kItems vectors of the output, kThreads apart, so that small K too has kBatch loads
// in flight. `total`: vectors of the whole output; `pitch`: from one of its rows to the next. With
// kDropped entries of rows_TK may be -1.
template <class Element, int kItems, bool kDropped>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const uint4* y, const float* weights_TK, const int* rows_TK, int top_k,
                   int vectors, std::int64_t total, bool add, std::int64_t pitch, uint4* out) {
  constexpr int kPer = kPerVector<Element>;
  constexpr int kRows = kBatch / kItems;
  const std::int64_t first =
      static_cast<std::int64_t>(blockIdx.x) * (kThreads * kItems) + threadIdx.x;
  std::int64_t entry[kItems];  // of rows_TK and weights_TK
  uint4* place[kItems];        // in out
  int at[kItems];
  float sum[kItems][kPer] = {};
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const std::int64_t index = min(first + i * kThreads, total - 1);
    const std::int64_t token = index / vectors;
    entry[i] = token * top_k;
    at[i] = static_cast<int>(index - token * vectors);
    place[i] = out + token * pitch + at[i];
    if (add) to_floats(*place[i], sum[i], Element{});
  }
  for (int done = 0; done < top_k; done += kRows) {
    uint4 raw[kItems][kRows];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (done + r < top_k) {
          const std::int64_t row = __ldg(rows_TK + entry[i] + done + r);
          raw[i][r] =
              kDropped && row < 0 ? make_uint4(0, 0, 0, 0) : __ldg(y + row * vectors + at[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (done + r < top_k) {
          const float weight =
              weights_TK == nullptr ? 1.0f : __ldg(weights_TK + entry[i] + done + r);
          float value[kPer];
          to_floats(raw[i][r], value, Element{});
#pragma unroll
          for (int j = 0; j < kPer; ++j) sum[i][j] = fmaf(weight, value[j], sum[i][j]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (first + i * kThreads < total) *place[i] = from_floats(sum[i], Element{});
  }
}

// A warp per token.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    combine_backward_kernel(const uint4* y, const float* weights_TK, const int* rows_TK,
                            const uint4* d_out, std::int64_t tokens, int top_k, int vectors,
                            uint4* d_y, float* d_weights_TK) {
  constexpr int kPer = kPerVector<Element>;
  const std::int64_t token =
      static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (token >= tokens) return;
  for (int first = 0; first < top_k; first += kBatch) {
    float dot[kBatch] = {};
    for (int at = lane; at < vectors; at += 32) {
      float gradient[kPer];
      to_floats(__ldg(d_out + token * vectors + at), gradient, Element{});
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i < top_k) {
          const std::int64_t row = __ldg(rows_TK + token * top_k + first + i);
          const float weight = __ldg(weights_TK + token * top_k + first + i);
          float value[kPer], scaled[kPer];
          to_floats(y[row * vectors + at], value, Element{});
#pragma unroll
          for (int j = 0; j < kPer; ++j) {
            dot[i] = fmaf(value[j], gradient[j], dot[i]);
            scaled[j] = weight * gradient[j];
          }
          d_y[row * vectors + at] = from_floats(scaled, Element{});
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      for (int step = 16; step > 0; step /= 2) dot[i] += __shfl_xor_sync(0xffffffff, dot[i], step);
      if (lane == 0 && first + i < top_k) d_weights_TK[token * top_k + first + i] = dot[i];
    }
  }
}

// Vectors of 16 bytes in a row of `width` elements.
int vectors_of(std::int64_t width, DType dtype, const char* op) {
  const std::int64_t bytes = width * static_cast<std::int64_t>(dtype_bytes(dtype));
  if (bytes % 16 != 0) {
    throw Error(ErrorKind::kInvalidArgument,
                std::string(op) + ": rows of " + std::to_string(width) + " " + dtype_name(dtype) +
                    " are not a multiple of 16 bytes",
                "use a width that is a multiple of 8", __FILE__, __LINE__);
  }
  return static_cast<int>(bytes / 16);
}

// Vectors from one row of a matrix to the next.
std::int64_t pitch_of(const ConstTensorView& matrix) {
  return matrix.stride[0] * static_cast<std::int64_t>(dtype_bytes(matrix.dtype)) / 16;
}

template <class Launch>
void for_element(DType dtype, const char* op, Launch launch) {
  switch (dtype) {
    case DType::kBFloat16:
      return launch(__nv_bfloat16{});
    case DType::kFloat16:
      return launch(__half{});
    case DType::kFloat32:
      return launch(float{});
    default:
      throw Error(ErrorKind::kInvalidArgument,
                  std::string(op) + ": no CUDA kernel for " + dtype_name(dtype),
                  "use bfloat16, float16 or float32", __FILE__, __LINE__);
  }
}

}  // namespace

void gather(ConstTensorView x_TD, const std::int32_t* rows_TK, std::int64_t top_k, TensorView x_RD,
            Stream stream) {
  const std::int64_t tokens = x_TD.shape[0];
  const int vectors = vectors_of(x_TD.shape[1], x_TD.dtype, "gather");
  if (tokens == 0 || top_k == 0 || vectors == 0) return;
  const std::int64_t total = tokens * vectors;
  const auto blocks = static_cast<unsigned>(ceil_div(total, kThreads));
  gather_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const uint4*>(x_TD.data), pitch_of(x_TD), rows_TK, static_cast<int>(top_k),
      vectors, total, static_cast<uint4*>(x_RD.data));
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

void combine(ConstTensorView y_RD, const float* weights_TK, const std::int32_t* rows_TK,
             std::int64_t top_k, bool add, TensorView out_TD, Stream stream, bool dropped) {
  const std::int64_t tokens = out_TD.shape[0];
  const int vectors = vectors_of(out_TD.shape[1], out_TD.dtype, "combine");
  if (tokens == 0 || vectors == 0) return;
  const std::int64_t total = tokens * vectors;
  for_element(out_TD.dtype, "combine", [&](auto element) {
    const auto launch_as = [&]<int kItems, bool kDropped>() {
      combine_kernel<decltype(element), kItems, kDropped>
          <<<static_cast<unsigned>(ceil_div(total, kThreads * kItems)), kThreads, 0,
             static_cast<cudaStream_t>(stream)>>>(
              static_cast<const uint4*>(y_RD.data), weights_TK, rows_TK, static_cast<int>(top_k),
              vectors, total, add, pitch_of(out_TD), static_cast<uint4*>(out_TD.data));
    };
    const auto launch = [&]<int kItems>() {
      dropped ? launch_as.template operator()<kItems, true>()
              : launch_as.template operator()<kItems, false>();
    };
    if (top_k <= 2) {
      launch.template operator()<4>();
    } else if (top_k <= 4) {
      launch.template operator()<2>();
    } else {
      launch.template operator()<1>();
    }
  });
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

void combine_backward(ConstTensorView y_RD, const float* weights_TK, const std::int32_t* rows_TK,
                      std::int64_t top_k, ConstTensorView d_out_TD, TensorView d_y_RD,
                      float* d_weights_TK, Stream stream) {
  const std::int64_t tokens = d_out_TD.shape[0];
  const int vectors = vectors_of(d_out_TD.shape[1], d_out_TD.dtype, "combine_backward");
  if (tokens == 0) return;
  const auto blocks = static_cast<unsigned>((tokens + kThreads / 32 - 1) / (kThreads / 32));
  for_element(d_out_TD.dtype, "combine_backward", [&](auto element) {
    combine_backward_kernel<decltype(element)>
        <<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<const uint4*>(y_RD.data), weights_TK, rows_TK,
            static_cast<const uint4*>(d_out_TD.data), tokens, static_cast<int>(top_k), vectors,
            static_cast<uint4*>(d_y_RD.data), d_weights_TK);
  });
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
