// What the examples share: memory. The library takes views of the caller's memory and allocates
// nothing; a program of yours has an allocator or a tensor class of its own in this place.
#pragma once

#include <dropless/dropless.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <type_traits>
#include <vector>

namespace examples {

// A contiguous tensor of float, int32 or int64, zero at first.
template <class Element>
class Tensor {
 public:
  static constexpr dropless::DType kType =
      std::is_same_v<Element, float>          ? dropless::DType::kFloat32
      : std::is_same_v<Element, std::int32_t> ? dropless::DType::kInt32
                                              : dropless::DType::kInt64;

  Tensor(std::initializer_list<std::int64_t> dims) : view_(nullptr, kType, dims) {
    values_.resize(static_cast<std::size_t>(view_.numel()));
    view_.data = values_.data();
  }
  Tensor(const Tensor&) = delete;  // the view points into the vector
  Tensor& operator=(const Tensor&) = delete;

  Tensor& fill_normal(std::mt19937& random, double scale) {
    std::normal_distribution<double> normal(0, scale);
    for (Element& value : values_) value = static_cast<Element>(normal(random));
    return *this;
  }

  operator dropless::TensorView() { return view_; }
  operator dropless::ConstTensorView() const { return view_; }
  Element& operator[](std::int64_t i) { return values_[static_cast<std::size_t>(i)]; }
  const Element& operator[](std::int64_t i) const { return values_[static_cast<std::size_t>(i)]; }
  std::int64_t size() const { return view_.numel(); }
  std::vector<Element>& values() { return values_; }
  const std::vector<Element>& values() const { return values_; }

 private:
  dropless::TensorView view_;
  std::vector<Element> values_;
};

// Scratch memory: 64-byte aligned, of the size that an op's ..._workspace_bytes function returns.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) : lines_(bytes / sizeof(Line) + 1) {}
  void* data() { return lines_.data(); }
  std::size_t bytes() const { return lines_.size() * sizeof(Line); }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  std::vector<Line> lines_;
};

// The weights of a layer of experts, drawn so that values keep their size from layer to layer.
struct Layer {
  Layer(const dropless::MoEConfig& config, std::mt19937& random)
      : config(config),
        router_ED{config.num_experts, config.d_model},
        w1_EFD{config.num_experts, config.d_ffn, config.d_model},
        v1_EFD{config.num_experts, config.d_ffn, config.d_model},
        w2_EFD{config.num_experts, config.d_ffn, config.d_model} {
    const double in = 1 / std::sqrt(static_cast<double>(config.d_model));
    router_ED.fill_normal(random, in);
    w1_EFD.fill_normal(random, in);
    v1_EFD.fill_normal(random, in);
    w2_EFD.fill_normal(random, 1 / std::sqrt(static_cast<double>(config.d_ffn)));
  }

  dropless::MoEWeights weights() const {
    return {.router_ED = router_ED, .w1_EFD = w1_EFD, .v1_EFD = v1_EFD, .w2_EFD = w2_EFD};
  }

  dropless::MoEConfig config;
  Tensor<float> router_ED, w1_EFD, v1_EFD, w2_EFD;
};

// What forward keeps for backward, for `tokens` tokens.
struct Saved {
  Saved(const dropless::MoEConfig& config, std::int64_t tokens)
      : gate_RF{tokens * config.top_k, config.d_ffn},
        up_RF{tokens * config.top_k, config.d_ffn},
        weights_TK{tokens, config.top_k},
        indices_TK{tokens, config.top_k},
        rows_TK{tokens, config.top_k},
        offsets_E1{config.num_experts + 1} {}

  dropless::MoESaved views() {
    return {.gate_RF = gate_RF,
            .up_RF = up_RF,
            .weights_TK = weights_TK,
            .indices_TK = indices_TK,
            .rows_TK = rows_TK,
            .offsets_E1 = offsets_E1};
  }

  Tensor<float> gate_RF, up_RF, weights_TK;
  Tensor<std::int32_t> indices_TK, rows_TK;
  Tensor<std::int64_t> offsets_E1;
};

// The largest |a - b|, relative to the largest |b|.
inline double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(a[i]) - b[i]));
    size = std::max(size, std::abs(static_cast<double>(b[i])));
  }
  return difference / size;
}

}  // namespace examples
