// `dropless eval CONFIG.yaml|MODEL [key.path=value ...] [--data DIR|FILE [--split S]] [--json]`
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "apps/eval_tasks.h"
#include "apps/model_options.h"
#include "apps/verbs.h"
#include "dropless/error.h"
#include "train/base/fs.h"
#include "train/base/log.h"
#include "train/base/signals.h"
#include "train/bridge/device.h"
#include "train/checkpoint/checkpoint.h"
#include "train/convert/released_folder.h"
#include "train/data/mini_text.h"
#include "train/run/config.h"
#include "train/run/evaluate.h"
#include "train/run/model_files.h"

namespace dropless::apps {

using namespace train;

namespace {

struct EvalVerb {
  std::string target, data, split, tasks, samples;
  std::vector<std::string> overrides;
  bool data_given = false, json = false;
  std::int64_t batch_size = 8;
  ModelOptions model_options;
};

using Source = std::pair<std::string, std::unique_ptr<BatchSource>>;  // label, batches

std::unique_ptr<BatchSource> open_set(TextDatasetConfig dataset, const LoadedModel& loaded,
                                      std::int64_t batch_size, std::int64_t seq_len) {
  TextLoaderOptions options;
  options.batch_size = batch_size;
  options.seq_len = seq_len;
  options.vocab_size = loaded.model->config().vocab_size;
  options.tokenizer = loaded.tokenizer;
  return std::make_unique<TextLoader>(dataset, options);
}

// --data: a folder is an MDS set, a file is plain text.
std::unique_ptr<BatchSource> open_data(const EvalVerb& verb, const LoadedModel& loaded) {
  const std::int64_t seq_len = loaded.model->config().max_seq_len;
  if (is_folder(verb.data)) {
    TextDatasetConfig dataset;
    dataset.local = verb.data;
    dataset.split = verb.split;
    return open_set(dataset, loaded, verb.batch_size, seq_len);
  }
  if (!loaded.tokenizer) {
    throw Error(ErrorKind::kInvalidArgument, "text needs the model's tokenizer, which is not here");
  }
  if (!verb.split.empty()) {
    throw Error(ErrorKind::kInvalidArgument, "--split needs --data to be the folder of a set");
  }
  return std::make_unique<TextFileSource>(verb.data, *loaded.tokenizer, verb.batch_size, seq_len);
}

void print_line(const std::string& label, const EvalResult& result) {
  std::cout << label << (label.empty() ? "" : ": ");
  if (result.tokens == 0) {
    std::cout << "no token to score: all pieces have a single token\n";
    return;
  }
  std::cout << fmt::format("cross-entropy {:.4f} nats per token, perplexity {:.3f}, {} tokens\n",
                           result.cross_entropy(), result.perplexity(), result.tokens);
}

// Where no token was scored, there is no figure: null.
void print(const std::vector<std::pair<std::string, EvalResult>>& results, const TaskResults& tasks,
           bool as_json) {
  EvalResult total;
  for (const auto& [label, result] : results) total.add(result);
  const auto figures = [](const EvalResult& result) {
    return nlohmann::ordered_json{{"cross_entropy", result.cross_entropy()},
                                  {"perplexity", result.perplexity()},
                                  {"tokens", result.tokens}};
  };
  if (as_json) {
    nlohmann::ordered_json json = figures(total);
    if (results.size() > 1) {
      for (const auto& [label, result] : results) json["loaders"][label] = figures(result);
    }
    json.update(tasks_as_json(tasks));
    std::cout << json.dump() << "\n";
    return;
  }
  for (const auto& [label, result] : results) print_line(label, result);
  if (results.size() > 1) print_line("all of them", total);
  if (!tasks.scores.empty()) print_tasks(tasks);
}

void run_eval(EvalVerb verb) {
  install_signal_handlers(SignalMode::kExit);
  if (verb.data_given && verb.data.empty()) {
    throw Error(ErrorKind::kInvalidArgument, "--data is empty", "name a set's folder or a file");
  }
  if (!verb.split.empty() && verb.data.empty()) {
    throw Error(ErrorKind::kInvalidArgument, "--split needs --data",
                "a config names its splits: eval_loader.dataset.split=NAME");
  }
  if (!path_exists(verb.target)) {
    throw Error(
        ErrorKind::kInvalidArgument, "there is no " + verb.target,
        "name a YAML file, or the folder of a model: a run, a checkpoint or a Hugging Face folder");
  }
  const bool is_model = is_folder(verb.target);
  if (is_model && !verb.overrides.empty()) {
    throw Error(ErrorKind::kInvalidArgument,
                "overrides such as " + verb.overrides[0] + " belong to a CONFIG, not to a model");
  }
  if (is_model && verb.data.empty() && verb.tasks.empty()) {
    throw Error(ErrorKind::kInvalidArgument,
                "eval MODEL needs --data DIR, --data FILE or --tasks FILE");
  }
  std::vector<Source> sources;
  std::optional<TrainConfig> config;
  std::string model_path = verb.target;
  Precision precision = verb.model_options.precision();  // refuses an unknown --dtype
  if (!is_model) {
    config = TrainConfig::from_yaml(YamlDocument::load(verb.target, verb.overrides));
    model_path = config->load_path.empty() ? config->save_folder : config->load_path;
    verb.batch_size = config->device_eval_batch_size;
    if (!verb.model_options.dtype_given()) precision = config->precision;
    if (!verb.model_options.device_given()) {
      verb.model_options.device = config->device;
      config->source.locate("device", [&] { choose_device(config->device); });
    }
  }
  const LoadedModel loaded = [&] {
    if (is_model) return verb.model_options.open(model_path);
    const char* key = config->load_path.empty() ? "save_folder" : "load_path";
    return config->source.locate(key, [&] { return verb.model_options.open(model_path); });
  }();
  if (config && !is_released_folder(loaded.folder)) {
    const std::vector<std::string> differences = maths_differences(loaded.folder, config->model);
    if (!differences.empty()) {
      log_warning("the checkpoint's own model is evaluated: {}", fmt::join(differences, "; "));
    }
  }
  TaskSuite suite;
  if (!verb.tasks.empty()) {
    suite = load_tasks(verb.tasks, {.batch_size = verb.batch_size,
                                    .max_seq_len = loaded.model->config().max_seq_len});
  } else if (config) {
    suite = config->tasks;
  }
  suite.require_files();
  if (!verb.data.empty()) {
    sources.emplace_back("", open_data(verb, loaded));
  } else if (config) {
    for (std::size_t i = 0; i < config->eval_loaders.size(); ++i) {
      const TextDatasetConfig& dataset = config->eval_loaders[i];
      config->source.locate(config->eval_dataset_path(i), [&] {
        sources.emplace_back(dataset.label,
                             open_set(dataset, loaded, verb.batch_size, config->max_seq_len));
      });
    }
    if (sources.empty() && suite.tasks.empty()) {
      throw Error(ErrorKind::kInvalidArgument, verb.target + " has no eval_loader and no icl_tasks",
                  "add one of them, or give --data or --tasks");
    }
  }
  std::vector<std::pair<std::string, EvalResult>> results;
  for (const auto& [label, source] : sources) {
    try {
      name_ruined_weights(loaded, [&] {
        results.emplace_back(label, evaluate(*loaded.model, *source, precision,
                                             config ? config->eval_subset_num_batches : -1));
      });
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kNonFinite) throw;
      const std::string loader = label.empty() ? "eval_loader" : "eval_loader " + label;
      throw Error(error.kind(),
                  fmt::format("{} on {}: {}", loaded.folder, verb.data.empty() ? loader : verb.data,
                              error.what()),
                  error.hint());
    }
  }
  TaskResults tasks;
  if (!suite.tasks.empty()) {
    name_ruined_weights(loaded, [&] { tasks = run_tasks(suite, loaded, precision, verb.samples); });
  }
  print(results, tasks, verb.json);
}

}  // namespace

void add_eval_verb(CLI::App& app) {
  auto verb = std::make_shared<EvalVerb>();
  CLI::App* cli =
      app.add_subcommand("eval", "Cross-entropy, perplexity and in-context tasks of a model");
  cli->add_option("target", verb->target,
                  "YAML config (its load_path, else its run folder), or a model")
      ->required();
  cli->add_option("overrides", verb->overrides, "key.path=value, for a config");
  cli->add_option("--data", verb->data,
                  "MDS folder or text file, in place of the config's loaders");
  cli->add_option("--split", verb->split, "sub-folder of --data");
  cli->add_option("--tasks", verb->tasks,
                  "YAML file of icl_tasks, in place of the config's; its paths are from here");
  cli->add_option("--samples", verb->samples,
                  "file for a JSON line on each of the tasks' questions");
  cli->add_flag("--json", verb->json, "one JSON document");
  verb->model_options.add_to(*cli);
  cli->get_option("--device")
      ->default_str("")
      ->description("cpu, cuda, cuda:N or auto; default: the config's, for a model cpu");
  cli->get_option("--dtype")->default_str("")->description(
      "fp32, bf16 or fp16; default: the config's precision, for a model fp32");
  cli->footer("Example: dropless eval runs/demo --data data.txt --json");
  cli->callback([verb, cli] {
    verb->data_given = cli->count("--data") > 0;
    run_eval(*verb);
  });
}

}  // namespace dropless::apps
