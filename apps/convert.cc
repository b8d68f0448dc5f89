// `dropless convert SRC DST --to dropless|hf|llm-foundry|mistral|peft [--dtype fp32|bf16|fp16]
// [--adapter FOLDER] [--merge-adapter] [--overwrite]`
#include <CLI/CLI.hpp>

#include <memory>
#include <string>

#include "apps/model_options.h"
#include "apps/verbs.h"
#include "apps/whole_number.h"
#include "dropless/error.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/convert/convert.h"
#include "train/run/model_files.h"
#include "train/run/model_tokenizer.h"

namespace dropless::apps {

using namespace train;

namespace {

struct ConvertVerb {
  std::string source, target, to, dtype;
  ConvertOptions options;
};

Layout parse_layout(const std::string& name) {
  if (name == "dropless") return Layout::kDropless;
  if (name == "hf") return Layout::kHf;
  if (name == "llm-foundry") return Layout::kFoundry;
  if (name == "mistral") return Layout::kMistral;
  if (name == "peft") return Layout::kPeft;
  throw Error(ErrorKind::kInvalidArgument, "--to " + name + " is not supported",
              "one of: dropless, hf, llm-foundry, mistral, peft");
}

// What is written can be read, and mended, but not run.
void warn_of_vocabulary(const std::string& source) {
  try {
    const std::string folder = resolve_model(source);
    const std::string name = tokenizer_of_model(folder);
    if (!is_tokenizer(name)) return;
    require_vocabulary(folder, load_model_config(folder), *make_tokenizer(name));
  } catch (const Error& error) {
    log_warning("{}", error.what());
  }
}

void run_convert(ConvertVerb verb) {
  install_signal_handlers(SignalMode::kThrow);
  verb.options.to = parse_layout(verb.to);
  if (!verb.dtype.empty()) verb.options.dtype = compute_type(parse_dtype(verb.dtype));
  verb.options.progress = true;
  convert_model(verb.source, verb.target, verb.options);
  if (verb.options.to != Layout::kPeft) warn_of_vocabulary(verb.source);
}

}  // namespace

void add_convert_verb(CLI::App& app) {
  auto verb = std::make_shared<ConvertVerb>();
  CLI::App* cli = app.add_subcommand("convert", "Released models in, trained models out");
  cli->add_option("source", verb->source, "checkpoint, run folder or released model's folder")
      ->required();
  cli->add_option("target", verb->target, "folder to write; absent or empty")->required();
  cli->add_option("--to", verb->to, "dropless, hf, llm-foundry, mistral or peft")->required();
  cli->add_option("--dtype", verb->dtype, "fp32, bf16 or fp16; default: as stored");
  cli->add_option("--shard-bytes", verb->options.shard_bytes, "tensor bytes in one file")
      ->check(whole_number<std::uint64_t>(1))
      ->capture_default_str();
  cli->add_option("--adapter", verb->options.adapter,
                  "folder of a LoRA adapter that PEFT saved, to stand beside the weights");
  cli->add_flag("--merge-adapter", verb->options.merge_adapter,
                "add LoRA adapters to the weights; all targets but dropless and peft do");
  cli->add_flag("--overwrite", verb->options.overwrite, "replace a target that is not empty");
  cli->footer("Example: dropless convert OLMoE-1B-7B-0924 olmoe --to dropless");
  cli->callback([verb] { run_convert(*verb); });
}

}  // namespace dropless::apps
