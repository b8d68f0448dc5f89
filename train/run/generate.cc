#include "train/run/generate.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <mutex>
#include <random>
#include <span>

#include "dropless/error.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/run/memory.h"
#include "train/run/sampling.h"
#include "train/run/token_passes.h"

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
    // Once: a training run draws samples again and again.
    static std::once_flag said;
    std::call_once(said, [&] {
      log_warning("{} tokens are more than the {} that the model was trained on",
                  S + options.max_new_tokens, model.config().max_seq_len);
    });
  }
  at::NoGradGuard no_grad;
  AutocastGuard autocast(options.precision, model.device());

  TokenPasses passes(model, options.precision, prompt.pads_B, options.max_new_tokens);
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const at::Tensor logits_BSV = passes.read_prompts(prompt.tokens_BS);
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
  auto before = Clock::now();
  result.prompt_seconds = std::chrono::duration<double>(before - start).count();

  // One generator a sequence: what a prompt yields does not depend on its neighbours.
  std::vector<std::mt19937_64> rngs;
  for (std::size_t b = 0; b < B; ++b) rngs.emplace_back(options.seed + b);
  std::vector<std::string> texts(B);  // of the new tokens, where stop strings are looked for
  std::vector<TokenId> next(B, 0);
  for (std::int64_t step = 0; step < options.max_new_tokens; ++step) {
    check_interrupted();
    if (options.ends_early && options.ends_early()) break;
    for (std::size_t b = 0; b < B; ++b) {
      if (result.finish[b] != Finish::kLength) continue;
      std::vector<TokenId>& sequence = result.sequences[b];
      const TokenId id = choose_token(last_BV[static_cast<std::int64_t>(b)], prompts[b], sequence,
                                      options, rngs[b]);
      sequence.push_back(id);
      next[b] = id;
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
    last_BV = passes.read_tokens(next);
    const auto now = Clock::now();
    result.pass_seconds.push_back(std::chrono::duration<double>(now - before).count());
    before = now;
  }
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
    all.pass_seconds.insert(all.pass_seconds.end(), one.pass_seconds.begin(),
                            one.pass_seconds.end());
    loss += one.cross_entropy.value_or(0) * tokens;
    scored += tokens;
    ++options.seed;  // as in one batch
  }
  if (scored > 0) all.cross_entropy = loss / scored;
  return all;
}

}  // namespace

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
