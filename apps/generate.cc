// `dropless generate MODEL [--prompt TEXT | --prompt-file F | --prompt-ids JSON] ...`
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "apps/generate_chat.h"
#include "apps/model_options.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "apps/whole_number.h"
#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/run/generate.h"

namespace dropless::apps {

using namespace train;

namespace {

struct GenerateVerb {
  std::string model;
  std::vector<std::string> prompts;
  std::string prompt_file, prompt_ids;
  // Given, even if empty: an unset shell variable must not become another prompt.
  bool from_file = false, from_ids = false;
  bool json = false, logits = false, timings = false;
  double load_seconds = 0;
  bool chat = false;
  std::string system, messages_file;
  GenerateOptions options;
  ModelOptions model_options;
};

// Prints bytes as they come, up to a stop string, as valid UTF-8: what may be the beginning of a
// stop string or of a character waits for the rest.
class TextPrinter {
 public:
  // From here on; what was printed before is not looked at.
  void stop_at(std::vector<std::string> stop) { stop_ = std::move(stop); }
  void print(const std::string& bytes) {
    pending_ += bytes;
    const std::size_t end = find_stop(pending_, stop_);
    if (end != std::string::npos) {
      flush(end);
      pending_.clear();
      return;
    }
    std::size_t held = unfinished();
    for (const std::string& stop : stop_) held = std::max(held, begun(stop));
    flush(pending_.size() - held);
  }
  void finish() { flush(pending_.size()); }

 private:
  // Bytes at the end that may be the beginning of a longer character.
  std::size_t unfinished() const {
    for (std::size_t back = 1; back <= 3 && back <= pending_.size(); ++back) {
      const auto byte = static_cast<unsigned char>(pending_[pending_.size() - back]);
      if ((byte & 0xC0) == 0x80) continue;
      const std::size_t length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
      return length > back ? back : 0;
    }
    return 0;
  }
  // Bytes at the end that are the beginning of `stop`.
  std::size_t begun(std::string_view stop) const {
    const std::string_view text = pending_;
    std::size_t bytes = std::min(stop.size() - 1, text.size());
    while (!text.ends_with(stop.substr(0, bytes))) --bytes;
    return bytes;
  }
  void flush(std::size_t bytes) {
    const std::string text = replace_invalid_utf8(pending_.substr(0, bytes));
    std::fwrite(text.data(), 1, text.size(), stdout);
    flush_output();
    pending_.erase(0, bytes);
  }

  std::vector<std::string> stop_;
  std::string pending_;
};

std::vector<std::vector<TokenId>> ids_from_json(const std::string& text) {
  const nlohmann::json json = parse_json(text, "--prompt-ids");
  std::vector<std::vector<TokenId>> prompts;
  const auto refuse = [] {
    throw Error(ErrorKind::kInvalidArgument, "--prompt-ids is not a list of lists of token ids",
                "for example --prompt-ids '[[5,9,2],[7,7,1]]'");
  };
  if (!json.is_array()) refuse();
  for (const auto& row : json) {
    if (!row.is_array()) refuse();
    std::vector<TokenId> ids;
    for (const auto& id : row) {
      if (!id.is_number_integer()) refuse();
      const auto value = id.get<std::int64_t>();
      if (value < 0 || value > INT32_MAX) refuse();
      ids.push_back(static_cast<TokenId>(value));
    }
    prompts.push_back(std::move(ids));
  }
  return prompts;
}

// What --prompt and --prompt-file say; empty where neither is given.
std::vector<std::string> read_texts(const GenerateVerb& verb) {
  std::vector<std::string> texts = verb.prompts;
  if (verb.from_file) texts = {read_file(verb.prompt_file, 64 << 20)};
  for (const std::string& text : texts) {
    if (!text.empty()) continue;
    throw Error(ErrorKind::kInvalidArgument,
                verb.from_file ? verb.prompt_file + " is empty" : "--prompt is empty",
                "without a prompt a new document begins");
  }
  return texts;
}

// What is said first, and then each prompt as the user's; or the messages of a file.
std::vector<std::string> chat_texts(const GenerateVerb& verb, const ChatTemplate& chat,
                                    const std::vector<std::string>& prompts) {
  if (!verb.messages_file.empty()) {
    const std::string text = read_file(verb.messages_file, 64 << 20);
    return {
        chat.render(messages_from_json(parse_json(text, verb.messages_file), verb.messages_file))};
  }
  std::vector<std::string> texts;
  for (const std::string& prompt : prompts) {
    std::vector<ChatMessage> messages;
    if (!verb.system.empty()) messages.push_back({"system", verb.system});
    messages.push_back({"user", prompt});
    texts.push_back(chat.render(messages));
  }
  return texts;
}

// Positions behind the context are none that the model was trained on. New tokens may reach there:
// generate() warns.
void require_context(const std::vector<TokenId>& prompt, const ModelConfig& config) {
  const auto tokens = static_cast<std::int64_t>(prompt.size());
  if (tokens <= config.max_seq_len) return;
  throw Error(
      ErrorKind::kInvalidArgument,
      fmt::format("a prompt has {} tokens, and the model {} positions", tokens, config.max_seq_len),
      "shorten it");
}

std::vector<std::vector<TokenId>> read_prompts(const GenerateVerb& verb,
                                               const Tokenizer* tokenizer) {
  if (verb.from_ids) return ids_from_json(verb.prompt_ids);
  if (tokenizer == nullptr) {
    throw Error(ErrorKind::kInvalidArgument, "this model's tokenizer is not here",
                "give token ids: --prompt-ids");
  }
  std::vector<std::string> texts = read_texts(verb);
  if (texts.empty()) texts.emplace_back();
  std::vector<std::vector<TokenId>> prompts;
  for (const std::string& text : texts) {
    std::vector<TokenId> ids = tokenizer->encode_with_template(text);
    if (ids.empty() && tokenizer->eos_id()) ids.push_back(*tokenizer->eos_id());  // a new document
    prompts.push_back(std::move(ids));
  }
  return prompts;
}

void print_json(const GenerateVerb& verb, const GenerateResult& result, const Tokenizer* tokenizer,
                const std::vector<std::string>& chat_prompts = {}) {
  nlohmann::ordered_json json;
  if (verb.chat) json["prompt"] = chat_prompts;
  json["sequences"] = result.sequences;
  json["text"] = nullptr;
  if (tokenizer != nullptr) {
    json["text"] = nlohmann::json::array();
    for (const auto& ids : result.sequences) {
      const std::string text = text_of(*tokenizer, ids);
      json["text"].push_back(text.substr(0, find_stop(text, verb.options.stop)));
    }
  }
  if (verb.timings) {
    std::vector<double> passes = result.pass_seconds;
    const double all = std::accumulate(passes.begin(), passes.end(), 0.0);
    std::sort(passes.begin(), passes.end());
    json["seconds"] = {
        {"load", verb.load_seconds},
        {"prompt", result.prompt_seconds},
        {"pass", passes.empty() ? nlohmann::json() : nlohmann::json(passes[passes.size() / 2])},
        {"passes", all}};
  }
  json["finish"] = nlohmann::json::array();
  for (const Finish how : result.finish) {
    json["finish"].push_back(how == Finish::kEos    ? "eos"
                             : how == Finish::kStop ? "stop"
                                                    : "length");
  }
  if (verb.logits) {
    json["cross_entropy"] = nullptr;
    if (result.cross_entropy) json["cross_entropy"] = *result.cross_entropy;
    json["logits_last"] = result.logits_last;
  }
  std::cout << json.dump() << "\n";
}

// The ids of a rendered template, which says itself where its special tokens are.
std::vector<TokenId> encode_chat(const LoadedModel& loaded, const std::string& text) {
  std::vector<TokenId> ids = loaded.tokenizer->encode(text);
  if (ids.empty()) throw Error(ErrorKind::kInvalidArgument, "the chat template makes no text");
  require_context(ids, loaded.model->config());
  return ids;
}

void run_chat(const GenerateVerb& verb, const LoadedModel& loaded, const GenerateOptions& options) {
  const ChatTemplate chat = chat_template_of(loaded);
  const Tokenizer& tokenizer = *loaded.tokenizer;
  const std::vector<std::string> texts = chat_texts(verb, chat, read_texts(verb));
  if (verb.json) {
    std::vector<std::vector<TokenId>> prompts;
    for (const std::string& text : texts) prompts.push_back(encode_chat(loaded, text));
    return print_json(verb, generate(*loaded.model, prompts, options), &tokenizer, texts);
  }
  const auto answer = [&](const std::string& text) {
    TextPrinter printer;
    printer.stop_at(options.stop);
    const auto on_token = [&](std::size_t, TokenId id) {
      const bool end = std::find(options.eos.begin(), options.eos.end(), id) != options.eos.end();
      if (!end) printer.print(tokenizer.decode_bytes(std::vector<TokenId>{id}, /*first=*/false));
    };
    const GenerateResult result =
        generate(*loaded.model, {encode_chat(loaded, text)}, options, on_token);
    printer.finish();
    std::fputs("\n", stdout);
    flush_output();
    const std::string spoken = tokenizer.decode(result.sequences[0]);
    return spoken.substr(0, find_stop(spoken, options.stop));
  };
  if (texts.size() > 1) {
    throw Error(ErrorKind::kInvalidArgument, "only one prompt can be answered as text",
                "use --json");
  }
  if (!texts.empty()) {
    answer(texts[0]);
    return;
  }
  std::vector<ChatMessage> messages;
  if (!verb.system.empty()) messages.push_back({"system", verb.system});
  converse(chat, std::move(messages), answer);
}

void check_chat_options(const GenerateVerb& verb) {
  if (!verb.chat && (!verb.system.empty() || !verb.messages_file.empty())) {
    throw Error(ErrorKind::kInvalidArgument, "--system and --messages need --chat");
  }
  if (!verb.chat) return;
  if (verb.from_ids) {
    throw Error(ErrorKind::kInvalidArgument, "--chat takes texts, and --prompt-ids are ids");
  }
  const bool says = !verb.prompts.empty() || verb.from_file;
  if (!verb.messages_file.empty() && (says || !verb.system.empty())) {
    throw Error(ErrorKind::kInvalidArgument,
                "--messages has all messages: no --prompt or --system beside it");
  }
  if (verb.json && !says && verb.messages_file.empty()) {
    throw Error(ErrorKind::kInvalidArgument,
                "--chat --json needs --prompt, --prompt-file or --messages");
  }
}

// Continues the prompts as they are.
void run_plain(const GenerateVerb& verb, const LoadedModel& loaded,
               const GenerateOptions& options) {
  const Tokenizer* tokenizer = loaded.tokenizer.get();
  const auto prompts = read_prompts(verb, tokenizer);
  for (const auto& prompt : prompts) require_context(prompt, loaded.model->config());
  if (verb.json) {
    print_json(verb, generate(*loaded.model, prompts, options), tokenizer);
    return;
  }
  if (tokenizer == nullptr) {
    throw Error(ErrorKind::kInvalidArgument,
                "this model's tokenizer is not here, which would make text of its tokens",
                "--json prints them as ids");
  }
  if (prompts.size() != 1) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} prompts; one can be printed as text", prompts.size()),
                "use --json");
  }
  TextPrinter printer;
  printer.print(tokenizer->decode_bytes(prompts[0]));
  printer.stop_at(options.stop);
  generate(*loaded.model, prompts, options, [&](std::size_t, TokenId id) {
    if (id >= tokenizer->vocab_size()) return;  // an EOS that only the model knows
    printer.print(tokenizer->decode_bytes(std::vector<TokenId>{id}, /*first=*/false));
  });
  printer.finish();
  std::fputs("\n", stdout);
}

void run_generate(GenerateVerb& verb) {
  install_signal_handlers(SignalMode::kExit);
  check_chat_options(verb);
  for (const auto& [given, name] :
       {std::pair(verb.logits, "--logits"), {verb.timings, "--timings"}}) {
    if (given && !verb.json) {
      throw Error(ErrorKind::kInvalidArgument, std::string(name) + " needs --json");
    }
  }
  if (verb.from_file && verb.prompt_file.empty()) {
    throw Error(ErrorKind::kInvalidArgument, "--prompt-file is empty", "name a file");
  }
  if (verb.from_ids && verb.prompt_ids.empty()) {
    throw Error(ErrorKind::kInvalidArgument, "--prompt-ids is empty",
                "for example --prompt-ids '[[5,9,2],[7,7,1]]'");
  }
  GenerateOptions options = verb.options;
  options.check();
  options.precision = verb.model_options.precision();
  const auto start = std::chrono::steady_clock::now();
  const LoadedModel loaded = verb.model_options.open(verb.model);
  verb.load_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  options.tokenizer = loaded.tokenizer.get();
  options.eos = loaded.eos;
  name_ruined_weights(loaded, [&] {
    verb.chat ? run_chat(verb, loaded, options) : run_plain(verb, loaded, options);
  });
}

}  // namespace

void add_generate_verb(CLI::App& app) {
  auto verb = std::make_shared<GenerateVerb>();
  CLI::App* cli = app.add_subcommand("generate", "Continue a prompt");
  cli->add_option("model", verb->model, "checkpoint, run folder or Hugging Face folder")
      ->required();
  auto* prompt = cli->add_option_group("prompt");
  prompt->add_option("--prompt", verb->prompts, "text to continue; with --json again for more")
      ->allow_extra_args(false);
  CLI::Option* file =
      prompt->add_option("--prompt-file", verb->prompt_file, "file with the text to continue");
  CLI::Option* ids =
      prompt->add_option("--prompt-ids", verb->prompt_ids, "token ids, a list of lists");
  prompt->require_option(0, 1);
  cli->add_flag(
      "--chat", verb->chat,
      "prompts are a user's messages, put as the model's chat template says; without one, "
      "a conversation over standard input");
  cli->add_option("--system", verb->system, "with --chat: the system message");
  cli->add_option("--messages", verb->messages_file,
                  "with --chat: JSON file with a list of {\"role\", \"content\"}");
  cli->add_option("--max-new-tokens", verb->options.max_new_tokens)
      ->check(whole_number<std::int32_t>(0))
      ->capture_default_str();
  cli->add_option("--temperature", verb->options.temperature, "0: greedy")->capture_default_str();
  cli->add_option("--top-k", verb->options.top_k, "keep the k likeliest; 0: all")
      ->check(whole_number<std::int64_t>(0))
      ->capture_default_str();
  cli->add_option("--top-p", verb->options.top_p, "keep the likeliest of this probability")
      ->capture_default_str();
  cli->add_option("--min-p", verb->options.min_p, "keep this share of the likeliest's probability")
      ->capture_default_str();
  cli->add_option("--repetition-penalty", verb->options.repetition_penalty,
                  "above 1: what was said becomes less likely")
      ->capture_default_str();
  cli->add_option("--stop", verb->options.stop, "end before this text; again for more")
      ->allow_extra_args(false);
  cli->add_option("--seed", verb->options.seed)
      ->check(whole_number<std::uint64_t>(0))
      ->capture_default_str();
  cli->add_flag("--json", verb->json, "one JSON document on standard output");
  cli->add_flag("--logits", verb->logits, "with --json: prompt cross-entropy and last logits");
  cli->add_flag(
      "--timings", verb->timings,
      "with --json: seconds until the weights were there, of the prompts, and of each pass "
      "after them");
  verb->model_options.add_to(*cli);
  cli->footer("Example: dropless generate runs/demo --prompt 'def main():' --temperature 0.8");
  cli->callback([verb, file, ids] {
    verb->from_file = file->count() > 0;
    verb->from_ids = ids->count() > 0;
    run_generate(*verb);
  });
}

}  // namespace dropless::apps
