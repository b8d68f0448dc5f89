// Helpers of the GPU tests and benchmarks: device memory, random fills, plain-loop references.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <vector>

#include "dropless/activation.h"
#include "dropless/view.h"

namespace dropless::testing {

bool gpu_available();
// Of the current device: name, whether the kernels run on it, and whether Hopper's do.
const char* gpu_name();
bool gpu_supported();
bool gpu_is_hopper();

// Device memory that frees itself. Fresh memory is filled with 0xff bytes: NaN in every float type.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&&) = delete;

  void poison();
  void* get() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <class T>
  void upload(const std::vector<T>& values) {
    copy_in(values.data(), values.size() * sizeof(T));
  }
  template <class T>
  std::vector<T> download(std::size_t count) const {
    std::vector<T> values(count);
    copy_out(values.data(), count * sizeof(T));
    return values;
  }

 private:
  void copy_in(const void* host, std::size_t bytes);
  void copy_out(void* host, std::size_t bytes) const;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Whether nothing behind the first `used` bytes of a poisoned buffer was written.
inline bool intact(const DeviceBuffer& space, std::size_t used) {
  const auto all = space.download<unsigned char>(space.bytes());
  for (std::size_t i = used; i < all.size(); ++i) {
    if (all[i] != 0xff) return false;
  }
  return true;
}

void synchronize();

// Uniform in [-scale, scale), a function of seed and index alone, in bf16, fp16 or fp32.
void fill_random(void* data, DType dtype, std::int64_t count, std::uint64_t seed, float scale);
inline void fill_random_bf16(void* data, std::int64_t count, std::uint64_t seed, float scale) {
  fill_random(data, DType::kBFloat16, count, seed, scale);
}
inline void fill_random_fp32(void* data, std::int64_t count, std::uint64_t seed, float scale) {
  fill_random(data, DType::kFloat32, count, seed, scale);
}

// One thread per element, fp32 sums in index order; inputs bf16 or fp16.
// out[r, n] = sum_k a[r, k] b[e(r), ...]; rows outside every expert's range are left alone.
void reference_grouped_gemm(const void* a_RK, const void* b, bool b_is_EKN,
                            const std::int64_t* offsets_E1, int experts, int k, int n,
                            float* out_RN, DType dtype = DType::kBFloat16);
// out[e, m, n] (+)= sum over rows r of e of a[r, m] b[r, n].
void reference_grouped_wgrad(const void* a_RM, const void* b_RN, const std::int64_t* offsets_E1,
                             int experts, int m, int n, bool accumulate, float* out_EMN,
                             DType dtype = DType::kBFloat16);

// Elements of a floating type as doubles on the host.
std::vector<double> values_of(const DeviceBuffer& buffer, DType dtype, std::size_t count);

// ||actual - expected|| / ||expected||, in double, on the host; NaN anywhere gives NaN. On the
// device `expected` is fp32.
double relative_error(const std::vector<double>& actual, const std::vector<double>& expected);
double relative_error(const DeviceBuffer& actual, DType dtype, const DeviceBuffer& expected,
                      std::size_t count);
inline double relative_error_bf16(const DeviceBuffer& actual, const DeviceBuffer& expected,
                                  std::size_t count) {
  return relative_error(actual, DType::kBFloat16, expected, count);
}

}  // namespace dropless::testing

// How googletest names them.
namespace dropless {
inline void PrintTo(DType dtype, std::ostream* out) { *out << dtype_name(dtype); }
inline void PrintTo(Activation activation, std::ostream* out) {
  constexpr const char* kNames[] = {"silu", "gelu_tanh", "gelu", "relu", "quick_gelu"};
  *out << kNames[static_cast<int>(activation)];
}
}  // namespace dropless
