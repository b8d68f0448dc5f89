// Owning tensors for tests: random filling, NaN poisoning, and reading any floating type as double.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "dropless/error.h"
#include "dropless/view.h"
#include "src/common/dispatch.h"

namespace dropless::testing {

// Outputs start as NaN (floats) or -77 (integers): an element an op forgets to write is seen.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::initializer_list<std::int64_t> dims)
      : view_(nullptr, dtype, dims), lines_(lines(view_)) {
    for (std::int64_t i = 0; i < numel(); ++i) set(i, std::numeric_limits<double>::quiet_NaN());
  }

  TensorView view() {
    TensorView v = view_;
    v.data = data();
    return v;
  }
  operator TensorView() { return view(); }  // NOLINT
  operator ConstTensorView() const {        // NOLINT
    ConstTensorView v = view_;
    v.data = data();
    return v;
  }
  explicit operator bool() const { return view_.rank > 0; }

  DType dtype() const { return view_.dtype; }
  std::int64_t numel() const { return view_.numel(); }
  std::int64_t dim(int i) const { return view_.shape[i]; }
  template <class Element>
  Element* as() {
    return static_cast<Element*>(data());
  }
  template <class Element>
  const Element* as() const {
    return static_cast<const Element*>(data());
  }

  double get(std::int64_t i) const {
    if (dtype() == DType::kInt32) return as<std::int32_t>()[i];
    if (dtype() == DType::kInt64) return static_cast<double>(as<std::int64_t>()[i]);
    return visit_floating(dtype(),
                          [&](auto zero) -> double { return to_float(as<decltype(zero)>()[i]); });
  }
  void set(std::int64_t i, double value) {
    const auto integer = std::isnan(value) ? -77 : static_cast<std::int64_t>(value);
    if (dtype() == DType::kInt32) {
      as<std::int32_t>()[i] = static_cast<std::int32_t>(integer);
    } else if (dtype() == DType::kInt64) {
      as<std::int64_t>()[i] = integer;
    } else {
      visit_floating(dtype(), [&](auto zero) {
        using S = decltype(zero);
        as<S>()[i] = from_float<S>(static_cast<Accumulator<S>>(value));
      });
    }
  }

  // The same values (rounded) in another floating type.
  Tensor to(DType dtype) const {
    Tensor out;
    if (!*this) return out;
    out.view_ = view_;
    out.view_.dtype = dtype;
    out.lines_.resize(lines(out.view_));
    for (std::int64_t i = 0; i < numel(); ++i) out.set(i, get(i));
    return out;
  }

  Tensor& fill_normal(std::mt19937_64& rng, double scale = 1) {
    std::normal_distribution<double> normal(0, scale);
    for (std::int64_t i = 0; i < numel(); ++i) set(i, normal(rng));
    return *this;
  }

  friend bool same_bits(const Tensor& a, const Tensor& b) {
    return a.numel() == b.numel() && a.dtype() == b.dtype() &&
           std::memcmp(a.data(), b.data(), a.numel() * dtype_bytes(a.dtype())) == 0;
  }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  static std::size_t lines(const TensorView& view) {
    return view.numel() * dtype_bytes(view.dtype) / sizeof(Line) + 1;
  }
  void* data() { return lines_.data(); }
  const void* data() const { return lines_.data(); }

  TensorView view_;
  std::vector<Line> lines_;
};

// A tensor of normal variates.
inline Tensor normal(std::mt19937_64& rng, DType dtype, std::initializer_list<std::int64_t> dims,
                     double scale = 1) {
  Tensor t(dtype, dims);
  t.fill_normal(rng, scale);
  return t;
}

// ||a - b|| / ||b||; infinite where a is not finite.
inline double relative_error(const Tensor& a, const Tensor& b) {
  double difference = 0, size = 0;
  for (std::int64_t i = 0; i < b.numel(); ++i) {
    difference += std::pow(a.get(i) - b.get(i), 2);
    size += std::pow(b.get(i), 2);
  }
  const double error = difference == 0 ? 0 : std::sqrt(difference / std::max(size, 1e-300));
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

// What rounding to `dtype` allows per element, relatively.
inline double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 0x1p-53;
    case DType::kBFloat16:
      return 0x1p-8;
    case DType::kFloat16:
      return 0x1p-11;
    default:
      return 0x1p-24;
  }
}

// Aligned scratch with a canary on both sides; check() tells whether the op stayed inside.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) : bytes_(bytes), memory_(bytes + 3 * kPad, kCanary) {}
  void* data() {
    return reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(memory_.data()) + kPad + 63) /
                                   64 * 64);
  }
  std::size_t bytes() const { return bytes_; }
  bool intact() {
    const char* begin = static_cast<const char*>(data());
    for (const char* p = memory_.data(); p < begin; ++p) {
      if (*p != kCanary) return false;
    }
    for (const char* p = begin + bytes_; p < memory_.data() + memory_.size(); ++p) {
      if (*p != kCanary) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kPad = 4096;
  static constexpr char kCanary = 0x5a;
  std::size_t bytes_;
  std::vector<char> memory_;
};

// The rows of groups of these sizes: int64 [E + 1].
inline Tensor offsets_of(const std::vector<std::int64_t>& sizes) {
  Tensor offsets(DType::kInt64, {static_cast<std::int64_t>(sizes.size()) + 1});
  offsets.set(0, 0);
  for (std::size_t e = 0; e < sizes.size(); ++e) {
    offsets.set(e + 1, offsets.get(e) + static_cast<double>(sizes[e]));
  }
  return offsets;
}

// What the refusal of a bad argument says.
template <class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    return error.what();
  }
  return "no error";
}

}  // namespace dropless::testing
