#include "train/run/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <set>

#include "dropless/error.h"

namespace dropless::train {

bool contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

namespace {

[[noreturn]] void not_finite() {
  throw Error(ErrorKind::kNonFinite, "the model's logits are not finite",
              "the weights of this model are ruined: take an older checkpoint");
}

// Of floating-point numbers whose bits are given; `exponent`: those of infinity.
template <class Bits>
bool all_finite(const Bits* bits, std::int64_t count, Bits exponent) {
  Bits infinite = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    infinite = static_cast<Bits>(infinite | static_cast<Bits>((bits[i] & exponent) == exponent));
  }
  return infinite == 0;
}

// The first of the largest of them. Integers that are ordered as the numbers are: their maximum is a vector
// instruction's, block by block, so that only one block is searched.
template <class Bits>
std::int64_t first_largest(const Bits* bits, std::int64_t count) {
  constexpr std::int64_t kBlock = 1024;
  constexpr Bits kMagnitude = std::numeric_limits<Bits>::max();
  const auto key = [](Bits x) { return static_cast<Bits>(x < 0 ? -(x & kMagnitude) : x); };
  Bits most = std::numeric_limits<Bits>::min();
  std::int64_t block = 0;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, count);
    Bits here = std::numeric_limits<Bits>::min();
    for (std::int64_t i = begin; i < end; ++i) here = std::max(here, key(bits[i]));
    if (here > most) {
      most = here;
      block = begin;
    }
  }
  return std::find_if(bits + block, bits + count, [&](Bits x) { return key(x) == most; }) - bits;
}

// As sample() at temperature 0 of the first `count` logits; -1 where one of all is not finite.
std::int64_t greedy(const at::Tensor& logits_V, std::int64_t count) {
  const at::Tensor host = logits_V.cpu().contiguous();
  const auto choose = [&](auto exponent) {
    using Bits = decltype(exponent);
    const auto* bits = static_cast<const Bits*>(host.const_data_ptr());
    return all_finite(bits, host.numel(), exponent) ? first_largest(bits, count) : -1;
  };
  switch (host.scalar_type()) {
    case at::kBFloat16:
      return choose(std::int16_t{0x7f80});
    case at::kHalf:
      return choose(std::int16_t{0x7c00});
    default:
      return choose(std::int32_t{0x7f800000});
  }
}

// Every token that was seen becomes less likely, once, however often it was seen.
void penalize(std::vector<double>& logits, double penalty, const std::vector<TokenId>& prompt,
              const std::vector<TokenId>& sequence) {
  if (penalty == 1) return;
  std::set<TokenId> seen(prompt.begin(), prompt.end());
  seen.insert(sequence.begin(), sequence.end());
  for (const TokenId id : seen) logits[id] *= logits[id] < 0 ? penalty : 1 / penalty;
}

// Ids without a text become impossible.
void forbid_unknown(std::vector<double>& logits, const GenerateOptions& options) {
  if (options.tokenizer == nullptr) return;
  for (auto id = static_cast<TokenId>(options.tokenizer->vocab_size()); id < std::ssize(logits);
       ++id) {
    if (!contains(options.eos, id)) logits[id] = -std::numeric_limits<double>::infinity();
  }
}

// In fp64 on the CPU: temperature, then top-k, top-p and min-p, then one draw.
TokenId sample(const std::vector<double>& logits, const GenerateOptions& options,
               std::mt19937_64& rng) {
  if (options.temperature == 0) {
    return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  // Stable: equal logits keep the order of their ids, so that a seed gives one text everywhere.
  std::stable_sort(order.begin(), order.end(),
                   [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  while (std::isinf(logits[order.back()])) order.pop_back();  // forbidden
  if (options.top_k > 0 && options.top_k < static_cast<std::int64_t>(order.size())) {
    order.resize(options.top_k);
  }
  std::vector<double> weight;
  weight.reserve(order.size());
  for (const TokenId id : order) {
    weight.push_back(std::exp((logits[id] - logits[order[0]]) / options.temperature));
  }
  if (options.top_p < 1) {
    const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
    double sum = 0;
    std::size_t kept = 0;
    while (kept < weight.size() && sum < options.top_p * total) sum += weight[kept++];
    weight.resize(std::max<std::size_t>(kept, 1));
  }
  // The likeliest weighs 1.
  while (weight.back() < options.min_p) weight.pop_back();
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  double draw = std::generate_canonical<double, 53>(rng) * total;
  for (std::size_t i = 0; i < weight.size(); ++i) {
    draw -= weight[i];
    if (draw < 0) return order[i];
  }
  return order[weight.size() - 1];
}

}  // namespace

std::vector<double> row_logits(const at::Tensor& logits_V) {
  const at::Tensor host = logits_V.to(at::kDouble).cpu().contiguous();
  const double* data = host.const_data_ptr<double>();
  std::vector<double> row(data, data + host.numel());
  if (!std::all_of(row.begin(), row.end(), [](double x) { return std::isfinite(x); })) {
    not_finite();
  }
  return row;
}

TokenId choose_token(const at::Tensor& logits_V, const std::vector<TokenId>& prompt,
                     const std::vector<TokenId>& sequence, const GenerateOptions& options,
                     std::mt19937_64& rng) {
  const std::int64_t V = logits_V.numel();
  const std::int64_t known =
      options.tokenizer == nullptr
          ? V
          : std::min(V, static_cast<std::int64_t>(options.tokenizer->vocab_size()));
  const bool only_known = std::all_of(options.eos.begin(), options.eos.end(),
                                      [&](TokenId id) { return id < known || id >= V; });
  const bool plain = options.temperature == 0 && options.repetition_penalty == 1 && only_known;
  if (plain && logits_V.scalar_type() != at::kDouble) {
    const std::int64_t id = greedy(logits_V, known);
    if (id < 0) not_finite();
    return static_cast<TokenId>(id);
  }
  std::vector<double> logits = row_logits(logits_V);
  penalize(logits, options.repetition_penalty, prompt, sequence);
  forbid_unknown(logits, options);
  return sample(logits, options, rng);
}

}  // namespace dropless::train
