// Device memory, random fills and plain-loop references for the GPU tests and benchmarks.
#include "tests/cuda/gpu_support.h"

#include <cuda_runtime.h>

#include <cmath>
#include <string>
#include <utility>

#include "src/common/dispatch.h"
#include "src/cuda/check.h"
#include "src/cuda/element.h"

namespace dropless::testing {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014) of seed and index -> [-1, 1).
__device__ float uniform(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return static_cast<float>(static_cast<std::int32_t>(z >> 32)) * 0x1p-31f;
}

template <class Element>
__global__ void fill_kernel(Element* data, std::int64_t count, std::uint64_t seed, float scale) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    data[i] = static_cast<Element>(scale * uniform(seed, i));
  }
}

template <class Element>
__global__ void grouped_gemm_kernel(const Element* a, const Element* b, bool b_is_EKN,
                                    const std::int64_t* offsets, int experts, int k, int n,
                                    float* out) {
  const std::int64_t row = offsets[0] + blockIdx.y;
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= offsets[experts] || column >= n) return;
  int expert = 0;
  while (row >= offsets[expert + 1]) ++expert;
  const Element* weights = b + static_cast<std::int64_t>(expert) * n * k;
  float sum = 0.0f;
  for (int i = 0; i < k; ++i) {
    const std::int64_t at = b_is_EKN ? static_cast<std::int64_t>(i) * n + column
                                     : static_cast<std::int64_t>(column) * k + i;
    sum += static_cast<float>(a[row * k + i]) * static_cast<float>(weights[at]);
  }
  out[row * n + column] = sum;
}

template <class Element>
__global__ void wgrad_kernel(const Element* a, const Element* b, const std::int64_t* offsets, int m,
                             int n, bool accumulate, float* out) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  const int row = blockIdx.y;
  const int expert = blockIdx.z;
  if (column >= n) return;
  float sum = 0.0f;
  for (std::int64_t r = offsets[expert]; r < offsets[expert + 1]; ++r) {
    sum += static_cast<float>(a[r * m + row]) * static_cast<float>(b[r * n + column]);
  }
  float& target = out[(static_cast<std::int64_t>(expert) * m + row) * n + column];
  target = accumulate ? target + sum : sum;
}

}  // namespace

bool gpu_available() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

const char* gpu_name() {
  static const std::string name = [] {
    cudaDeviceProp properties;
    DROPLESS_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    return std::string(properties.name);
  }();
  return name.c_str();
}

static int gpu_major() {
  int major = 0;
  if (gpu_available()) cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  return major;
}
bool gpu_supported() { return gpu_major() >= 8; }
bool gpu_is_hopper() { return gpu_major() == 9; }

DeviceBuffer::DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
  DROPLESS_CUDA_CHECK(cudaMalloc(&data_, bytes == 0 ? 1 : bytes));
  poison();
}

DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}

void DeviceBuffer::poison() { DROPLESS_CUDA_CHECK(cudaMemset(data_, 0xff, bytes_)); }

void DeviceBuffer::copy_in(const void* host, std::size_t bytes) {
  DROPLESS_CUDA_CHECK(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice));
}

void DeviceBuffer::copy_out(void* host, std::size_t bytes) const {
  DROPLESS_CUDA_CHECK(cudaMemcpy(host, data_, bytes, cudaMemcpyDeviceToHost));
}

void synchronize() { DROPLESS_CUDA_CHECK(cudaDeviceSynchronize()); }

void fill_random(void* data, DType dtype, std::int64_t count, std::uint64_t seed, float scale) {
  if (dtype == DType::kFloat32) {
    fill_kernel<<<1024, 256>>>(static_cast<float*>(data), count, seed, scale);
  } else {
    cuda::for_16_bit(dtype, "fill_random", [&](auto element) {
      fill_kernel<<<1024, 256>>>(static_cast<decltype(element)*>(data), count, seed, scale);
    });
  }
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

void reference_grouped_gemm(const void* a_RK, const void* b, bool b_is_EKN,
                            const std::int64_t* offsets_E1, int experts, int k, int n,
                            float* out_RN, DType dtype) {
  std::vector<std::int64_t> offsets(experts + 1);
  DROPLESS_CUDA_CHECK(cudaMemcpy(offsets.data(), offsets_E1, offsets.size() * sizeof(std::int64_t),
                                 cudaMemcpyDeviceToHost));
  const auto rows = static_cast<unsigned>(offsets.back() - offsets.front());
  if (rows == 0) return;
  cuda::for_16_bit(dtype, "reference_grouped_gemm", [&](auto element) {
    using Element = decltype(element);
    grouped_gemm_kernel<<<dim3((n + 127) / 128, rows), 128>>>(
        static_cast<const Element*>(a_RK), static_cast<const Element*>(b), b_is_EKN, offsets_E1,
        experts, k, n, out_RN);
  });
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

void reference_grouped_wgrad(const void* a_RM, const void* b_RN, const std::int64_t* offsets_E1,
                             int experts, int m, int n, bool accumulate, float* out_EMN,
                             DType dtype) {
  cuda::for_16_bit(dtype, "reference_grouped_wgrad", [&](auto element) {
    using Element = decltype(element);
    wgrad_kernel<<<dim3((n + 127) / 128, m, experts), 128>>>(static_cast<const Element*>(a_RM),
                                                             static_cast<const Element*>(b_RN),
                                                             offsets_E1, m, n, accumulate, out_EMN);
  });
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

std::vector<double> values_of(const DeviceBuffer& buffer, DType dtype, std::size_t count) {
  std::vector<double> values(count);
  visit_floating(dtype, [&](auto zero) {
    const auto raw = buffer.download<decltype(zero)>(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = to_float(raw[i]);
  });
  return values;
}

double relative_error(const std::vector<double>& actual, const std::vector<double>& expected) {
  double difference = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(norm > 0.0 ? difference / norm : difference);
}

double relative_error(const DeviceBuffer& actual, DType dtype, const DeviceBuffer& expected,
                      std::size_t count) {
  return relative_error(values_of(actual, dtype, count),
                        values_of(expected, DType::kFloat32, count));
}

}  // namespace dropless::testing
