// The vector type of the instruction set this file is compiled for: AVX-512, AVX2 with FMA, or the
// 16-byte vectors that every compiler target has (SSE2, NEON).
//
// Included once by each of generic.cc, avx2.cc and avx512.cc. Everything here has internal linkage,
// and no inline function of the standard library is called: otherwise the linker could pick a copy
// compiled for instructions the processor lacks.
#pragma once

#include <cstdint>

#include "src/common/float16.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dropless::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float Type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecOf<double> {
  typedef double Type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecOf<T>::Type;

template <class T>
[[gnu::always_inline]] inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
[[gnu::always_inline]] inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <class T>
[[gnu::always_inline]] inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // keeps the sign of zero
}

// a * b + c, fused where the instruction set has it.
[[gnu::always_inline]] inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

[[gnu::always_inline]] inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// The first n lanes from memory, the others 0; only these are touched.
template <class T>
[[gnu::always_inline]] inline Vec<T> load_first(const T* p, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  } else {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
  }
#else
  Vec<T> v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

template <class T>
[[gnu::always_inline]] inline void store_first(T* p, Vec<T> v, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), v);
  }
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// One vector of T from storage S (S = T, or a 16-bit type widened to float).
template <class T, class S>
[[gnu::always_inline]] inline Vec<T> load_as(const S* p) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load(p);
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    typedef std::uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
    typedef std::uint32_t Word __attribute__((vector_size(kVectorBytes)));
    Half half;
    __builtin_memcpy(&half, p, sizeof(half));
    return reinterpret_cast<Vec<T>>(__builtin_convertvector(half, Word) << 16);
#if defined(__AVX512F__)
  } else {
    // All lanes; the unmasked intrinsic warns of an uninitialised operand in some compilers.
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  } else {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  } else {
    Vec<T> v;
    for (int i = 0; i < kLanes<T>; ++i) v[i] = to_float(p[i]);
    return v;
#endif
  }
}

// Transposes the kLanes x kLanes matrix whose rows are r: log2(kLanes) rounds that swap the
// off-diagonal blocks of each 2 x 2 arrangement of h x h blocks.
template <class T, int h, int... lane>
[[gnu::always_inline]] inline void swap_blocks(Vec<T> (&r)[kLanes<T>],
                                               std::integer_sequence<int, lane...>) {
  constexpr int L = kLanes<T>;
  for (int i = 0; i < L; ++i) {
    if (i & h) continue;
    const Vec<T> upper = r[i], lower = r[i + h];
    r[i] = __builtin_shufflevector(upper, lower, ((lane & h) ? L + lane - h : lane)...);
    r[i + h] = __builtin_shufflevector(upper, lower, ((lane & h) ? L + lane : lane + h)...);
  }
}

template <class T, int h = kLanes<T> / 2>
[[gnu::always_inline]] inline void transpose(Vec<T> (&r)[kLanes<T>]) {
  if constexpr (h >= 1) {
    swap_blocks<T, h>(r, std::make_integer_sequence<int, kLanes<T>>{});
    transpose<T, h / 2>(r);
  }
}

}  // namespace
}  // namespace dropless::cpu
