// `dropless data text` and `dropless data json` turn text into a set to train on.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include <iostream>
#include <memory>
#include <thread>
#include <vector>

#include "apps/data_verbs.h"
#include "apps/whole_number.h"
#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/signals.h"
#include "train/data/text_writer.h"

namespace dropless::apps {

using namespace train;

namespace {

struct TextOptions {
  std::vector<std::string> files;
  std::string out;
  std::string tokenizer = "bytes";
  std::string size_limit = "64mb";
  std::string hashes = "xxh128";
  bool no_wrap = false;
  TextSetOptions set;
};

// All that the set is made of, one file a line.
std::string source_of(const TextOptions& options) {
  std::vector<std::string> files = options.files;
  if (is_folder(options.tokenizer)) {
    for (const std::string& name : list_folder(options.tokenizer)) {
      files.push_back(join_path(options.tokenizer, name));
    }
  } else {
    files.push_back(options.tokenizer);
  }
  std::string text;
  for (const std::string& file : files) text += file_stamp(file) + "\n";
  return text;
}

// What the options mean together.
void prepare(TextOptions& options) {
  install_signal_handlers(SignalMode::kThrow);
  TextSetOptions& set = options.set;
  set.wrap = !options.no_wrap;
  set.progress = true;
  set.mds.hashes = hash_names(options.hashes);
  set.mds.size_limit.reset();
  if (options.size_limit != "none") set.mds.size_limit = parse_byte_size(options.size_limit);
  if (set.concat_tokens == 0 &&
      (!set.bos_text.empty() || !set.eos_text.empty() || options.no_wrap)) {
    throw Error(ErrorKind::kInvalidArgument,
                "--bos-text, --eos-text and --no-wrap shape rows of tokens",
                "give --concat-tokens too");
  }
  set.tokenizer = make_tokenizer(options.tokenizer);
  require_files(options.files);
  set.source = source_of(options);
}

void print_counts(const TextOptions& options, const TextSetCounts& counts) {
  const std::int64_t row = options.set.concat_tokens;
  if (row > 0) {
    std::cout << fmt::format("{}: {}, {} of {}, {} left over\n", options.out,
                             counted(counts.documents, "document"),
                             counted(counts.samples, "sample"), counted(row, "token"),
                             counted(counts.dropped_tokens, "token"));
  } else {
    std::cout << fmt::format("{}: {}\n", options.out, counted(counts.documents, "document"));
  }
}

void run_text(TextOptions& options) {
  prepare(options);
  FileDocuments documents(options.files);
  print_counts(options, write_text_set(documents, options.out, options.set));
}

// The first line says what all are.
void run_json(TextOptions& options) {
  prepare(options);
  std::string line;
  LineDocuments lines(options.files);
  if (!lines.next(line)) {
    throw Error(ErrorKind::kInvalidArgument, "the files hold no lines", "name files of JSON Lines");
  }
  JsonKind kind{};
  try {
    kind = json_kind(line);
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("{}: {}", lines.place(), error.what()), error.hint());
  }
  if (kind == JsonKind::kText) {
    JsonTexts texts(options.files);
    return print_counts(options, write_text_set(texts, options.out, options.set));
  }
  if (options.set.concat_tokens > 0) {
    throw Error(ErrorKind::kInvalidArgument,
                "--concat-tokens joins texts, and these lines hold instructions with answers",
                "leave it out: the loader `finetuning` tokenises and packs them");
  }
  LineDocuments all(options.files);
  print_counts(options, write_finetuning_set(all, kind, options.out, options.set));
}

CLI::App* add_options(CLI::App* verb, TextOptions& options) {
  TextSetOptions& set = options.set;
  set.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  verb->add_option("--out", options.out, "folder of the new set")->required();
  verb->add_option("--tokenizer", options.tokenizer,
                   "bytes, a tokenizer.json, .model or .tiktoken file, or a folder that holds one")
      ->capture_default_str();
  verb->add_option("--concat-tokens", set.concat_tokens,
                   "join the documents' tokens and cut rows of this many")
      ->check(whole_number<std::int64_t>(1));
  verb->add_option("--bos-text", set.bos_text, "put before each document");
  verb->add_option("--eos-text", set.eos_text,
                   "put after each document; <|endoftext|> is the end-of-text token");
  verb->add_flag("--no-wrap", options.no_wrap, "drop the rest of the tokens after each row");
  verb->add_option("--threads", set.threads, "that tokenise; the set is the same for any number")
      ->capture_default_str()
      ->check(whole_number<int>(1, 1024));
  verb->add_option("--size-limit", options.size_limit, "largest shard: bytes, 64mb, or none")
      ->capture_default_str();
  verb->add_option("--hashes", options.hashes,
                   "of each shard, for verify: sha256, xxh128 and others, with commas; or none")
      ->capture_default_str();
  verb->add_option("--compression", set.mds.compression,
                   "of the shards: zstd, gz, bz2, br, with a level as in zstd:7; or snappy");
  verb->add_flag("--exist-ok", set.mds.replace, "replace what stands under --out");
  return verb;
}

}  // namespace

void add_data_text(CLI::App& data) {
  auto options = std::make_shared<TextOptions>();
  CLI::App* verb = data.add_subcommand("text", "Turn text files, one document each, into a set");
  verb->add_option("FILE", options->files, "text files")->required();
  add_options(verb, *options);
  verb->footer(
      "Example: dropless data text a.txt b.txt --out data/train --concat-tokens 1024 --eos-text "
      "'<|endoftext|>'");
  verb->callback([options] { run_text(*options); });
}

void add_data_json(CLI::App& data) {
  auto options = std::make_shared<TextOptions>();
  CLI::App* verb = data.add_subcommand(
      "json", "Turn JSON Lines of {text}, {prompt, response} or {messages} into a set");
  verb->add_option("FILE", options->files, "files of JSON Lines")->required();
  add_options(verb, *options);
  verb->footer(
      "Example: dropless data json web.jsonl --out data/train --tokenizer tokenizer.json "
      "--concat-tokens 1024");
  verb->callback([options] { run_json(*options); });
}

}  // namespace dropless::apps
