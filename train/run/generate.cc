#include "train/run/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <span>

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
    for (const TokenId id : prompt) {
      if (id < 0 || id >= config.vocab_size) {
        throw Error(
            ErrorKind::kInvalidArgument,
            fmt::format("token id {} is outside the vocabulary of {}", id, config.vocab_size));
      }
    }
  }
}

bool contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
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

// Prompts as rows of one length, filled up in front.
struct PromptTensors {
  at::Tensor tokens_BS, labels_BS;  // -100 where the next token is no prompt's
  at::Tensor pads_B;                // undefined where all have one length
  std::int64_t scored = 0;
};

PromptTensors prompt_tensors(const std::vector<std::vector<TokenId>>& prompts, at::Device device) {
  const auto B = static_cast<std::int64_t>(prompts.size());
  std::int64_t S = 0;
  bool equal = true;
  for (const auto& prompt : prompts) {
    S = std::max(S, static_cast<std::int64_t>(prompt.size()));
    equal = equal && prompt.size() == prompts[0].size();
  }
  PromptTensors tensors;
  at::Tensor tokens = at::zeros({B, S}, at::kLong), pads = at::zeros({B}, at::kLong);
  at::Tensor labels = at::full({B, S}, -100, at::kLong);
  for (std::int64_t b = 0; b < B; ++b) {
    const auto length = static_cast<std::int64_t>(prompts[b].size());
    const std::int64_t first = b * S + S - length;
    std::copy(prompts[b].begin(), prompts[b].end(),
              tokens.mutable_data_ptr<std::int64_t>() + first);
    std::copy(prompts[b].begin() + 1, prompts[b].end(),
              labels.mutable_data_ptr<std::int64_t>() + first);
    pads.mutable_data_ptr<std::int64_t>()[b] = S - length;
    tensors.scored += length - 1;
  }
  tensors.tokens_BS = tokens.to(device);
  tensors.labels_BS = labels.to(device);
  if (!equal) tensors.pads_B = pads.to(device);
  return tensors;
}

GenerateResult run_generate(Transformer& model, const std::vector<std::vector<TokenId>>& prompts,
                            const GenerateOptions& options,
                            const std::function<void(std::size_t, TokenId)>& on_token) {
  options.check();
  check_prompts(prompts, model.config());
  if (!options.stop.empty() && options.tokenizer == nullptr) {
    throw Error(ErrorKind::kInvalidArgument,
                "stop strings need the model's tokenizer, which is not here");
  }
  const std::size_t B = prompts.size();
  const PromptTensors prompt = prompt_tensors(prompts, model.device());
  const std::int64_t S = prompt.tokens_BS.size(1);
  if (!model.config().learned_pos_emb && S + options.max_new_tokens > model.config().max_seq_len) {
    log_warning("{} tokens are more than the {} that the model was trained on",
                S + options.max_new_tokens, model.config().max_seq_len);
  }
  at::NoGradGuard no_grad;
  AutocastGuard autocast(options.precision, model.device());

  RouterRecord record;
  ModelCache cache;
  PassOptions pass;
  pass.pads_B = prompt.pads_B;
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const at::Tensor logits_BSV = model.forward(prompt.tokens_BS, record, &cache, pass);
  GenerateResult result;
  result.sequences.resize(B);
  result.finish.resize(B, Finish::kLength);
  if (prompt.scored > 0) {
    const at::Tensor sum = cross_entropy_sum(logits_BSV, prompt.labels_BS);
    result.cross_entropy = sum.item<double>() / static_cast<double>(prompt.scored);
  }
  at::Tensor last_BV = logits_BSV.select(1, S - 1);
  for (std::size_t b = 0; b < B; ++b) {
    const std::vector<double> row = row_logits(last_BV[static_cast<std::int64_t>(b)]);
    result.logits_last.emplace_back(row.begin(), row.end());
  }

  // row_logits() has waited for them.
  const auto prompts_done = Clock::now();
  result.prompt_seconds = std::chrono::duration<double>(prompts_done - start).count();

  // One generator a sequence: what a prompt yields does not depend on its neighbours.
  std::vector<std::mt19937_64> rngs;
  for (std::size_t b = 0; b < B; ++b) rngs.emplace_back(options.seed + b);
  std::vector<std::string> texts(B);  // of the new tokens, where stop strings are looked for
  at::Tensor next = at::zeros({static_cast<std::int64_t>(B), 1}, at::kLong);
  for (std::int64_t step = 0; step < options.max_new_tokens; ++step) {
    check_interrupted();
    for (std::size_t b = 0; b < B; ++b) {
      if (result.finish[b] != Finish::kLength) continue;
      std::vector<TokenId>& sequence = result.sequences[b];
      std::vector<double> logits = row_logits(last_BV[static_cast<std::int64_t>(b)]);
      penalize(logits, options.repetition_penalty, prompts[b], sequence);
      forbid_unknown(logits, options);
      const TokenId id = sample(logits, options, rngs[b]);
      sequence.push_back(id);
      next.mutable_data_ptr<std::int64_t>()[b] = id;
      if (contains(options.eos, id)) {
        result.finish[b] = Finish::kEos;
      } else if (!options.stop.empty()) {
        texts[b] +=
            options.tokenizer->decode_bytes(std::span(&sequence.back(), 1), /*first=*/false);
        if (find_stop(texts[b], options.stop) != std::string::npos) {
          result.finish[b] = Finish::kStop;
        }
      }
      if (on_token) on_token(b, id);
    }
    const bool all_stopped = std::all_of(result.finish.begin(), result.finish.end(),
                                         [](Finish how) { return how != Finish::kLength; });
    if (all_stopped || step + 1 == options.max_new_tokens) break;
    last_BV = model.forward(next.to(model.device()), record, &cache, pass).select(1, 0);
    record = {};
    ++result.passes;
  }
  result.token_seconds = std::chrono::duration<double>(Clock::now() - prompts_done).count();
  return result;
}

GenerateResult generate_one_by_one(Transformer& model,
                                   const std::vector<std::vector<TokenId>>& prompts,
                                   GenerateOptions options,
                                   const std::function<void(std::size_t, TokenId)>& on_token) {
  GenerateResult all;
  double loss = 0, scored = 0;
  for (std::size_t b = 0; b < prompts.size(); ++b) {
    const auto mine = [&](std::size_t, TokenId id) {
      if (on_token) on_token(b, id);
    };
    const GenerateResult one = run_generate(model, {prompts[b]}, options, mine);
    all.sequences.push_back(one.sequences[0]);
    all.finish.push_back(one.finish[0]);
    all.logits_last.push_back(one.logits_last[0]);
    const auto tokens = static_cast<double>(prompts[b].size() - 1);
    all.prompt_seconds += one.prompt_seconds;
    all.token_seconds += one.token_seconds;
    all.passes += one.passes;
    loss += one.cross_entropy.value_or(0) * tokens;
    scored += tokens;
    ++options.seed;  // as in one batch
  }
  if (scored > 0) all.cross_entropy = loss / scored;
  return all;
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
  if (!(min_p >= 0 && min_p <= 1)) refuse("min-p must be from 0 to 1");
  if (!(repetition_penalty > 0) || std::isinf(repetition_penalty)) {
    refuse("the repetition penalty must be above 0");
  }
  for (const std::string& text : stop) {
    if (text.empty()) refuse("a stop string is empty");
  }
}

std::size_t find_stop(std::string_view text, const std::vector<std::string>& stop) {
  std::size_t first = std::string_view::npos;
  for (const std::string& one : stop) first = std::min(first, text.find(one));
  return first;
}

std::string text_of(const Tokenizer& tokenizer, std::span<const TokenId> ids) {
  std::vector<TokenId> known;
  std::copy_if(ids.begin(), ids.end(), std::back_inserter(known),
               [&](TokenId id) { return id < tokenizer.vocab_size(); });
  return tokenizer.decode(known);
}

GenerateResult generate(Transformer& model, const std::vector<std::vector<TokenId>>& prompts,
                        const GenerateOptions& options,
                        const std::function<void(std::size_t, TokenId)>& on_token) {
  return with_torch_errors(
      "if memory ran out, shorten the prompts or generate fewer at a time", [&] {
        // Where angles depend on a row's length, rows of one length can share a pass, others not.
        const bool dynamic =
            model.config().attention.rope_scaling.type == RopeScaling::Type::kDynamic;
        const bool equal = std::all_of(prompts.begin(), prompts.end(), [&](const auto& prompt) {
          return prompt.size() == prompts[0].size();
        });
        return dynamic && !equal ? generate_one_by_one(model, prompts, options, on_token)
                                 : run_generate(model, prompts, options, on_token);
      });
}

}  // namespace dropless::train
