// What stands between the products of a pass over one token a row, a kernel each. All are short:
// what counts is that there are few, and the latency of each. Formulas: include/dropless/decode.h.
//
//   add_norm    a CTA a row, which it keeps in registers
//   attention   a CTA a head, with a long cache a cluster of up to eight, whose first puts the parts together.
//               Each norms and rotates its own query and its group's key; a norm over all heads is summed by
//               each of them. Warps take runs of keys in turns, eight lanes a key, which have a running maximum
//               and sum of their own (Milakov and Gimelshein 2018, arXiv:1805.02867) and are put together
//               at the end
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "src/common/decode_args.h"
#include "src/cuda/decode.cuh"
#include "src/cuda/decode.h"
#include "src/cuda/element.h"

namespace dropless::cuda {
namespace {

constexpr int kThreads = 512;  // of a row's norm
constexpr int kHeadThreads =
    256;  // of a head, or of a part of one: a multiprocessor has room for two
constexpr int kHeadWarps = kHeadThreads / 32;
constexpr int kKeyLanes = 8;   // of a key
constexpr int kMostParts = 8;  // of a head

// Two sums over all threads, in one order.
template <int kWarps>
__device__ __forceinline__ float2 block_sum(float2 x) {
  __shared__ float2 parts[kWarps];
  x = make_float2(warp_sum(x.x), warp_sum(x.y));
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum = make_float2(sum.x + parts[i].x, sum.y + parts[i].y);
  __syncthreads();
  return sum;
}

struct Norm {
  bool rms;
  float eps;
  const float *weight, *bias;
  int width;  // of what is normed together; 0: nothing is

  explicit Norm(const DecodeNorm& norm)
      : rms(norm.rms),
        eps(static_cast<float>(norm.eps)),
        weight(static_cast<const float*>(norm.weight_D.data)),
        bias(static_cast<const float*>(norm.bias_D.data)),
        width(static_cast<int>(norm.weight_D.shape[0])) {}
  __device__ __forceinline__ float apply(float x, float mean, float factor, int i) const {
    return weight[i] * ((x - mean) * factor) + (bias == nullptr ? 0.0f : bias[i]);
  }
};

// A thread has up to kVectors vectors of four numbers of the row.
template <class Element, int kVectors>
__global__ void __launch_bounds__(kThreads)
    add_norm_kernel(float* x_BD, const Element* y_BD, Norm norm, Element* out_BD) {
  const int vectors = norm.width / 4;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * norm.width;
  float4 weight[kVectors], x[kVectors];
  ptx::launch_dependents();
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int at = threadIdx.x + v * kThreads;
    weight[v] = at < vectors ? reinterpret_cast<const float4*>(norm.weight)[at]
                             : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  ptx::dependency_wait();
  float sum = 0.0f, square = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int at = threadIdx.x + v * kThreads;
    x[v] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (at >= vectors) continue;
    x[v] = reinterpret_cast<const float4*>(x_BD + begin)[at];
    if (y_BD != nullptr) {
      const float2 low = two_floats(y_BD + begin + 4 * at),
                   high = two_floats(y_BD + begin + 4 * at + 2);
      x[v] = make_float4(x[v].x + low.x, x[v].y + low.y, x[v].z + high.x, x[v].w + high.y);
      reinterpret_cast<float4*>(x_BD + begin)[at] = x[v];
    }
    sum += (x[v].x + x[v].y) + (x[v].z + x[v].w);
    square += (x[v].x * x[v].x + x[v].y * x[v].y) + (x[v].z * x[v].z + x[v].w * x[v].w);
  }
  const float share = 1.0f / static_cast<float>(norm.width);
  float mean = 0.0f;
  if (!norm.rms) {
    mean = block_sum<kThreads / 32>(make_float2(sum, 0.0f)).x * share;
    square = 0.0f;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (static_cast<int>(threadIdx.x) + v * kThreads >= vectors) continue;
      const float a = x[v].x - mean, b = x[v].y - mean, c = x[v].z - mean, d = x[v].w - mean;
      square += (a * a + b * b) + (c * c + d * d);
    }
  }
  const float factor =
      rsqrtf(block_sum<kThreads / 32>(make_float2(square, 0.0f)).x * share + norm.eps);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int at = threadIdx.x + v * kThreads;
    if (at >= vectors) continue;
    const float values[4] = {x[v].x, x[v].y, x[v].z, x[v].w};
    const float weights[4] = {weight[v].x, weight[v].y, weight[v].z, weight[v].w};
    Element* out = out_BD + begin + 4 * at;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float bias = norm.bias == nullptr ? 0.0f : norm.bias[4 * at + i];
      out[i] = element<Element>(weights[i] * ((values[i] - mean) * factor) + bias);
    }
  }
}

struct AttentionParams {
  int heads, groups, head_dim, places;
  Norm q_norm, k_norm;
  float clip;
  bool clip_after_norm;
  const float *cos, *sin;
  float scale, softcap;
  int window;
  const float* slopes;
  const std::int64_t *position, *pads;
};

__device__ __forceinline__ float clipped(float x, float limit) {
  return limit > 0.0f ? fminf(fmaxf(x, -limit), limit) : x;
}

// Mean (0 for RMSNorm) and 1 / root of what is normed together with head `head` of q and of k.
struct Moments {
  float2 mean, factor;  // of q, of k
};
template <class Element>
__device__ __forceinline__ Moments moments_of(const AttentionParams& p, const Element* q,
                                              const Element* k, int head, int group) {
  const float limit = p.clip_after_norm ? 0.0f : p.clip;
  const int d = p.head_dim;
  // Of one head, or of all.
  const Element* from_q = p.q_norm.width == d ? q + head * d : q;
  const Element* from_k = p.k_norm.width == d ? k + group * d : k;
  Moments m{make_float2(0.0f, 0.0f), make_float2(1.0f, 1.0f)};
  const auto sum_of = [&](const Element* from, int width, float mean, bool squares) {
    float sum = 0.0f;
    for (int i = 2 * threadIdx.x; i < width; i += 2 * kHeadThreads) {
      const float2 pair = two_floats(from + i);
      const float a = clipped(pair.x, limit) - mean, b = clipped(pair.y, limit) - mean;
      sum += squares ? a * a + b * b : a + b;
    }
    return sum;
  };
  const float2 share = make_float2(1.0f / static_cast<float>(p.q_norm.width),
                                   1.0f / static_cast<float>(p.k_norm.width));
  if (!p.q_norm.rms || !p.k_norm.rms) {
    const float2 sums = block_sum<kHeadWarps>(make_float2(
        sum_of(from_q, p.q_norm.width, 0.0f, false), sum_of(from_k, p.k_norm.width, 0.0f, false)));
    if (!p.q_norm.rms) m.mean.x = sums.x * share.x;
    if (!p.k_norm.rms) m.mean.y = sums.y * share.y;
  }
  const float2 squares =
      block_sum<kHeadWarps>(make_float2(sum_of(from_q, p.q_norm.width, m.mean.x, true),
                                        sum_of(from_k, p.k_norm.width, m.mean.y, true)));
  m.factor = make_float2(rsqrtf(squares.x * share.x + p.q_norm.eps),
                         rsqrtf(squares.y * share.y + p.k_norm.eps));
  return m;
}

// Element i of a head, `x`, before RoPE.
__device__ __forceinline__ float normed(const AttentionParams& p, const Norm& norm, float x,
                                        int head, int i, float mean, float factor) {
  if (!p.clip_after_norm) x = clipped(x, p.clip);
  if (norm.width > 0) {
    x = norm.apply(x, mean, factor, norm.width == p.head_dim ? i : head * p.head_dim + i);
  }
  return p.clip_after_norm ? clipped(x, p.clip) : x;
}

// Eight elements, as they lie in memory.
template <class Element>
__device__ __forceinline__ void unpack(const uint4& raw, float (&x)[8]) {
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = two_floats(reinterpret_cast<const Element*>(&words[i]));
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

// A running softmax: its maximum, the sum of weights, and the weighted values, kNumbers of them here.
template <int kNumbers>
struct Mixture {
  float most = -INFINITY, sum = 0.0f;
  float out[kNumbers] = {};

  // From now on with this maximum, which is not below the one before. -INFINITY: nothing was seen.
  __device__ __forceinline__ void raise(float highest) {
    const float keep = most == -INFINITY ? 0.0f : __expf(most - highest);
    most = highest;
    sum *= keep;
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) out[i] *= keep;
  }
  // Another one's, whose maximum is not above this. Where it saw nothing, it has no values.
  __device__ __forceinline__ void add(float other_most, float other_sum, const float* other_out) {
    if (other_most == -INFINITY) return;
    const float weight = __expf(other_most - most);
    sum = fmaf(weight, other_sum, sum);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) out[i] = fmaf(weight, other_out[i], out[i]);
  }
  // Both lanes of a pair get what both have.
  __device__ __forceinline__ void add_lane(int distance) {
    raise(fmaxf(most, __shfl_xor_sync(0xffffffff, most, distance)));
    sum += __shfl_xor_sync(0xffffffff, sum, distance);
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) out[i] += __shfl_xor_sync(0xffffffff, out[i], distance);
  }
};

// Places of the cache that a warp works on at a time: 4 kRows, of which a lane has an eighth of kRows: eights of
// elements lane % 8 + 8 i. Their loads are under way together.
template <int kEights>
struct Places {
  static constexpr int kRows = kEights > 2 ? 1 : 2;
  static constexpr int kPlaces = 32 / kKeyLanes * kRows;
  uint4 key[kRows][kEights], value[kRows][kEights];

  // Behind the last place: the last once more, to be left out.
  template <class Element>
  __device__ __forceinline__ void load(const Element* keys, const Element* values, int d, int first,
                                       int end) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int place = min(first + 32 / kKeyLanes * r + lane / kKeyLanes, end - 1);
      const std::int64_t at = static_cast<std::int64_t>(place) * d;
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        const int element = 8 * (lane % kKeyLanes + kKeyLanes * i);
        const bool in = element < d;
        key[r][i] =
            in ? *reinterpret_cast<const uint4*>(keys + at + element) : make_uint4(0, 0, 0, 0);
        value[r][i] =
            in ? *reinterpret_cast<const uint4*>(values + at + element) : make_uint4(0, 0, 0, 0);
      }
    }
  }
};

// kSplit: a cluster has a head.
template <class Element, int kEights, bool kSplit>
__global__ void __launch_bounds__(kHeadThreads, kEights > 2 ? 1 : 2)
    attention_kernel(AttentionParams p, const Element* qkv_BN, Element* keys_BGCI,
                     Element* values_BGCI, Element* out_BHI) {
  constexpr int kMostDim = 8 * kKeyLanes * kEights;
  __shared__ alignas(16) float query[kMostDim], key[kMostDim], value[kMostDim];
  __shared__ float maxima[kHeadWarps], sums[kHeadWarps];
  __shared__ alignas(16) float outs[kHeadWarps][kMostDim];
  const int parts = kSplit ? cluster_size() : 1, part = kSplit ? cluster_rank() : 0;
  const int which = static_cast<int>(blockIdx.x) / parts;  // row and head
  const int row = which / p.heads, head = which % p.heads;
  const int d = p.head_dim, pairs = d / 2, shared_by = p.heads / p.groups, group = head / shared_by;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Element* q = qkv_BN + static_cast<std::int64_t>(row) * (p.heads + 2 * p.groups) * d;
  const Element *k = q + p.heads * d, *v = k + p.groups * d;
  const std::int64_t cache = (static_cast<std::int64_t>(row) * p.groups + group) * p.places * d;
  Element *keys = keys_BGCI + cache, *values = values_BGCI + cache;
  ptx::launch_dependents();
  if constexpr (kSplit) cluster_arrive();
  ptx::dependency_wait();
  const int position = static_cast<int>(*p.position);

  // All that comes from memory first: what it is needed for waits for the sums over all threads.
  const int own = static_cast<int>(threadIdx.x);  // pair
  float q_raw[2] = {}, k_raw[2] = {}, v_raw[2] = {}, cosine = 1.0f, sine = 0.0f;
  if (own < pairs) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      q_raw[half] = to_float(q[head * d + half * pairs + own]);
      k_raw[half] = to_float(k[group * d + half * pairs + own]);
      v_raw[half] = to_float(v[group * d + half * pairs + own]);
    }
    if (p.cos != nullptr) {
      cosine = p.cos[static_cast<std::int64_t>(position) * pairs + own];
      sine = p.sin[static_cast<std::int64_t>(position) * pairs + own];
    }
  }
  int first = p.pads == nullptr ? 0 : static_cast<int>(p.pads[row]);
  if (p.window >= 0) first = max(first, position - p.window);
  constexpr int kPlaces = Places<kEights>::kPlaces;
  first += (part * kHeadWarps + warp) * kPlaces;  // of this warp
  const int stride = parts * kHeadWarps * kPlaces;
  Places<kEights> places;
  if (first < position) places.load(keys, values, d, first, position);

  Moments m{};
  if (p.q_norm.width > 0) m = moments_of(p, q, k, head, group);
  if (own < pairs) {
    const float q1 = normed(p, p.q_norm, q_raw[0], head, own, m.mean.x, m.factor.x);
    const float q2 = normed(p, p.q_norm, q_raw[1], head, own + pairs, m.mean.x, m.factor.x);
    query[own] = (q1 * cosine - q2 * sine) * p.scale;
    query[own + pairs] = (q2 * cosine + q1 * sine) * p.scale;
    const float k1 = normed(p, p.k_norm, k_raw[0], group, own, m.mean.y, m.factor.y);
    const float k2 = normed(p, p.k_norm, k_raw[1], group, own + pairs, m.mean.y, m.factor.y);
    // As they are read back later.
    const Element keeps[4] = {
        element<Element>(k1 * cosine - k2 * sine), element<Element>(k2 * cosine + k1 * sine),
        element<Element>(clipped(v_raw[0], p.clip)), element<Element>(clipped(v_raw[1], p.clip))};
    key[own] = to_float(keeps[0]);
    key[own + pairs] = to_float(keeps[1]);
    value[own] = to_float(keeps[2]);
    value[own + pairs] = to_float(keeps[3]);
    if (part == 0 && head % shared_by == 0) {
      const std::int64_t at = static_cast<std::int64_t>(position) * d + own;
      keys[at] = keeps[0];
      keys[at + pairs] = keeps[1];
      values[at] = keeps[2];
      values[at + pairs] = keeps[3];
    }
  }
  __syncthreads();

  const float slope = p.slopes == nullptr ? 0.0f : p.slopes[head];
  const auto capped = [&](float score, int j) {
    const float s = p.softcap > 0.0f ? p.softcap * tanhf(score / p.softcap) : score;
    return s + slope * static_cast<float>(j - position);
  };
  // This lane's numbers of a head; what stands behind its end meets zeros of the cache.
  const auto load_numbers = [&](const float* head_C, float(&numbers)[8 * kEights]) {
#pragma unroll
    for (int i = 0; i < 2 * kEights; ++i) {
      const int element = 8 * (lane % kKeyLanes + kKeyLanes * (i / 2)) + 4 * (i % 2);
      const float4 four = element < d ? *reinterpret_cast<const float4*>(head_C + element)
                                      : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      numbers[4 * i] = four.x;
      numbers[4 * i + 1] = four.y;
      numbers[4 * i + 2] = four.z;
      numbers[4 * i + 3] = four.w;
    }
  };
  float mine[8 * kEights];
  load_numbers(query, mine);
  const auto over_key = [](float x) {
#pragma unroll
    for (int distance = 1; distance < kKeyLanes; distance *= 2) {
      x += __shfl_xor_sync(0xffffffff, x, distance);
    }
    return x;
  };
  Mixture<8 * kEights> mix;
  // The token itself, from here; those before it, from the cache.
  if (part == 0 && warp == 0) {
    float own_key[8 * kEights], dot = 0.0f;
    load_numbers(key, own_key);
#pragma unroll
    for (int i = 0; i < 8 * kEights; ++i) dot = fmaf(mine[i], own_key[i], dot);
    dot = over_key(dot);
    if (lane < kKeyLanes) {
      load_numbers(value, mix.out);
      mix.most = capped(dot, position);
      mix.sum = 1.0f;
    }
  }
  for (int j = first; j < position; j += stride) {
    // On their way while these are worked on, where registers allow it.
    Places<kEights> next;
    if (kEights <= 2 && j + stride < position) next.load(keys, values, d, j + stride, position);
    constexpr int kRows = Places<kEights>::kRows;
    float score[kRows];
    float highest = mix.most;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float dot = 0.0f;
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        float other[8];
        unpack<Element>(places.key[r][i], other);
#pragma unroll
        for (int e = 0; e < 8; ++e) dot = fmaf(mine[8 * i + e], other[e], dot);
      }
      const int place = j + 32 / kKeyLanes * r + lane / kKeyLanes;
      dot = over_key(dot);
      score[r] = place < position ? capped(dot, place) : -INFINITY;
      highest = fmaxf(highest, score[r]);
    }
    mix.raise(highest);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float weight = score[r] == -INFINITY ? 0.0f : __expf(score[r] - mix.most);
      mix.sum += weight;
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        float other[8];
        unpack<Element>(places.value[r][i], other);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          mix.out[8 * i + e] = fmaf(weight, other[e], mix.out[8 * i + e]);
        }
      }
    }
    if (kEights > 2 && j + stride < position) next.load(keys, values, d, j + stride, position);
    places = next;
  }
  if (first < position) {
#pragma unroll
    for (int distance = kKeyLanes; distance < 32; distance *= 2) mix.add_lane(distance);
  }
  if (lane == 0) {
    maxima[warp] = mix.most;
    sums[warp] = mix.sum;
  }
  if (lane < kKeyLanes && mix.most != -INFINITY) {
#pragma unroll
    for (int i = 0; i < 2 * kEights; ++i) {
      const int element = 8 * (lane + kKeyLanes * (i / 2)) + 4 * (i % 2);
      *reinterpret_cast<float4*>(&outs[warp][element]) =
          make_float4(mix.out[4 * i], mix.out[4 * i + 1], mix.out[4 * i + 2], mix.out[4 * i + 3]);
    }
  }
  __syncthreads();
  Mixture<2> all;  // of this CTA, pair `own`
  if (own < pairs) {
    for (int w = 0; w < kHeadWarps; ++w) all.most = fmaxf(all.most, maxima[w]);
    for (int w = 0; w < kHeadWarps; ++w) all.add(maxima[w], sums[w], &outs[w][2 * own]);
  }
  if constexpr (kSplit) {
    __shared__ float part_most[kMostParts], part_sum[kMostParts];
    __shared__ float part_out[kMostParts][kMostDim];
    cluster_wait();
    if (own < pairs) {
      store_to_first(&part_out[part][2 * own], all.out[0]);
      store_to_first(&part_out[part][2 * own + 1], all.out[1]);
    }
    if (own == 0) {
      store_to_first(&part_most[part], all.most);
      store_to_first(&part_sum[part], all.sum);
    }
    cluster_arrive();
    cluster_wait();
    if (part > 0) return;
    all = {};
    for (int i = 0; i < parts; ++i) all.most = fmaxf(all.most, part_most[i]);
    if (own < pairs) {
      for (int i = 0; i < parts; ++i) all.add(part_most[i], part_sum[i], &part_out[i][2 * own]);
    }
  }
  if (own >= pairs) return;
  Element* into = out_BHI + static_cast<std::int64_t>(which) * d + 2 * own;
  into[0] = element<Element>(all.out[0] / all.sum);
  into[1] = element<Element>(all.out[1] / all.sum);
}

// CTAs of a head: more where the cache is long and rows and heads leave multiprocessors idle. Not
// by the position, which only the GPU knows.
int parts_of_a_head(const DecodeAttentionArgs& args) {
  constexpr std::int64_t kLongCache = 512;
  int device = 0;
  DROPLESS_CUDA_CHECK(cudaGetDevice(&device));
  if (portable_path(device)) return 1;
  const std::int64_t heads = args.rows * args.attention.heads;
  // That find room at once: two a multiprocessor, but for those that clusters of eight leave over (of 132
  // multiprocessors twelve: a second round would take as long as the first).
  const std::int64_t ctas = multiprocessors() * 7 / (args.attention.head_dim > 128 ? 8 : 4);
  int parts = 1;
  while (parts < kMostParts && 2 * parts * heads <= ctas) parts *= 2;
  return args.places < kLongCache ? 1 : parts;
}

template <class Element, bool kSplit>
auto attention_of(std::int64_t head_dim) {
  return head_dim <= 64    ? attention_kernel<Element, 1, kSplit>
         : head_dim <= 128 ? attention_kernel<Element, 2, kSplit>
                           : attention_kernel<Element, 4, kSplit>;
}

}  // namespace

void decode_add_norm(const DecodeAddNormArgs& args, Stream stream) {
  for_16_bit(args.dtype, "decode_add_norm", [&](auto type) {
    using Element = decltype(type);
    const auto kernel = args.width <= kThreads * 4       ? add_norm_kernel<Element, 1>
                        : args.width <= kThreads * 4 * 2 ? add_norm_kernel<Element, 2>
                                                         : add_norm_kernel<Element, 8>;
    launch_soon(kernel, args.rows, kThreads, 0, 1, stream, args.x_BD,
                static_cast<const Element*>(args.y_BD), Norm(args.norm),
                static_cast<Element*>(args.out_BD));
  });
}

void decode_attention(const DecodeAttentionArgs& args, Stream stream) {
  const DecodeAttention& a = args.attention;
  const AttentionParams p{static_cast<int>(a.heads),
                          static_cast<int>(a.groups),
                          static_cast<int>(a.head_dim),
                          static_cast<int>(args.places),
                          Norm(a.q_norm),
                          Norm(a.k_norm),
                          static_cast<float>(a.clip),
                          a.clip_after_norm,
                          static_cast<const float*>(a.cos_PI.data),
                          static_cast<const float*>(a.sin_PI.data),
                          static_cast<float>(a.scale),
                          static_cast<float>(a.softcap),
                          static_cast<int>(std::min<std::int64_t>(a.window, args.places)),
                          static_cast<const float*>(a.slopes_H.data),
                          args.position_1,
                          args.pads_B};
  for_16_bit(args.dtype, "decode_attention", [&](auto type) {
    using Element = decltype(type);
    const int parts = parts_of_a_head(args);
    const auto kernel = parts > 1 ? attention_of<Element, true>(a.head_dim)
                                  : attention_of<Element, false>(a.head_dim);
    launch_soon(kernel, args.rows * a.heads * parts, kHeadThreads, 0, parts, stream, p,
                static_cast<const Element*>(args.qkv_BN), static_cast<Element*>(args.keys_BGCI),
                static_cast<Element*>(args.values_BGCI), static_cast<Element*>(args.out_BHI));
  });
}

}  // namespace dropless::cuda
