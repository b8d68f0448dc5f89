// What becomes of the portable products' accumulators. A warp stages 8 rows of its 64 x 64 sums at a
// time in shared memory, so that a lane gets 8 neighbouring columns: everything a row needs is then read
// and written in whole vectors, in the layout of memory. Formulas: epilogue_activation.cuh.
#pragma once

#include <type_traits>

#include "activation.cuh"
#include "mma_gemm.cuh"
#include "vector.cuh"

namespace dropless::cuda::mma {

template <class Element>
struct Matrix {
  Element* data;
  std::int64_t pitch;  // elements
  std::int64_t batch;  // from one expert's matrix to the next's

  __device__ __forceinline__ Element* at(std::int64_t row, int column) const {
    return data + row * pitch + column;
  }
};

// Eight elements of a row, in one or two vectors.
template <class Element>
__device__ __forceinline__ void read8(const Element* from, float (&v)[8]) {
  to_floats(*reinterpret_cast<const uint4*>(from), v, std::remove_const_t<Element>{});
}
__device__ __forceinline__ void read8(const float* from, float (&v)[8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float4 raw = reinterpret_cast<const float4*>(from)[half];
    v[4 * half] = raw.x, v[4 * half + 1] = raw.y, v[4 * half + 2] = raw.z, v[4 * half + 3] = raw.w;
  }
}
template <class Element>
__device__ __forceinline__ void write8(Element* to, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(to) = from_floats(v, Element{});
}
__device__ __forceinline__ void write8(float* to, const float (&v)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
}

// The same in words of two.
__device__ __forceinline__ void split(const uint4& vector, std::uint32_t (&words)[4]) {
  words[0] = vector.x, words[1] = vector.y, words[2] = vector.z, words[3] = vector.w;
}
template <class Element>
__device__ __forceinline__ void store4(Element* to, const std::uint32_t (&words)[4]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Walks a warp's results. kPlanes = 2: a lane gets 8 columns of both products.
template <class Tile>
class Stager {
 public:
  static constexpr int kVectors = kWarpColumns / Tile::kPlanes / 8;  // of a row
  static constexpr int kItems = 8 * kVectors / 32;                   // rows of a lane in a pass
  static constexpr int kPasses = 2 * kBlocksM;

  __device__ __forceinline__ Stager(unsigned char* shared, int warp, int lane)
      : staging_(reinterpret_cast<float*>(shared + Tile::kStagingOffset) + warp * kStagingFloats),
        warp_row_(warp / Tile::kWarpsN * kWarpRows),
        column_(warp % Tile::kWarpsN * (kWarpColumns / Tile::kPlanes) + lane % kVectors * 8),
        lane_(lane) {}

  // This lane's row in the tile, of one of a pass's items; and its first column.
  __device__ __forceinline__ int row(int pass, int item) const {
    return warp_row_ + 8 * pass + local(item);
  }
  __device__ __forceinline__ int column() const { return column_; }
  __device__ __forceinline__ bool has_rows(int pass, const Work& work) const {
    return warp_row_ + 8 * pass < work.rows;
  }

  __device__ __forceinline__ void put(const Accumulators& acc, int pass) const {
    __syncwarp();
    float* to = staging_ + lane_ / 4 * kStagingPitch + lane_ % 4 * 2;
    // Registers cannot be indexed at run time, and one body for all passes is much less code.
#pragma unroll
    for (int p = 0; p < kPasses; ++p) {
      if (p != pass) continue;
#pragma unroll
      for (int j = 0; j < 2 * kBlocksN; ++j) {
        const float* sums = &acc[p / 2][j][p % 2 * 2];
        *reinterpret_cast<float2*>(to + j * 8) = make_float2(sums[0], sums[1]);
      }
    }
    __syncwarp();
  }

  // Stages the passes one after the other, and calls body(row in the tile, item) for each of this
  // lane's rows that lies in the tile, where its column is one of `columns`.
  template <class Body>
  __device__ __forceinline__ void for_each_row(const Accumulators& acc, const Work& work,
                                               int columns, Body body) const {
#pragma unroll 1
    for (int pass = 0; pass < kPasses && has_rows(pass, work); ++pass) {
      put(acc, pass);
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        if (row(pass, item) >= work.rows || work.n + column_ >= columns) continue;
        body(row(pass, item), item);
      }
    }
  }

  __device__ __forceinline__ void get(int item, int plane, float (&v)[8]) const {
    read8(
        staging_ + local(item) * kStagingPitch + plane * (kWarpColumns / 2) + lane_ % kVectors * 8,
        v);
  }
  __device__ __forceinline__ float2 get2(int item, int column) const {
    return *reinterpret_cast<const float2*>(staging_ + local(item) * kStagingPitch +
                                            lane_ % kVectors * 8 + column);
  }

 private:
  __device__ __forceinline__ int local(int item) const {
    return lane_ / kVectors + item * (32 / kVectors);
  }

  float* staging_;
  int warp_row_;
  int column_;
  int lane_;
};

// v += the bias of an expert's columns, where there is one.
template <class Element>
__device__ __forceinline__ void add_bias(float (&v)[8], const Matrix<const Element>& bias,
                                         int expert, int column) {
  if (bias.data == nullptr) return;
  float b[8];
  read8(bias.at(expert, column), b);
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] += b[i];
}

// Stores the product, as 16-bit or fp32 numbers; kAdd adds into D (fp32).
template <class Tile, class Element, bool kAdd>
class StoreEpilogue {
 public:
  struct Params {
    Matrix<Element> out;
    Matrix<const typename Tile::Element> bias;
    int columns;
  };

  __device__ __forceinline__ StoreEpilogue(const Params& params, unsigned char* shared, int warp,
                                           int lane)
      : params_(params), stager_(shared, warp, lane) {}

  __device__ __forceinline__ void store(const Accumulators& acc, const Work& work) const {
    const int column = work.n + stager_.column();
    Element* out = params_.out.at(work.m, column) + work.batch_d * params_.out.batch;
    stager_.for_each_row(acc, work, params_.columns, [&](int row, int item) {
      float v[8];
      stager_.get(item, 0, v);
      add_bias(v, params_.bias, work.batch_b, column);
      if constexpr (kAdd) {
        float sum[8];
        read8(out + row * params_.out.pitch, sum);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] += sum[i];
      }
      write8(out + row * params_.out.pitch, v);
    });
  }

 private:
  const Params& params_;
  Stager<Tile> stager_;
};

// Calls body with the activation as a compile-time constant. The switch is uniform, and small beside
// what it saves: a kernel for each activation.
template <DeviceActivation kValue>
struct ActivationConstant {
  static constexpr DeviceActivation value = kValue;
};
template <class Body>
__device__ __forceinline__ void with_activation(DeviceActivation activation, Body body) {
  switch (activation) {
    case DeviceActivation::kSilu:
      return body(ActivationConstant<DeviceActivation::kSilu>{});
    case DeviceActivation::kGeluTanh:
      return body(ActivationConstant<DeviceActivation::kGeluTanh>{});
    case DeviceActivation::kGelu:
      return body(ActivationConstant<DeviceActivation::kGelu>{});
    case DeviceActivation::kRelu:
      return body(ActivationConstant<DeviceActivation::kRelu>{});
    case DeviceActivation::kQuickGelu:
      return body(ActivationConstant<DeviceActivation::kQuickGelu>{});
  }
}

template <class Tile>
class ActivationEpilogue {
 public:
  using Element = typename Tile::Element;
  static constexpr bool kGlu = Tile::kPlanes == 2;
  struct Params {
    Matrix<Element> gate;
    Matrix<Element> up;
    Matrix<Element> act;
    Matrix<const Element> gate_bias;
    Matrix<const Element> up_bias;
    int columns;
    bool save;  // store gate and up too
    DeviceActivation activation;
  };

  __device__ __forceinline__ ActivationEpilogue(const Params& params, unsigned char* shared,
                                                int warp, int lane)
      : params_(params), stager_(shared, warp, lane) {}

  __device__ __forceinline__ void store(const Accumulators& acc, const Work& work) const {
    const int column = work.n + stager_.column();
    stager_.for_each_row(acc, work, params_.columns,
                         [&](int row, int item) { store_vector(work, row, column, item); });
  }

 private:
  // The activation is of the rounded pre-activations: recomputing it gives the same bits.
  __device__ __forceinline__ void store_vector(const Work& work, int row_in_tile, int column,
                                               int item) const {
    const std::int64_t row = work.m + row_in_tile;
    float gate[8], up[8];
    stager_.get(item, 0, gate);
    add_bias(gate, params_.gate_bias, work.batch_b, column);
    round(gate, params_.gate, row, column);
    if constexpr (kGlu) {
      stager_.get(item, 1, up);
      add_bias(up, params_.up_bias, work.batch_b, column);
      round(up, params_.up, row, column);
    }
    with_activation(params_.activation, [&](auto activation) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        gate[i] = activate<decltype(activation)::value>(gate[i]).value;
      }
    });
    if constexpr (kGlu) {
#pragma unroll
      for (int i = 0; i < 8; ++i) gate[i] *= up[i];
    }
    write8(params_.act.at(row, column), gate);
  }

  __device__ __forceinline__ void round(float (&v)[8], const Matrix<Element>& out, std::int64_t row,
                                        int column) const {
    const uint4 raw = from_floats(v, Element{});
    if (params_.save) *reinterpret_cast<uint4*>(out.at(row, column)) = raw;
    to_floats(raw, v, Element{});
  }

  const Params& params_;
  Stager<Tile> stager_;
};

// The pre-activations are replaced by their gradients where they lie.
template <class Tile, bool kGlu>
class ActivationGradEpilogue {
 public:
  using Element = typename Tile::Element;
  struct Params {
    Matrix<Element> gate;  // pre-activation in, gradient out
    Matrix<Element> up;
    Matrix<Element> act;
    const float* scores_R;
    float* d_scores_NR;  // one partial sum for each tile of columns
    std::int64_t rows;   // R
    int columns;
    DeviceActivation activation;
  };
  static_assert(Tile::kPlanes == 1);

  __device__ __forceinline__ ActivationGradEpilogue(const Params& params, unsigned char* shared,
                                                    int warp, int lane)
      : params_(params),
        stager_(shared, warp, lane),
        sums_(reinterpret_cast<float*>(shared + Tile::kScoresOffset)),
        scores_(sums_ + Tile::kWarpsN * Tile::kBlockM + warp * kWarpRows),
        warp_n_(warp % Tile::kWarpsN),
        lane_(lane) {}

  __device__ __forceinline__ void store(const Accumulators& acc, const Work& work) const {
    const int column = work.n + stager_.column();
    for (int i = lane_; i < kWarpRows; i += 32) {
      const int at = stager_.row(0, 0) - stager_.row(0, 0) % kWarpRows + i;
      if (at < work.rows) scores_[i] = __ldg(params_.scores_R + work.m + at);
    }
    Inputs inputs;
    load(inputs, work, column, 0);
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step) {
      if (!stager_.has_rows(step / kItems, work)) break;
      if (step % kItems == 0) stager_.put(acc, step / kItems);
      float sum = differentiate(inputs, work, column, step);
      // Over the lanes that share the row, in a fixed order.
#pragma unroll
      for (int apart = 1; apart < Stager<Tile>::kVectors; apart *= 2) {
        sum += __shfl_xor_sync(0xffffffff, sum, apart);
      }
      if (lane_ % Stager<Tile>::kVectors == 0) sums_[warp_n_ * Tile::kBlockM + row(step)] = sum;
    }
    __syncthreads();
    sum_scores(work);
  }

 private:
  static constexpr int kItems = Stager<Tile>::kItems;
  static constexpr int kSteps = kItems * Stager<Tile>::kPasses;
  struct Inputs {
    uint4 gate;
    uint4 up;
  };

  __device__ __forceinline__ int row(int step) const {
    return stager_.row(step / kItems, step % kItems);
  }
  __device__ __forceinline__ bool inside(const Work& work, int column, int step) const {
    return row(step) < work.rows && column < params_.columns;
  }

  __device__ __forceinline__ void load(Inputs& inputs, const Work& work, int column,
                                       int step) const {
    if (step == kSteps || !inside(work, column, step)) return;
    const std::int64_t at = work.m + row(step);
    inputs.gate = *reinterpret_cast<const uint4*>(params_.gate.at(at, column));
    if (kGlu) inputs.up = *reinterpret_cast<const uint4*>(params_.up.at(at, column));
  }

  // Eight columns of a row; gives their part of the score's gradient. `inputs` become the next
  // step's: they are on their way while this one's are worked on.
  __device__ __forceinline__ float differentiate(Inputs& inputs, const Work& work, int column,
                                                 int step) const {
    if (!inside(work, column, step)) return 0.0f;  // and so in every later step
    const std::int64_t at = work.m + row(step);
    std::uint32_t gate[4], up[4], act[4];
    split(inputs.gate, gate);
    if constexpr (kGlu) split(inputs.up, up);
    const float score = scores_[row(step) % kWarpRows];
    load(inputs, work, column, step + 1);
    float sum = 0.0f;
    with_activation(params_.activation, [&](auto activation) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // a pair of columns
        const float2 t = stager_.get2(step % kItems, 2 * i);
        const float2 g = ptx::unpack<Element>(gate[i]);
        const float2 u = kGlu ? ptx::unpack<Element>(up[i]) : make_float2(1.0f, 1.0f);
        const ValueAndSlope x = activate<decltype(activation)::value>(g.x);
        const ValueAndSlope y = activate<decltype(activation)::value>(g.y);
        const float2 d = make_float2(score * t.x, score * t.y);
        const float2 a = make_float2(x.value * u.x, y.value * u.y);
        sum += t.x * a.x + t.y * a.y;
        gate[i] = ptx::pack<Element>(d.x * u.x * x.slope, d.y * u.y * y.slope);
        if (kGlu) up[i] = ptx::pack<Element>(d.x * x.value, d.y * y.value);
        act[i] = ptx::pack<Element>(score * a.x, score * a.y);
      }
    });
    store4(params_.gate.at(at, column), gate);
    if constexpr (kGlu) store4(params_.up.at(at, column), up);
    store4(params_.act.at(at, column), act);
    return sum;
  }

  // The warps' sums of a row, in order of the columns.
  __device__ __forceinline__ void sum_scores(const Work& work) const {
    const int row = threadIdx.x;
    if (row >= work.rows) return;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Tile::kWarpsN; ++i) sum += sums_[i * Tile::kBlockM + row];
    params_.d_scores_NR[work.n / Tile::kBlockN * params_.rows + work.m + row] = sum;
  }

  const Params& params_;
  Stager<Tile> stager_;
  float* sums_;    // of each row and warp
  float* scores_;  // of the warp's rows
  int warp_n_;
  int lane_;
};

}  // namespace dropless::cuda::mma
