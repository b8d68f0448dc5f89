// A router of one's own: S-BASE (Clark et al. 2022, arXiv:2202.01169). Experts are chosen from a
// balanced copy of the scores, so that all get about as many tokens; the weights and their gradients
// stay those of the plain softmax.
//
// Any rule that names K experts for each token fits in the same way: write indices_TK, then call the
// layer with RouteSelection::kGiven. What does not depend on how experts were chosen (weights, losses,
// the backward pass) is the library's.
#pragma once

#include <algorithm>
#include <numeric>

#include "examples/tensor.h"

namespace examples {

// Sinkhorn's iteration: exp(logits), scaled by a factor for each token and one for each expert until
// each token's row sums to K and each expert's column to T K / E. Then the K largest of each row.
inline void sinkhorn_select(const Tensor<float>& logits_TE, std::int64_t experts, int iterations,
                            Tensor<std::int32_t>& indices_TK) {
  const std::int64_t E = experts, T = logits_TE.size() / E, K = indices_TK.size() / T;
  std::vector<double> value(logits_TE.values().size());
  for (std::int64_t t = 0; t < T; ++t) {
    const float* z = logits_TE.values().data() + t * E;
    const double largest = *std::max_element(z, z + E);
    for (std::int64_t e = 0; e < E; ++e)
      value[static_cast<std::size_t>(t * E + e)] = std::exp(z[e] - largest);
  }
  const auto scale_to = [&](std::int64_t count, std::int64_t step, std::int64_t length,
                            std::int64_t stride, double wanted) {
    for (std::int64_t i = 0; i < count; ++i) {
      double sum = 0;
      for (std::int64_t j = 0; j < length; ++j)
        sum += value[static_cast<std::size_t>(i * step + j * stride)];
      for (std::int64_t j = 0; j < length; ++j)
        value[static_cast<std::size_t>(i * step + j * stride)] *= wanted / sum;
    }
  };
  for (int i = 0; i < iterations; ++i) {
    scale_to(T, E, E, 1, static_cast<double>(K));                               // rows
    scale_to(E, 1, T, E, static_cast<double>(T * K) / static_cast<double>(E));  // columns
  }
  std::vector<std::int32_t> order(static_cast<std::size_t>(E));
  for (std::int64_t t = 0; t < T; ++t) {
    std::iota(order.begin(), order.end(), 0);
    const double* row = value.data() + t * E;
    std::partial_sort(
        order.begin(), order.begin() + K, order.end(),
        [&](std::int32_t a, std::int32_t b) { return row[a] != row[b] ? row[a] > row[b] : a < b; });
    std::copy(order.begin(), order.begin() + K, indices_TK.values().begin() + t * K);
  }
}

}  // namespace examples
