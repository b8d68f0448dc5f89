#include "train/run/generate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "dropless/error.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/run/memory.h"

namespace dropless::train {
namespace {

void check_prompts(const std::vector<std::vector<TokenId>>& prompts, const ModelConfig& config) {
  if (prompts.empty()) throw Error(ErrorKind::kInvalidArgument, "there is no prompt");
  for (const auto& prompt : prompts) {
    if (prompt.empty()) {
      throw Error(ErrorKind::kInvalidArgument, "a prompt must have at least one token");
    }
    if (prompt.size() != prompts[0].size()) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("prompts have different lengths, {} and {}", prompts[0].size(),
                              prompt.size()),
                  "batch prompts of equal length, or run one after the other");
    }
    for (const TokenId id : prompt) {
      if (id < 0 || id >= config.vocab_size) {
        throw Error(
            ErrorKind::kInvalidArgument,
            fmt::format("token id {} is outside the vocabulary of {}", id, config.vocab_size));
      }
    }
  }
}

// In fp64 on the CPU: temperature, then top-k, then top-p, then one draw.
TokenId sample(std::vector<double> logits, const GenerateOptions& options, std::mt19937_64& rng) {
  if (options.temperature == 0) {
    return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  // Stable: equal logits keep the order of their ids, so that a seed gives one text everywhere.
  std::stable_sort(order.begin(), order.end(),
                   [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  if (options.top_k > 0 && options.top_k < static_cast<std::int64_t>(order.size())) {
    order.resize(options.top_k);
  }
  std::vector<double> weight;
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
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  double draw = std::generate_canonical<double, 53>(rng) * total;
  for (std::size_t i = 0; i < weight.size(); ++i) {
    draw -= weight[i];
    if (draw < 0) return order[i];
  }
  return order[weight.size() - 1];
}

std::vector<double> row_logits(const at::Tensor& logits_V) {
  const at::Tensor host = logits_V.to(at::kDouble).cpu().contiguous();
  const double* data = host.const_data_ptr<double>();
  std::vector<double> row(data, data + host.numel());
  if (!std::all_of(row.begin(), row.end(), [](double x) { return std::isfinite(x); })) {
    throw Error(ErrorKind::kNonFinite, "the model's logits are not finite",
                "the weights of this model are ruined: take an older checkpoint");
  }
  return row;
}

GenerateResult run_generate(Transformer& model, const std::vector<std::vector<TokenId>>& prompts,
                            const GenerateOptions& options,
                            const std::function<void(std::size_t, TokenId)>& on_token) {
  options.check();
  check_prompts(prompts, model.config());
  const auto B = static_cast<std::int64_t>(prompts.size());
  const auto S = static_cast<std::int64_t>(prompts[0].size());
  if (!model.config().learned_pos_emb && S + options.max_new_tokens > model.config().max_seq_len) {
    log_warning("{} tokens are more than the {} that the model was trained on",
                S + options.max_new_tokens, model.config().max_seq_len);
  }
  at::NoGradGuard no_grad;
  AutocastGuard autocast(options.precision, model.device());

  at::Tensor tokens = at::empty({B, S}, at::kLong);
  for (std::int64_t b = 0; b < B; ++b) {
    std::copy(prompts[b].begin(), prompts[b].end(),
              tokens.mutable_data_ptr<std::int64_t>() + b * S);
  }
  tokens = tokens.to(model.device());
  RouterRecord record;
  ModelCache cache;
  at::Tensor logits_BSV = model.forward(tokens, record, &cache);
  GenerateResult result;
  result.sequences.resize(B);
  result.stopped_at_eos.resize(B, false);
  if (S > 1) {
    const at::Tensor sum =
        cross_entropy_sum(logits_BSV.narrow(1, 0, S - 1), tokens.narrow(1, 1, S - 1));
    result.cross_entropy = sum.item<double>() / static_cast<double>(B * (S - 1));
  }
  at::Tensor last_BV = logits_BSV.select(1, S - 1);
  for (std::int64_t b = 0; b < B; ++b) {
    const std::vector<double> row = row_logits(last_BV[b]);
    result.logits_last.emplace_back(row.begin(), row.end());
  }

  // One generator a sequence: what a prompt yields does not depend on its neighbours.
  std::vector<std::mt19937_64> rngs;
  for (std::int64_t b = 0; b < B; ++b)
    rngs.emplace_back(options.seed + static_cast<std::uint64_t>(b));
  at::Tensor next = at::zeros({B, 1}, at::kLong);
  for (std::int64_t step = 0; step < options.max_new_tokens; ++step) {
    check_interrupted();
    for (std::int64_t b = 0; b < B; ++b) {
      if (result.stopped_at_eos[b]) continue;
      const TokenId id = sample(row_logits(last_BV[b]), options, rngs[b]);
      result.sequences[b].push_back(id);
      if (on_token) on_token(b, id);
      result.stopped_at_eos[b] = options.eos && id == *options.eos;
      next.mutable_data_ptr<std::int64_t>()[b] = id;
    }
    const bool all_stopped = std::all_of(result.stopped_at_eos.begin(), result.stopped_at_eos.end(),
                                         [](bool stopped) { return stopped; });
    if (all_stopped || step + 1 == options.max_new_tokens) break;
    last_BV = model.forward(next.to(model.device()), record, &cache).select(1, 0);
    record = {};
  }
  return result;
}

}  // namespace

void GenerateOptions::check() const {
  const auto refuse = [](const std::string& message) {
    throw Error(ErrorKind::kInvalidArgument, message);
  };
  if (max_new_tokens < 0) refuse("the number of new tokens must not be negative");
  if (max_new_tokens > std::numeric_limits<std::int32_t>::max()) {
    refuse("the number of new tokens must fit in 32 bits");
  }
  if (!(temperature >= 0) || std::isinf(temperature)) refuse("temperature must be 0 or above");
  if (top_k < 0) refuse("top-k must be 0 (off) or above");
  if (!(top_p > 0 && top_p <= 1)) refuse("top-p must be above 0 and at most 1");
}

GenerateResult generate(Transformer& model, const std::vector<std::vector<TokenId>>& prompts,
                        const GenerateOptions& options,
                        const std::function<void(std::size_t, TokenId)>& on_token) {
  return with_torch_errors("if memory ran out, shorten the prompts or generate fewer at a time",
                           [&] { return run_generate(model, prompts, options, on_token); });
}

}  // namespace dropless::train
