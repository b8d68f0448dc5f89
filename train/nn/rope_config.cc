#include "train/nn/rope_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

namespace dropless::train {
namespace {

constexpr std::pair<const char*, RopeScaling::Type> kTypes[] = {
    {"no_scaling", RopeScaling::Type::kNone}, {"linear", RopeScaling::Type::kLinear},
    {"dynamic", RopeScaling::Type::kDynamic}, {"llama3", RopeScaling::Type::kLlama3},
    {"yarn", RopeScaling::Type::kYarn},
};

// Without an attention_factor of its own. Scores are products of a query and a key, so they grow by
// its square.
double default_attention_factor(double factor, double mscale, double mscale_all_dim) {
  const auto of = [&](double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1; };
  return mscale != 0 && mscale_all_dim != 0 ? of(mscale) / of(mscale_all_dim) : of(1);
}

}  // namespace

RopeScaling RopeScaling::from_yaml(const YamlMap& map, std::int64_t max_seq_len) {
  RopeScaling scaling;
  const auto name = map.get<std::string>("type", "no_scaling");
  const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes),
                                   [&](const auto& known) { return name == known.first; });
  if (found == std::end(kTypes)) {
    map.fail("type", "unknown type " + name, "one of: no_scaling, linear, dynamic, llama3, yarn");
  }
  scaling.type = found->second;
  const bool llama3 = scaling.type == Type::kLlama3, yarn = scaling.type == Type::kYarn;
  if (scaling.type == Type::kNone) {
    map.no_effect("factor", "type is no_scaling");
  } else {
    scaling.factor = map.positive<double>("factor");
    if (scaling.factor < 1) map.fail("factor", fmt::format("factor {} is below 1", scaling.factor));
  }
  if (scaling.type == Type::kDynamic) scaling.original_max_seq_len = max_seq_len;
  if (llama3 || yarn) {
    scaling.original_max_seq_len = map.positive<std::int64_t>("original_max_position_embeddings");
  }
  if (llama3) {
    scaling.low_freq_factor = map.positive<double>("low_freq_factor");
    scaling.high_freq_factor = map.positive<double>("high_freq_factor");
    if (scaling.high_freq_factor <= scaling.low_freq_factor) {
      map.fail("high_freq_factor",
               fmt::format("high_freq_factor {} is not above low_freq_factor {}",
                           scaling.high_freq_factor, scaling.low_freq_factor));
    }
  }
  if (yarn) {
    scaling.beta_fast = map.positive<double>("beta_fast", scaling.beta_fast);
    scaling.beta_slow = map.positive<double>("beta_slow", scaling.beta_slow);
    if (scaling.beta_fast < scaling.beta_slow) {
      map.fail("beta_fast", fmt::format("beta_fast {} is below beta_slow {}", scaling.beta_fast,
                                        scaling.beta_slow));
    }
    scaling.truncate = map.get<bool>("truncate", scaling.truncate);
    const auto mscale = map.non_negative<double>("mscale", 0.0);
    const auto all_dim = map.non_negative<double>("mscale_all_dim", 0.0);
    scaling.attention_factor =
        map.find_positive<double>("attention_factor")
            .value_or(default_attention_factor(scaling.factor, mscale, all_dim));
  }
  map.finish();
  return scaling;
}

const char* RopeScaling::type_name() const {
  for (const auto& [name, known] : kTypes) {
    if (type == known) return name;
  }
  return "unknown";
}

std::string RopeScaling::describe() const {
  std::string text = type_name();
  if (type == Type::kNone) return text;
  text += fmt::format(", factor {}", factor);
  if (type == Type::kLinear) return text;
  text += fmt::format(", {} positions", original_max_seq_len);
  if (type == Type::kLlama3) {
    text += fmt::format(", from {} to {} turns", low_freq_factor, high_freq_factor);
  }
  if (type == Type::kYarn) {
    text += fmt::format(", from {} to {} turns{}, attention_factor {}", beta_slow, beta_fast,
                        truncate ? "" : " (not truncated)", attention_factor);
  }
  return text;
}

}  // namespace dropless::train
