#include "train/data/finetuning.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>

#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/json.h"
#include "train/base/log.h"

namespace dropless::train {
namespace {

constexpr const char* kRoles[] = {"system", "user", "assistant", "tool"};  // LLM Foundry's
constexpr std::size_t kQuoted = 40;  // bytes of a role or key that a message shows

std::optional<std::size_t> find_column(const MdsShard& shard, std::string_view name) {
  for (std::size_t i = 0; i < shard.columns.size(); ++i) {
    if (shard.columns[i].name == name) return i;
  }
  return std::nullopt;
}

bool holds_text(const MdsColumn& column) {
  const EncodingKind kind = column.encoding.kind;
  return kind == EncodingKind::kStr || kind == EncodingKind::kBytes;
}

}  // namespace

FinetuningConfig FinetuningConfig::from_yaml(const YamlMap& dataset) {
  FinetuningConfig config;
  if (const auto name = dataset.find<std::string>("hf_name")) {
    if (!is_folder(*name)) {
      dataset.fail("hf_name",
                   *name + " is no folder here, and nothing is fetched from the Hugging Face hub",
                   "make a set of JSON Lines with `dropless data json`, and name its folder");
    }
    if (dataset.has("local")) {
      dataset.fail("hf_name", "hf_name and local exclude each other", "keep one of them");
    }
    config.folder = *name;
  }
  dataset.refuse("preprocessing_fn", dataset.has("preprocessing_fn"),
                 "there is no Python to run: write the samples as they shall be read");
  dataset.refuse("hf_kwargs", dataset.has("hf_kwargs"),
                 "nothing is fetched from the Hugging Face hub");
  dataset.no_effect("safe_load", "shards hold no code");
  if (!dataset.get<bool>("decoder_only_format", true)) {
    dataset.fail("decoder_only_format", "models here are decoders only", "set it to true");
  }
  const auto prompts = dataset.get<std::string>("target_prompts", "none");
  constexpr std::string_view kLength = "length>=";
  if (prompts == "all") {
    config.least_prompt = 0;
  } else if (prompts.starts_with(kLength)) {
    const std::string_view number = std::string_view(prompts).substr(kLength.size());
    std::int64_t least = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), least);
    if (error != std::errc() || end != number.data() + number.size() || least < 1)
      dataset.fail("target_prompts", fmt::format("'{}' gives no length", prompts));
    config.least_prompt = least;
  } else if (prompts != "none") {
    dataset.fail("target_prompts", fmt::format("unknown target_prompts '{}'", prompts),
                 "one of: none, all, length>=N");
  }
  const auto responses = dataset.get<std::string>("target_responses", "last");
  if (responses != "last" && responses != "all") {
    dataset.fail("target_responses", fmt::format("unknown target_responses '{}'", responses),
                 "one of: last, all");
  }
  config.all_responses = responses == "all";
  if (dataset.has("packing_ratio")) {
    config.packs = true;
    if (!dataset.is_string("packing_ratio")) {
      config.packing_ratio = dataset.get<double>("packing_ratio");
      if (*config.packing_ratio < 1) dataset.fail("packing_ratio", "it is below 1");
    } else if (dataset.get<std::string>("packing_ratio") != "auto") {
      dataset.fail("packing_ratio", "it is neither a number nor auto");
    }
  }
  dataset.skip("packing_ratio");
  for (const char* key : {"allow_pad_trimming", "pad_to_longest"})
    dataset.no_effect(key, "rows are padded to the longest of their batch");
  dataset.no_effect("max_leftover_bins_to_keep", "no sample is left over: a batch gets more rows");
  return config;
}

std::vector<DialogueTurn> read_chat(std::string_view text) {
  const auto damaged = [](const std::string& what) {
    throw Error(ErrorKind::kDamaged, what,
                "a chat is [{\"role\": \"user\", \"content\": \"...\"}, ...]");
  };
  const nlohmann::json messages = parse_json(text, "messages", ErrorKind::kDamaged);
  if (!messages.is_array()) damaged("'messages' is no list of messages");
  if (messages.empty()) damaged("'messages' is empty");
  std::vector<DialogueTurn> out;
  for (const auto& message : messages) {
    const bool whole = message.is_object() && message.contains("role") &&
                       message["role"].is_string() && message.contains("content") &&
                       message["content"].is_string();
    if (!whole) damaged(fmt::format("message {} has no 'role' and 'content' of text", out.size()));
    for (const auto& [key, value] : message.items()) {
      if (key != "role" && key != "content") {
        damaged(fmt::format("message {} has a '{}' beside 'role' and 'content'", out.size(),
                            key.substr(0, kQuoted)));
      }
    }
    out.push_back({message["role"].get<std::string>(), message["content"].get<std::string>()});
    const std::string& role = out.back().role;
    if (std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles)) {
      damaged(fmt::format("message {} is from '{}', not one of {}", out.size() - 1,
                          role.substr(0, kQuoted), fmt::join(kRoles, ", ")));
    }
    if (out.size() > 1 && out[out.size() - 2].role == role) {
      damaged(fmt::format("messages {} and {} are both from '{}'", out.size() - 2, out.size() - 1,
                          role));
    }
  }
  if (out.back().role != "assistant") {
    damaged(
        fmt::format("the last message is from '{}', not the assistant: there is no answer to learn",
                    out.back().role));
  }
  if (out.size() == 1) damaged("the only message is an answer, to no question");
  return out;
}

FinetuningReader::FinetuningReader(MdsReader reader, std::shared_ptr<const Tokenizer> tokenizer,
                                   FinetuningConfig config, std::int64_t max_tokens,
                                   std::int64_t vocab_size)
    : reader_(std::move(reader)),
      tokenizer_(std::move(tokenizer)),
      config_(std::move(config)),
      max_tokens_(static_cast<std::size_t>(max_tokens)),
      vocab_size_(vocab_size) {
  if (!tokenizer_) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} holds text, and no tokenizer is here", reader_.folder()),
                "name the tokenizer's file or folder as tokenizer.name");
  }
  for (const MdsShard& shard : reader_.index().shards)
    columns_.push_back(find_columns(shard, reader_.folder()));
}

FinetuningReader::Columns FinetuningReader::find_columns(const MdsShard& shard,
                                                         const std::string& folder) {
  Columns out;
  out.messages = find_column(shard, "messages");
  if (out.messages) {
    if (shard.columns[*out.messages].encoding.kind == EncodingKind::kJson) return out;
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: column 'messages' is stored as {}", folder,
                            shard.columns[*out.messages].encoding.name),
                "store it as json");
  }
  const auto prompt = find_column(shard, "prompt");
  auto response = find_column(shard, "response");
  if (!response) response = find_column(shard, "completion");
  const bool usable = prompt && response && holds_text(shard.columns[*prompt]) &&
                      holds_text(shard.columns[*response]);
  if (!usable) {
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format(
            "{} has neither text columns 'prompt' and 'response' nor a column 'messages' of json",
            folder),
        "make the set with `dropless data json`");
  }
  out.prompt = *prompt;
  out.response = *response;
  return out;
}

void FinetuningReader::append_turn(const std::vector<TokenId>& prompt,
                                   const std::vector<TokenId>& response, bool last,
                                   TokenRow& row) const {
  const auto add = [&](const std::vector<TokenId>& ids, bool learned) {
    row.ids.insert(row.ids.end(), ids.begin(), ids.end());
    row.learned.resize(row.ids.size(), learned);
  };
  add(prompt,
      config_.least_prompt && static_cast<std::int64_t>(prompt.size()) >= *config_.least_prompt);
  const bool learned = last || config_.all_responses;
  add(response, learned);
  const auto eos = tokenizer_->eos_id();
  if (last && eos && (response.empty() || response.back() != *eos)) add({*eos}, learned);
}

void FinetuningReader::append_chat(std::string_view text, TokenRow& row) const {
  const std::vector<DialogueTurn> messages = read_chat(text);
  std::string prompt;
  bool begun = false;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    if (role != "assistant") {
      prompt += fmt::format("<|im_start|>{}\n{}<|im_end|>\n", role, content);
      continue;
    }
    const auto asked = tokenizer_->encode(prompt + "<|im_start|>assistant\n");
    std::vector<TokenId> context;
    if (!begun) context = tokenizer_->prefix_ids();
    context.insert(context.end(), asked.begin(), asked.end());
    append_turn(context, tokenizer_->encode(content + "<|im_end|>\n"), i + 1 == messages.size(),
                row);
    prompt.clear();
    begun = true;
  }
}

void FinetuningReader::append(std::int64_t sample, TokenRow& row) {
  const std::size_t begin = row.ids.size();
  const std::size_t shard = reader_.shard_of(sample);
  const Columns& columns = columns_[shard];
  const auto values = reader_.read(sample);
  try {
    if (columns.messages) {
      append_chat(values[*columns.messages], row);
    } else {
      std::vector<TokenId> prompt = tokenizer_->prefix_ids();
      const auto text = tokenizer_->encode(values[columns.prompt]);
      prompt.insert(prompt.end(), text.begin(), text.end());
      append_turn(prompt, tokenizer_->encode(values[columns.response]), /*last=*/true, row);
    }
    cut(sample, begin, row);
    if (row.ids.size() == begin) row.ids.push_back(pad_id());
    row.learned.resize(row.ids.size(), 0);
    check_vocabulary(row.ids, begin, vocab_size_);
  } catch (const Error& error) {
    throw Error(error.kind(),
                fmt::format("{}: sample {}: {}", reader_.folder(), sample, error.what()),
                error.hint());
  }
}

// To max_tokens; the first sample that loses all that was to be learned is named.
void FinetuningReader::cut(std::int64_t sample, std::size_t begin, TokenRow& row) {
  const std::size_t tokens = row.ids.size() - begin;
  if (tokens <= max_tokens_) return;
  row.ids.resize(begin + max_tokens_);
  row.learned.resize(row.ids.size());
  const auto own = row.learned.begin() + static_cast<std::ptrdiff_t>(begin);
  if (std::find(own, row.learned.end(), 1) != row.learned.end()) return;
  if (!warned_) {
    log_warning(
        "{}: sample {} has {} tokens and is cut to max_seq_len {}: nothing is left of it to learn; "
        "how many there are is said at the end of the epoch",
        reader_.folder(), sample, tokens, max_tokens_);
  }
  warned_ = true;
  ++lost_;
}

void FinetuningReader::forget_lost() { lost_ = 0; }

void FinetuningReader::report_lost() {
  if (lost_ > 0) {
    log_warning(
        "{}: {} of the samples read were cut to max_seq_len {} before what is to be learned",
        reader_.folder(), lost_, max_tokens_);
  }
  forget_lost();
}

std::vector<std::vector<std::size_t>> pack_rows(const std::vector<std::int64_t>& lengths,
                                                std::int64_t room) {
  std::vector<std::size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return lengths[a] > lengths[b]; });
  std::vector<std::vector<std::size_t>> rows;
  std::vector<std::int64_t> left;
  for (const std::size_t i : order) {
    std::size_t row = 0;
    while (row < rows.size() && left[row] < lengths[i]) ++row;
    if (row == rows.size()) {
      rows.emplace_back();
      left.push_back(room);
    }
    rows[row].push_back(i);
    left[row] -= lengths[i];
  }
  return rows;
}

}  // namespace dropless::train
