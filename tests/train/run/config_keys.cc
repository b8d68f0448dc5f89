// Prints the tables of docs/yaml.md: every key that a training config may have, as the code reads it.
//
//   config_keys        Markdown on standard output (tests/cli/yaml_page.py puts the page together)
//
// A base config and variants of it, which together take every branch, are parsed with a recorder behind
// the maps. A block that no variant reaches is an error here, so that no new key stays out of the page.
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "dropless/error.h"
#include "train/base/yaml.h"
#include "train/base/yaml_record.h"
#include "train/run/config.h"

namespace dropless::train {
namespace {

constexpr const char* kBase = R"(
model:
  d_model: 16
  n_heads: 2
  n_layers: 1
  attn_config: {}
  init_config: {name: kaiming_normal_}
tokenizer: {name: bytes, kwargs: {}}
optimizer: {name: decoupled_adamw, param_groups: [{param_str_match: a}]}
scheduler: {name: cosine_with_warmup, t_warmup: 0ba}
train_loader: {name: text, dataset: {local: a}}
eval_loader: {name: text, dataset: {local: a}}
algorithms: {gradient_clipping: {clipping_type: norm, clipping_threshold: 1}}
callbacks: {}
loggers: {}
fsdp_config: {}
max_duration: 10ba
max_seq_len: 16
global_train_batch_size: 4
)";

// Each on its own over the base config.
const std::vector<std::vector<std::string>> kVariants = {
    {},
    {"model.ffn_config={ffn_type: mptmlp, ffn_act_fn: {name: gelu}}"},
    {"model.ffn_config={ffn_type: mptmlp}"},
    {"model.ffn_config={ffn_type: mptglu}"},
    {"model.ffn_config={ffn_type: mb_dmoe, ffn_act_fn: {name: gelu}}"},
    {"model.ffn_config={ffn_type: torch_dmoe}"},
    {"model.ffn_config={ffn_type: mb_moe}"},
    {"model.ffn_config={ffn_type: mb_dmoe, moe_layers: [0], shared_expert: true, "
     "moe_selection_bias: true}",
     "model.n_layers=2"},
    {"model.attn_config={rope: true, rope_dail_config: {}}"},
    {"model.attn_config={rope: true, rope_impl: hf, rope_hf_config: {type: no_scaling}}"},
    {"model.attn_config={rope: true, rope_impl: hf, rope_hf_config: {type: linear, factor: 2}}"},
    {"model.attn_config={rope: true, rope_impl: hf, rope_hf_config: {type: dynamic, factor: 2}}"},
    {"model.attn_config={rope: true, rope_impl: hf, rope_hf_config: {type: llama3, factor: 2, "
     "original_max_position_embeddings: 8, low_freq_factor: 1, high_freq_factor: 2}}"},
    {"model.attn_config={rope: true, rope_impl: hf, rope_hf_config: {type: yarn, factor: 2, "
     "original_max_position_embeddings: 8}}"},
    {"model.attn_config={alibi: true}"},
    {"model.attn_config={qk_ln: true, clip_qkv: 1}"},
    {"model.attn_config={attn_uses_sequence_id: true}", "train_loader.dataset.eos_token_id=0",
     "eval_loader.dataset.eos_token_id=0"},
    {"load_path=base", "model.peft_config={target_modules: [Wqkv]}"},
    {"model.block_overrides={order: [{name: a}], overrides: {a: {attn_config: {}}}}"},
    {"model.block_overrides={order: [{order: [{name: a}]}], overrides: {a: {attn_config: {}}}}"},
    {"model.init_config={name: kaiming_uniform_, init_nonlinearity: leaky_relu}"},
    {"model.init_config={name: xavier_uniform_}"},
    {"model.init_config={name: neox_init_}"},
    {"model.init_config={name: baseline_}"},
    {"optimizer.disable_grad=[a]"},
    {"optimizer.name=adamw"},
    {"optimizer.name=decoupled_lionw"},
    {"optimizer.name=clip_lion"},
    {"optimizer.name=adalr_lion"},
    {"optimizer.name=sgd"},
    {"optimizer.name=no_op"},
    {"scheduler.name=linear_decay_with_warmup"},
    {"scheduler.name=constant_with_warmup"},
    {"scheduler={name: inv_sqrt_with_warmup, t_scale: 1ba, t_cooldown: 1ba}"},
    {"load_path=a", "load_weights_only=true", "load_ignore_keys=[a]"},
    {"device_train_microbatch_size=1"},
    {"icl_tasks=[{label: a, dataset_uri: a, num_fewshot: [0], icl_task_type: language_modeling}]"},
    {"icl_tasks=[{label: a, dataset_uri: a, num_fewshot: [0], icl_task_type: "
     "generation_task_with_answers, generation_kwargs: {}}]",
     "eval_gauntlet={weighting: EQUAL, categories: [{name: a, benchmarks: [{name: a, num_fewshot: "
     "0, "
     "random_baseline: 0}]}], averages: {b: [a]}}"},
    {"callbacks={early_stopper: {monitor: loss/train/total, dataloader_label: train}}"},
    {"callbacks={generate_callback: {prompts: [a], interval: 1ba}}"},
    {"callbacks={generate_callback: {prompts: [a], interval: 1ba, do_sample: true}}"},
    {"callbacks={hf_checkpointer: {save_folder: a, save_interval: 1ba}}", "model.no_bias=true",
     "model.norm_type=rmsnorm", "model.attn_config={rope: true}",
     "model.ffn_config={ffn_type: mptglu, ffn_act_fn: silu}"},
    {"callbacks={optimizer_monitor: {interval: 1ba}}"},
    {"callbacks={speed_monitor: {}, runtime_estimator: {}, lr_monitor: {}, memory_monitor: {}}"},
    {"callbacks={mbmoe_tok_per_expert: {}}", "model.ffn_config={ffn_type: mb_dmoe}"},
    {"callbacks={global_lr_scaling: {lr_scale: 1}}"},
    {"profiler={schedule: {}, json_trace_handler: {}}"},
    {"callbacks={layer_freezing: {layer_names: [a]}}"},
    {"train_loader.name=finetuning", "eval_loader.name=finetuning"},
    {"train_loader.name=finetuning", "train_loader.dataset.packing_ratio=2",
     "eval_loader.name=finetuning", "eval_loader.dataset.packing_ratio=2"},
    {"train_loader.name=finetuning", "train_loader.dataset.packing_ratio=auto",
     "eval_loader.name=finetuning", "eval_loader.dataset.packing_ratio=auto"},
    {"model.logit_scale=2"},
    {"model.logit_scale=inv_sqrt_d_model"},
    {"model.ffn_config={ffn_type: mb_dmoe, mlp_impl: sparse}"},
    {"train_loader.dataset.shuffle=true", "eval_loader.dataset.shuffle=true"},
    {"train_loader.dataset.streams={a: {local: a}}", "eval_loader.dataset.streams={a: {local: a}}"},
};

// Keys that choose what else a block may have.
constexpr const char* kChoosers[] = {"name", "ffn_type", "type", "icl_task_type"};

// What all parses said of one key.
struct Key {
  YamlKeyRecord all;
  std::map<std::string, std::set<std::string>> fallbacks;  // each with the choices it belongs to
  std::map<std::string, int> choices;  // of the block's chooser: how often each asked
  std::map<std::string, int> required;
  int asked = 0, no_effect = 0;
  std::set<std::string> whys;
  std::string accepts;  // what an error says to a word that is none
};

struct Block {
  std::map<std::string, Key> keys;
  std::set<std::string> choices;
  bool any_key = false;
};

struct Page {
  std::map<std::string, Block> blocks;
  std::set<std::string> wanted;  // blocks that a parse asked for
};

YamlDocument document(const std::vector<std::string>& overrides) {
  return YamlDocument::parse(kBase, "config_keys", overrides);
}

bool is_index(const std::string& part) {
  return !part.empty() && std::all_of(part.begin(), part.end(),
                                      [](unsigned char c) { return std::isdigit(c) != 0; });
}

// "train_loader.dataset.streams.a" -> "train_loader.dataset.streams.*"; places in lists go.
std::string page_path(const std::string& path, const YamlRecorder& recorder) {
  std::string real, shown;
  std::size_t begin = 0;
  while (begin <= path.size() && !path.empty()) {
    const std::size_t end = std::min(path.find('.', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    const auto above = recorder.maps.find(real);
    const bool chosen = above != recorder.maps.end() && above->second.any_key;
    real += (real.empty() ? "" : ".") + part;
    if (!is_index(part)) shown += (shown.empty() ? "" : ".") + (chosen ? "*" : part);
    begin = end + 1;
  }
  return shown;
}

// The text of the map's key, "" where it has none.
std::string chooser(const YamlDocument& config, const std::string& path) {
  YamlMap map = config.root();
  std::size_t begin = 0;
  while (!path.empty() && begin < path.size()) {
    const std::size_t end = std::min(path.find('.', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    if (!map.is_map(part)) return "";
    map = map.map(part);
    begin = end + 1;
  }
  for (const char* key : kChoosers) {
    if (map.has(key) && !map.is_map(key)) return map.get<std::string>(key);
  }
  return "";
}

// What the message says is accepted where a word is not.
std::string accepted_words(std::vector<std::string> overrides, const std::string& path) {
  overrides.push_back(path + "=no-such-word");
  try {
    TrainConfig::from_yaml(document(overrides).without_warnings());
  } catch (const Error& error) {
    const std::string own = "\": " + path + ": ";
    if (std::string(error.what()).find(own) == std::string::npos) return "";
    // Of a type, or of none: no words.
    if (error.hint().starts_with("docs/yaml.md") || error.hint().starts_with("write ")) return "";
    const std::string start = "one of: ";
    return error.hint().starts_with(start) ? error.hint().substr(start.size()) : error.hint();
  }
  return "";
}

void add_key(const std::vector<std::string>& overrides, const std::string& path,
             const std::string& choice, const YamlKeyRecord& record, Key& key) {
  key.asked += 1;
  key.choices[choice] += 1;
  key.all.types.insert(record.types.begin(), record.types.end());
  if (record.required) key.required[choice] += 1;
  key.all.is_map |= record.is_map;
  if (record.fallback) key.fallbacks[*record.fallback].insert(choice);
  if (record.not_served) key.all.not_served = record.not_served;
  if (record.no_effect) {
    key.no_effect += 1;
    key.whys.insert(*record.no_effect);
  }
  if (key.accepts.empty() && record.types.contains("string")) {
    key.accepts = accepted_words(overrides, path);
  }
}

// Adds what one parse asked. Throws Error where the config is refused.
void add_variant(const std::vector<std::string>& overrides, Page& page) {
  const YamlDocument config = document(overrides);
  const auto recorder = std::make_shared<YamlRecorder>();
  TrainConfig::from_yaml(config.recorded_by(recorder));
  for (const auto& [path, map] : recorder->maps) {
    if (map.any_key) page.blocks[page_path(path, *recorder)].any_key = true;
    Block& block = page.blocks[page_path(path, *recorder)];
    const std::string choice = chooser(config, path);
    block.choices.insert(choice);
    for (const auto& [name, record] : map.keys) {
      if (block.any_key) continue;
      std::string key_path = path;
      if (!path.empty()) key_path += '.';
      key_path += name;
      add_key(overrides, key_path, choice, record, block.keys[name]);
      if (record.is_map && !record.no_effect && !record.not_served) {
        page.wanted.insert(page_path(key_path, *recorder));
      }
    }
  }
}

// ---- Markdown ----

std::string code(const std::string& text) { return "`" + text + "`"; }

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    if (c == '\n') {  // a row is one line
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

std::string choices_text(const std::set<std::string>& choices) {
  std::vector<std::string> out;
  for (const std::string& choice : choices) {
    if (!choice.empty()) out.push_back(code(choice));
  }
  return fmt::format("{}", fmt::join(out, ", "));
}

enum class Outcome { kImplemented, kNoEffect, kRefused };

Outcome outcome_of(const Key& key) {
  if (key.all.not_served) return Outcome::kRefused;
  return key.no_effect == key.asked ? Outcome::kNoEffect : Outcome::kImplemented;
}

std::string type_text(const Key& key) {
  const std::set<std::string>& types = key.all.types;
  std::string type = fmt::format("{}", fmt::join(types, " or "));
  if (type.empty()) type = "any";
  if (!key.accepts.empty()) type += ": " + key.accepts;
  return type;
}

std::string default_text(const Key& key) {
  std::set<std::string> needing;  // the choices under which it must be there
  for (const auto& [choice, times] : key.required) {
    if (times == key.choices.at(choice)) needing.insert(choice);
  }
  if (needing.size() == key.choices.size()) return "required";
  if (!needing.empty()) return "none; required by " + choices_text(needing);
  if (key.fallbacks.empty()) return "none";
  std::vector<std::string> out;
  for (const auto& [value, choices] : key.fallbacks) {
    const std::string of = key.fallbacks.size() > 1 ? choices_text(choices) : "";
    out.push_back(code(value) + (of.empty() ? "" : " (" + of + ")"));
  }
  return fmt::format("{}", fmt::join(out, ", "));
}

std::string meaning_text(const Block& block, const Key& key) {
  std::string text;
  const std::string whys = fmt::format("{}", fmt::join(key.whys, "; "));
  switch (outcome_of(key)) {
    case Outcome::kRefused: {
      const bool one_value = !key.fallbacks.empty();
      text = one_value ? "**refused** but for the default" : "**refused**";
      if (!key.all.not_served->empty()) text += ": " + *key.all.not_served;
      break;
    }
    case Outcome::kNoEffect:
      text = "*no effect*: " + whys;
      break;
    case Outcome::kImplemented:
      text = "implemented";
      if (!whys.empty()) text += "; at times without effect: " + whys;
  }
  std::set<std::string> choices;
  for (const auto& [choice, times] : key.choices) choices.insert(choice);
  const std::string only = choices == block.choices ? "" : choices_text(choices);
  if (!only.empty()) text += "; only of " + only;
  return text;
}

std::string table(const Block& block) {
  if (block.any_key) return "Its keys are names of your choice.\n";
  if (block.keys.empty()) return "It has no keys.\n";
  std::string out = "| key | type | default | here |\n|---|---|---|---|\n";
  for (const auto& [name, key] : block.keys) {
    out += fmt::format("| `{}` | {} | {} | {} |\n", name, escaped(type_text(key)),
                       escaped(default_text(key)), escaped(meaning_text(block, key)));
  }
  return out;
}

void print_page(const Page& page) {
  std::map<Outcome, int> counts;
  std::map<std::string, std::vector<std::string>> paths_of;  // of equal tables
  for (const auto& [path, block] : page.blocks) {
    std::vector<std::string>& paths = paths_of[table(block)];
    paths.push_back(path);
    if (paths.size() > 1) continue;
    for (const auto& [name, key] : block.keys) counts[outcome_of(key)] += 1;
  }
  fmt::print(
      "{} implemented, {} accepted with a warning that says why they change nothing here, {} "
      "refused by name.\n",
      counts[Outcome::kImplemented], counts[Outcome::kNoEffect], counts[Outcome::kRefused]);
  for (const auto& [path, block] : page.blocks) {
    const std::string text = table(block);
    const std::vector<std::string>& paths = paths_of[text];
    if (paths.front() != path) continue;
    std::string title;
    for (const std::string& one : paths) title += (title.empty() ? "" : ", ") + code(one);
    fmt::print("\n### {}\n\n{}", path.empty() ? "The file" : title, text);
  }
}

// hf_causal_lm reads a folder.
std::string make_hf_folder() {
  std::string folder = (std::filesystem::temp_directory_path() / "config_keys.XXXXXX").string();
  if (::mkdtemp(folder.data()) == nullptr) throw Error(ErrorKind::kResource, "no temporary folder");
  std::ofstream(folder + "/config.json")
      << R"({"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 8,
             "num_hidden_layers": 1, "max_position_embeddings": 16, "intermediate_size": 16,
             "hidden_act": "silu"})";
  return folder;
}

int run() {
  Page page;
  const std::string folder = make_hf_folder();
  std::vector<std::vector<std::string>> variants = kVariants;
  variants.push_back({"model=null",
                      "model={name: hf_causal_lm, config_overrides: {}, "
                      "pretrained_model_name_or_path: " +
                          folder + "}"});
  const auto remove_folder = [](const std::string* path) { std::filesystem::remove_all(*path); };
  const std::unique_ptr<const std::string, decltype(remove_folder)> removed(&folder, remove_folder);
  for (const std::vector<std::string>& overrides : variants) {
    try {
      add_variant(overrides, page);
    } catch (const Error& error) {
      fmt::print(stderr, "variant [{}]: {}\nhint: mend kVariants\n", fmt::join(overrides, " "),
                 error.what());
      return 1;
    }
  }
  // A block whose keys all have defaults needs no variant of its own.
  for (bool grows = true; grows;) {
    grows = false;
    for (const std::string& path : std::set<std::string>(page.wanted)) {
      if (page.blocks.contains(path)) continue;
      try {
        add_variant({path + "={}"}, page);
      } catch (const Error& error) {
        fmt::print(stderr,
                   "no variant reaches {}, and empty it is refused: {}\nhint: add one to "
                   "kVariants\n",
                   path, error.what());
        return 1;
      }
      if (!page.blocks.contains(path)) {
        fmt::print(stderr, "no variant reaches {}\nhint: add one to kVariants\n", path);
        return 1;
      }
      grows = true;
    }
  }
  print_page(page);
  return 0;
}

}  // namespace
}  // namespace dropless::train

int main() { return dropless::train::run(); }
