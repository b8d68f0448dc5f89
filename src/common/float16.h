// 16-bit storage types. Arithmetic is done in float; these only convert.
//
//   BFloat16: the upper half of a float (1 sign, 8 exponent, 7 mantissa bits).
//   Float16:  IEEE binary16 (1 sign, 5 exponent, 10 mantissa bits), subnormals kept.
//
// Both round to nearest even and keep infinities and NaN. The conversions are free of branches and
// of library calls, so that loops over them vectorise.
#pragma once

#include <cstdint>
#include <type_traits>

namespace dropless {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

// The type arithmetic is done in: float for the 16-bit types, else the type itself.
template <class S>
using Accumulator = std::conditional_t<std::is_same_v<S, double>, double, float>;

namespace detail {
[[gnu::always_inline]] constexpr std::uint32_t float_bits(float x) {
  return __builtin_bit_cast(std::uint32_t, x);
}
[[gnu::always_inline]] constexpr float bits_float(std::uint32_t x) {
  return __builtin_bit_cast(float, x);
}
}  // namespace detail

[[gnu::always_inline]] constexpr float to_float(float x) { return x; }
[[gnu::always_inline]] constexpr double to_float(double x) { return x; }

[[gnu::always_inline]] constexpr float to_float(BFloat16 x) {
  return detail::bits_float(static_cast<std::uint32_t>(x.bits) << 16);
}

[[gnu::always_inline]] constexpr float to_float(Float16 x) {
  const std::uint32_t sign = (x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  // Exponent and mantissa in float's places; one multiplication by 2^112 then rebiases the exponent
  // and normalises subnormals.
  const float scaled = detail::bits_float(magnitude << 13) * 0x1p112f;
  const std::uint32_t inf_nan = (magnitude << 13) | 0x7f800000u;
  const std::uint32_t finite = detail::float_bits(scaled);
  return detail::bits_float(sign | (magnitude >= 0x7c00u ? inf_nan : finite));
}

template <class S>
[[gnu::always_inline]] constexpr S from_float(Accumulator<S> x) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    const std::uint32_t bits = detail::float_bits(x);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<std::uint16_t>(is_nan ? ((bits >> 16) | 0x40u) : rounded)};
  } else if constexpr (std::is_same_v<S, Float16>) {
    const std::uint32_t bits = detail::float_bits(x);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    // Normal results: rebias and round to nearest even on the 13 dropped bits; a carry into 0x7c00
    // is the overflow to infinity. Subnormal results: adding 0.5 makes the adder round at bit
    // 2^-24.
    const std::uint32_t normal =
        (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const std::uint32_t subnormal =
        detail::float_bits(detail::bits_float(magnitude) + 0.5f) - 0x3f000000u;
    std::uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return {static_cast<std::uint16_t>(sign | half)};
  } else {
    return x;
  }
}

}  // namespace dropless
