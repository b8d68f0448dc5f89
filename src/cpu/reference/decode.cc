// What stands between the products of a pass over one token, plain loops in the accumulator type. The
// contract is include/dropless/decode.h.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "src/common/dispatch.h"
#include "src/cpu/decode.h"

namespace dropless::cpu::reference {
namespace {

// In place, over `count` numbers whose weights begin at weight[0].
void norm_in_place(const DecodeNorm& norm, float* x, std::int64_t count) {
  double mean = 0, square = 0;
  if (!norm.rms) {
    for (std::int64_t i = 0; i < count; ++i) mean += x[i];
    mean /= static_cast<double>(count);
  }
  for (std::int64_t i = 0; i < count; ++i) square += (x[i] - mean) * (x[i] - mean);
  const double factor = 1 / std::sqrt(square / static_cast<double>(count) + norm.eps);
  const auto* weight = static_cast<const float*>(norm.weight_D.data);
  const auto* bias = static_cast<const float*>(norm.bias_D.data);
  for (std::int64_t i = 0; i < count; ++i) {
    const double y = weight[i] * (x[i] - mean) * factor + (bias != nullptr ? bias[i] : 0);
    x[i] = static_cast<float>(y);
  }
}

void clip(double limit, std::vector<float>& x) {
  if (limit <= 0) return;
  const auto most = static_cast<float>(limit);
  for (float& value : x) value = std::clamp(value, -most, most);
}

}  // namespace

void decode_product(const DecodeProductArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    if constexpr (!std::is_same_v<S, double>) {
      const auto *x = static_cast<const S*>(args.x_BK), *w = static_cast<const S*>(args.w_NK);
      for (std::int64_t b = 0; b < args.rows; ++b) {
        for (std::int64_t n = 0; n < args.n; ++n) {
          float sum = 0;
          for (std::int64_t k = 0; k < args.k; ++k) {
            sum += to_float(x[b * args.k + k]) * to_float(w[n * args.k + k]);
          }
          if (args.bias_N != nullptr) sum += args.bias_N[n];
          static_cast<S*>(args.out_BN)[b * args.n + n] = from_float<S>(sum);
        }
      }
    }
  });
}

void decode_add_norm(const DecodeAddNormArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    if constexpr (!std::is_same_v<S, double>) {
      const std::int64_t D = args.width;
      std::vector<float> row(static_cast<std::size_t>(D));
      for (std::int64_t b = 0; b < args.rows; ++b) {
        float* x = args.x_BD + b * D;
        if (args.y_BD != nullptr) {
          for (std::int64_t i = 0; i < D; ++i)
            x[i] += to_float(static_cast<const S*>(args.y_BD)[b * D + i]);
        }
        std::copy_n(x, D, row.begin());
        norm_in_place(args.norm, row.data(), D);
        for (std::int64_t i = 0; i < D; ++i) {
          static_cast<S*>(args.out_BD)[b * D + i] = from_float<S>(row[static_cast<std::size_t>(i)]);
        }
      }
    }
  });
}

namespace {

// The parts of a row of qkv as the scores take them: q [H d], then k and v [G d].
template <class S>
std::vector<float> prepared(const DecodeAttentionArgs& args, const S* from, int part) {
  const DecodeAttention& a = args.attention;
  const std::int64_t d = a.head_dim, heads = part == 0 ? a.heads : a.groups;
  const std::int64_t position = *args.position_1;
  std::vector<float> x;
  for (std::int64_t i = 0; i < heads * d; ++i) x.push_back(to_float(from[i]));
  if (!a.clip_after_norm) clip(a.clip, x);
  const DecodeNorm& norm = part == 0 ? a.q_norm : a.k_norm;
  if (part < 2 && norm.weight_D) {
    const std::int64_t width = norm.weight_D.shape[0];
    for (std::int64_t i = 0; i < heads * d; i += width) norm_in_place(norm, &x[i], width);
  }
  if (a.clip_after_norm) clip(a.clip, x);
  if (part == 2 || !a.cos_PI) return x;
  const auto* cos = static_cast<const float*>(a.cos_PI.data) + position * (d / 2);
  const auto* sin = static_cast<const float*>(a.sin_PI.data) + position * (d / 2);
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t i = 0; i < d / 2; ++i) {
      float &x1 = x[h * d + i], &x2 = x[h * d + i + d / 2];
      const float y1 = x1 * cos[i] - x2 * sin[i], y2 = x2 * cos[i] + x1 * sin[i];
      x1 = y1;
      x2 = y2;
    }
  }
  return x;
}

// One head: q [d], the keys and values of its group, out [d].
template <class S>
void attend(const DecodeAttentionArgs& args, std::int64_t first, double slope, const float* q,
            const S* keys, const S* values, S* out) {
  const DecodeAttention& a = args.attention;
  const std::int64_t d = a.head_dim, position = *args.position_1;
  std::vector<double> weights;
  for (std::int64_t j = first; j <= position; ++j) {
    double s = 0;
    for (std::int64_t i = 0; i < d; ++i) s += double{q[i]} * to_float(keys[j * d + i]);
    s *= a.scale;
    if (a.softcap > 0) s = a.softcap * std::tanh(s / a.softcap);
    weights.push_back(s + slope * static_cast<double>(j - position));
  }
  const double most = *std::max_element(weights.begin(), weights.end());
  double sum = 0;
  for (double& w : weights) sum += w = std::exp(w - most);
  for (std::int64_t i = 0; i < d; ++i) {
    double mixed = 0;
    for (std::int64_t j = first; j <= position; ++j) {
      mixed += weights[j - first] * to_float(values[j * d + i]);
    }
    out[i] = from_float<S>(static_cast<float>(mixed / sum));
  }
}

}  // namespace

void decode_attention(const DecodeAttentionArgs& args) {
  visit_floating(args.dtype, [&](auto zero) {
    using S = decltype(zero);
    if constexpr (!std::is_same_v<S, double>) {
      const DecodeAttention& a = args.attention;
      const std::int64_t d = a.head_dim, position = *args.position_1;
      const auto* slopes = static_cast<const float*>(a.slopes_H.data);
      for (std::int64_t b = 0; b < args.rows; ++b) {
        const S* qkv = static_cast<const S*>(args.qkv_BN) + b * (a.heads + 2 * a.groups) * d;
        S* keys = static_cast<S*>(args.keys_BGCI) + b * a.groups * args.places * d;
        S* values = static_cast<S*>(args.values_BGCI) + b * a.groups * args.places * d;
        const std::vector<float> q = prepared(args, qkv, 0),
                                 k = prepared(args, qkv + a.heads * d, 1),
                                 v = prepared(args, qkv + (a.heads + a.groups) * d, 2);
        for (std::int64_t g = 0; g < a.groups; ++g) {
          for (std::int64_t i = 0; i < d; ++i) {
            keys[(g * args.places + position) * d + i] = from_float<S>(k[g * d + i]);
            values[(g * args.places + position) * d + i] = from_float<S>(v[g * d + i]);
          }
        }
        std::int64_t first = args.pads_B == nullptr ? 0 : args.pads_B[b];
        if (a.window >= 0) first = std::max(first, position - a.window);
        first = std::min(first, position);
        for (std::int64_t h = 0; h < a.heads; ++h) {
          const std::int64_t cache = h / (a.heads / a.groups) * args.places * d;
          attend(args, first, slopes == nullptr ? 0 : slopes[h], &q[h * d], keys + cache,
                 values + cache, static_cast<S*>(args.out_BHI) + (b * a.heads + h) * d);
        }
      }
    }
  });
}

}  // namespace dropless::cpu::reference
