// `dropless data tokenizer train|encode|decode`: makes a tokenizer, shows what one makes of text.
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/data_verbs.h"
#include "apps/standard_input.h"
#include "apps/whole_number.h"
#include "dropless/error.h"
#include "train/base/json.h"
#include "train/base/signals.h"
#include "train/data/documents.h"
#include "train/tokenizer/bpe_trainer.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::apps {

using namespace train;

namespace {

struct TokenizerOptions {
  std::string tokenizer, file;
  bool lines = false, with_template = false;
};

[[noreturn]] void refuse_line(std::size_t number, const std::string& what) {
  throw Error(ErrorKind::kInvalidArgument, fmt::format("standard input:{}: {}", number, what));
}

void run_encode(const TokenizerOptions& options) {
  install_signal_handlers(SignalMode::kThrow);
  const auto tokenizer = make_tokenizer(options.tokenizer);
  const auto print = [&](std::string_view text) {
    const auto ids =
        options.with_template ? tokenizer->encode_with_template(text) : tokenizer->encode(text);
    std::cout << fmt::format("[{}]\n", fmt::join(ids, ","));
  };
  if (!options.file.empty()) return print(read_file(options.file));
  StandardInput input;
  std::string line;
  if (!options.lines) {
    // The lines' ends are part of the text; whether the last one has one shows in no line.
    return print(input.rest());
  }
  for (std::size_t number = 1; input.next_line(line); ++number) {
    const nlohmann::json json = parse_json(line, fmt::format("standard input:{}", number));
    if (!json.is_string()) refuse_line(number, "not a JSON string");
    print(json.get_ref<const std::string&>());
  }
}

void run_decode(const TokenizerOptions& options) {
  install_signal_handlers(SignalMode::kThrow);
  const auto tokenizer = make_tokenizer(options.tokenizer);
  StandardInput input;
  std::string line;
  for (std::size_t number = 1; input.next_line(line); ++number) {
    const nlohmann::json json = parse_json(line, fmt::format("standard input:{}", number));
    if (!json.is_array()) refuse_line(number, "not a JSON array of token ids");
    std::vector<TokenId> ids;
    for (const auto& id : json) {
      if (!id.is_number_integer() || id < 0 || id > INT32_MAX)
        refuse_line(number, id.dump() + " is no token id");
      ids.push_back(id.get<TokenId>());
    }
    std::cout << nlohmann::json(tokenizer->decode(ids)).dump() << "\n";
  }
}

struct TrainOptions {
  std::vector<std::string> files;
  std::string out;
  BpeTrainerOptions trainer;
};

void run_train(const TrainOptions& options) {
  install_signal_handlers(SignalMode::kThrow);
  if (path_exists(options.out)) {
    throw Error(ErrorKind::kInvalidArgument, options.out + " stands there already",
                "remove it or name another file");
  }
  BpeTrainer trainer(options.trainer);
  require_files(options.files);
  std::string document;
  for (const std::string& file : options.files) {
    std::unique_ptr<DocumentSource> documents = std::make_unique<FileDocuments>(std::vector{file});
    if (file.ends_with(".jsonl")) documents = std::make_unique<JsonTexts>(std::vector{file});
    while (documents->next(document)) trainer.add(document);
  }
  write_file_durable(options.out, trainer.finish());
  std::cout << fmt::format("{}: {} tokens\n", options.out,
                           make_tokenizer(options.out)->vocab_size());
}

void add_train(CLI::App& verb) {
  auto options = std::make_shared<TrainOptions>();
  options->trainer.special = {"<|endoftext|>"};
  CLI::App* train = verb.add_subcommand("train", "Learn a byte-level BPE; writes a tokenizer.json");
  train->add_option("FILE", options->files, "text files; of .jsonl files each line's `text`")
      ->required();
  train->add_option("--out", options->out, "file to write")->required();
  train->add_option("--vocab-size", options->trainer.vocab_size, "tokens, special ones included")
      ->capture_default_str()
      ->check(whole_number<std::int64_t>(256));
  train->add_option("--min-count", options->trainer.least_count, "rarer pairs are not joined")
      ->capture_default_str()
      ->check(whole_number<std::int64_t>(0));
  train->add_option("--special", options->trainer.special, "special tokens, the first ids")
      ->capture_default_str();
  train->add_option("--pattern", options->trainer.pattern, "how text is cut: gpt2 or llama3")
      ->capture_default_str();
  train->footer(
      "Example: dropless data tokenizer train *.txt --out tokenizer.json --vocab-size 32000");
  train->callback([options] { run_train(*options); });
}

}  // namespace

void add_data_tokenizer(CLI::App& data) {
  CLI::App* verb = data.add_subcommand("tokenizer", "Train or try a tokenizer");
  verb->require_subcommand(1);
  add_train(*verb);
  constexpr const char* kKinds =
      "bytes, a tokenizer.json, .model or .tiktoken file, or a folder that holds one";

  auto encode = std::make_shared<TokenizerOptions>();
  CLI::App* encoding = verb->add_subcommand("encode", "Text to ids: one JSON array");
  encoding->add_option("TOKENIZER", encode->tokenizer, kKinds)->required();
  encoding->add_option("FILE", encode->file, "the text; without it, standard input");
  encoding->add_flag("--lines", encode->lines,
                     "standard input holds a JSON string a line; each gets an array");
  encoding->add_flag("--template", encode->with_template,
                     "with what the tokenizer puts around a text (BOS, EOS)");
  encoding->footer(
      "Example: echo -n 'hello world' | dropless data tokenizer encode tokenizer.json");
  encoding->callback([encode] { run_encode(*encode); });

  auto decode = std::make_shared<TokenizerOptions>();
  CLI::App* decoding = verb->add_subcommand(
      "decode", "Ids to text: a JSON array a line on standard input, a JSON string a line out");
  decoding->add_option("TOKENIZER", decode->tokenizer, kKinds)->required();
  decoding->footer("Example: echo '[72,105]' | dropless data tokenizer decode bytes");
  decoding->callback([decode] { run_decode(*decode); });
}

}  // namespace dropless::apps
