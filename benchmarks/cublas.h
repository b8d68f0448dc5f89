// cuBLAS as the yardstick of the CUDA benchmarks, loaded at run time: the kernel library itself
// never links it. Looks for libcublas.so.13 on the loader's path (torch's wheel brings one).
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>

namespace dropless::benchmarks {

class Cublas {
 public:
  Cublas() {
    void* library = dlopen("libcublas.so.13", RTLD_NOW);
    if (library == nullptr) library = dlopen("libcublas.so", RTLD_NOW);
    if (library == nullptr) {
      std::fprintf(stderr, "no libcublas.so.13 (%s): dense rates are left out\n", dlerror());
      return;
    }
    auto create = reinterpret_cast<int (*)(void**)>(dlsym(library, "cublasCreate_v2"));
    auto set_workspace = reinterpret_cast<int (*)(void*, void*, std::size_t)>(
        dlsym(library, "cublasSetWorkspace_v2"));
    gemm_ = reinterpret_cast<GemmEx>(dlsym(library, "cublasGemmEx"));
    set_stream_ = reinterpret_cast<SetStream>(dlsym(library, "cublasSetStream_v2"));
    void* workspace = nullptr;
    constexpr std::size_t kWorkspaceBytes = 64 << 20;
    if (create(&handle_) != 0 || cudaMalloc(&workspace, kWorkspaceBytes) != cudaSuccess ||
        set_workspace(handle_, workspace, kWorkspaceBytes) != 0) {
      handle_ = nullptr;
    }
  }

  void set_stream(cudaStream_t stream) const { set_stream_(handle_, stream); }

  bool available() const { return handle_ != nullptr; }

  // Row-major, bf16: c[m, n] = op(a) op(b), fp32 accumulation. a is [m, k], or [k, m] with trans_a;
  // b is [k, n], or [n, k] with trans_b; all contiguous. On the stream that set_stream() named last,
  // the default one at first.
  void gemm(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
            const void* a, const void* b, void* c) const {
    const float one = 1.0f, zero = 0.0f;
    constexpr int kBf16 = 14, kCompute32F = 68, kDefaultAlgorithm = -1;
    // cuBLAS is column-major: compute c^T = op(b)^T op(a)^T.
    const int status = gemm_(handle_, trans_b, trans_a, static_cast<int>(n), static_cast<int>(m),
                             static_cast<int>(k), &one, b, kBf16, static_cast<int>(trans_b ? k : n),
                             a, kBf16, static_cast<int>(trans_a ? m : k), &zero, c, kBf16,
                             static_cast<int>(n), kCompute32F, kDefaultAlgorithm);
    if (status != 0) std::fprintf(stderr, "cublasGemmEx failed with %d\n", status);
  }

 private:
  using GemmEx = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int,
                         const void*, int, int, const void*, void*, int, int, int, int);
  using SetStream = int (*)(void*, cudaStream_t);
  void* handle_ = nullptr;
  SetStream set_stream_ = nullptr;
  GemmEx gemm_ = nullptr;
};

}  // namespace dropless::benchmarks
