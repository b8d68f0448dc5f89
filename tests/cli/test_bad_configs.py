"""A corpus of broken configs: each is refused with file:line:column, key and cure before anything starts.

A row replaces one piece of the good config (command.py's CONFIG) by another. `@@` in it marks where the message
must point: to the value that is wrong, to the key that is unknown, or to the mapping that lacks one.
"""

import os
import re
import subprocess
import sys
import unittest

from command import BINARY, CONFIG, CommandTest

END = CONFIG  # what is put behind the whole

# (what stands there, what takes its place, the message, the hint)
SYNTAX = [
    ("seed: 5", "seed: @@[5\n", "seed: end of sequence flow not found", "a [ is not closed"),
    ("seed: 5", "seed: 5\n@@\tx: 1", "seed.x: a tab in the indentation", "indented by spaces"),
    ("seed: 5", 'seed: @@"5', "seed: a quote is opened and not closed", "close it"),
    ("seed: 5", "seed: 5: 6", "seed: ", "quote a value that holds a colon and a space, and look"),
    ("seed: 5", "seed: 5\n@@seed: 6", 'key "seed" stands twice in one mapping (first at bad.yaml:3:1)', "remove one"),
    ("seed: 5", "seed: 5\n@@---\nx: 1", "text after the end of the document", "one YAML document"),
    ("seed: 5", "seed: @@!!python/object:os.system 5", "seed: tag ", "remove the tag"),
    ("seed: 5", "seed: @@*five", "seed: ", "an alias *name needs its anchor &name above it; quote"),
    ("seed: 5", "x: &x\n  y: @@*x", "x.y: an alias inside the value it stands for", "write the value out, or point the alias at another one"),
    ("seed: 5", "x:\n  <<: @@5", "`<<` takes a mapping", "give it the alias of a mapping, like `<<: *base`"),
    ("seed: 5", "@@[seed]: 5", "a key must be a scalar", "quote it"),
    ("seed: 5", "seed: 5\nx: @@\udcff", "x: not valid UTF-8", "save the file as UTF-8"),
    ("seed: 5", "seed: @@\x07", "seed: a control character (byte 7)", "is this a text file?"),
    ("  n_heads: 4", "  n_heads: @@'4", "model.n_heads: a quote is opened and not closed", "close it"),
    ("betas: [0.9, 0.95]", "betas: @@[0.9, 0.95", "optimizer.betas: illegal flow end", "what closes nothing stands at 33:"),
    ("{rope: true}", "@@{rope: true", "model.attn_config: end of map flow", "a { is not closed"),
    ("    moe_top_k: 2", "   moe_top_k: 2", "model.ffn_config.", "look"),
    ("seed: 5", "x:\n- a: 1\n- b: 2\n  c: @@'d", "x.1.c: a quote is opened and not closed", "close it"),
    ("seed: 5", 'seed: 5\nx: @@"a\ny: "b"', "x: a quote that ends in line ", "close it where its text ends"),
    ("seed: 5", "seed:@@5", "seed: no space behind the colon", "write `key: value`"),
    ("seed: 5", 'seed: "5" @@6', "seed: text behind a closing quote", "quote all of the value, or none"),
    ("{name: bytes}", '{name: @@"bytes}', "tokenizer.name: a quote", "close it"),
    ("  n_heads: 4", "  n_heads: 4\n  @@n_heads: 4", 'model: key "n_heads" stands twice in one mapping', "remove one"),
    (END, "@@- seed: 5\n", "a config is a mapping of keys to values, not a sequence", "write lines like `max_duration: 100ba`; the files in"),
    (END, "@@", "model: required mapping is missing", "add it; docs/yaml.md says what model takes"),
]

UNKNOWN_KEYS = [
    ("seed: 5", "@@sede: 5", 'sede: unknown key; did you mean "seed"?', "known here: "),
    ("max_duration: 40ba", "@@max_durration: 40ba", 'max_durration: unknown key; did you mean "max_duration"?', "max_duration is required here"),
    ("\nmodel:\n", "\n@@modle:\n", 'modle: unknown key; did you mean "model"?', "model is required here"),
    ("seed: 5", "@@learning_velocity: 5", "learning_velocity: unknown key", "under `variables`"),
    ("  n_heads: 4", "  @@n_haeds: 4", 'model.n_haeds: unknown key; did you mean "n_heads"?', "known here: "),
    ("{rope: true}", "{rope: true, @@rope_tetha: 1}", 'model.attn_config.rope_tetha: unknown key; did you mean "rope_theta"?', "known here: "),
    ("    moe_top_k: 2", "    moe_top_k: 2\n    @@moe_topk: 2", 'model.ffn_config.moe_topk: unknown key; did you mean "moe_top_k"?', "known here: "),
    ("  no_bias: true", "  no_bias: true\n  init_config: {@@init_sdt: 1}", 'model.init_config.init_sdt: unknown key; did you mean "init_std"?', "known here: "),
    ("{name: bytes}", "{name: bytes, @@kwarg: {}}", 'tokenizer.kwarg: unknown key; did you mean "kwargs"?', "known here: "),
    ("{name: bytes}", "{name: bytes, kwargs: {@@language: en}}", "tokenizer.kwargs.language: unknown key", "known here: "),
    ("weight_decay: 1.0e-5", "@@weigth_decay: 1.0e-5", 'optimizer.weigth_decay: unknown key; did you mean "weight_decay"?', "known here: "),
    ("weight_decay: 1.0e-5", "param_groups: [{param_str_match: w, @@lrr: 1}]", 'optimizer.param_groups.0.lrr: unknown key; did you mean "lr"?', "known here: "),
    ("t_warmup: 4ba", "@@t_wramup: 4ba", 'scheduler.t_wramup: unknown key; did you mean "t_warmup"?', "known here: "),
    ("  drop_last: true", "  @@drop_lats: true", 'train_loader.drop_lats: unknown key; did you mean "drop_last"?', "known here: "),
    ("shuffle: true", "@@shufle: true", 'train_loader.dataset.shufle: unknown key; did you mean "shuffle"?', "known here: "),
    ("{local: data, split: train", "{streams: {a: {@@locl: data}}, local: data", 'train_loader.dataset.streams.a.locl: unknown key; did you mean "local"?', "known here: "),
    ("  gradient_clipping:", "  @@gradient_cliping:", 'algorithms.gradient_cliping: unknown key; did you mean "gradient_clipping"?', "known here: "),
    ("clipping_threshold: 1.0", "clipping_threshold: 1.0, @@norm: 2", "algorithms.gradient_clipping.norm: unknown key", "known here: "),
    ("seed: 5", "callbacks: {@@speedmonitor: {}}", 'callbacks.speedmonitor: unknown key; did you mean "speed_monitor"?', "known here: "),
    ("seed: 5", "loggers: {@@wand: {}}", 'loggers.wand: unknown key; did you mean "wandb"?', "known here: "),
    ("seed: 5", "fsdp_config: {@@sharding_stratgy: FULL_SHARD}", 'fsdp_config.sharding_stratgy: unknown key; did you mean "sharding_strategy"?', "known here: "),
]  # fmt: skip

TYPES = [
    ("  n_heads: 4", "  n_heads: @@four", 'model.n_heads: expected an integer, got "four"', "write one like 12, 3e4 or 1_000, without leading zeros"),
    ("  n_heads: 4", "  n_heads: @@4.5", 'model.n_heads: expected an integer, got "4.5"', "write one like 12, 3e4 or 1_000, without leading zeros"),
    ("  n_heads: 4", "  n_heads: @@010", 'model.n_heads: expected an integer, got "010"', "write one like 12, 3e4 or 1_000, without leading zeros"),
    ("  n_heads: 4", "  n_heads: @@'4'", 'model.n_heads: expected an integer, got the string "4"', "remove the quotes"),
    ("  n_heads: 4", "  n_heads: @@[4]", "model.n_heads: expected an integer, got a sequence", "write one like 12, 3e4 or 1_000, without leading zeros"),
    ("  n_heads: 4", "  @@n_heads:", "model.n_heads: must not be null", "give it a value; docs/yaml.md says what model.n_heads takes"),
    ("  d_model: 32", "  d_model: @@0", "model.d_model: must be at least 1, not 0", "docs/yaml.md says what model.d_model takes"),
    ("  n_layers: 2", "  n_layers: @@-2", "model.n_layers: must be at least 1, not -2", "docs/yaml.md says what model.n_layers takes"),
    ("  n_layers: 2", "  n_layers: @@1e6", "model.n_layers: 1000000 is above 10000", "docs/yaml.md says what model.n_layers takes"),
    ("  no_bias: true", "  no_bias: @@yes", 'model.no_bias: expected true or false, got "yes"', "yes, no, on and off are not bools"),
    ("  no_bias: true", '  no_bias: @@"true"', 'model.no_bias: expected true or false, got the string "true"', "remove the quotes"),
    ("lr: 3.0e-3", "lr: @@1e999", 'optimizer.lr: "1e999" is too large', "fp32"),
    ("lr: 3.0e-3", "lr: @@1e-50", 'optimizer.lr: "1e-50" is too small', "fp32"),
    ("lr: 3.0e-3", "lr: @@.nan", 'optimizer.lr: ".nan" is no number', "fp32"),
    ("lr: 3.0e-3", "lr: @@fast", 'optimizer.lr: expected a number, got "fast"', "write one like 0.1 or 3e-4"),
    ("lr: 3.0e-3", "lr: @@0", "optimizer.lr: must be above 0, not 0", "docs/yaml.md says what optimizer.lr takes"),
    ("betas: [0.9, 0.95]", "betas: @@0.9", "optimizer.betas: expected a sequence", "write it as [a, b]"),
    ("betas: [0.9, 0.95]", "betas: @@[0.9]", "optimizer.betas: betas takes two numbers", "for example [0.9, 0.95]"),
    ("betas: [0.9, 0.95]", "betas: [0.9, @@1]", "optimizer.betas.1: betas must be in [0, 1)", "for example [0.9, 0.95]"),
    ("betas: [0.9, 0.95]", "betas: [0.9, @@high]", 'optimizer.betas.1: expected a number, got "high"', "write one like 0.1 or 3e-4"),
    ("seed: 5", "seed: @@99999999999999999999", "seed: expected an integer of 64 bits", "1e15 is exact up to 2^53, digits up to 2^63"),
    ("seed: 5", "seed: @@-5", "seed: seed must not be negative", "any from 0 to 2^63 - 1"),
    ("algorithms:\n  gradient_clipping: {clipping_type: norm, clipping_threshold: 1.0}", "algorithms: @@none", 'algorithms: expected a mapping, got "none"', "write it as {key: value}, or as indented lines below the key"),
    ("seed: 5", "run_name: @@{a: b}", "run_name: expected a string, got a mapping", "write one value; quote it where it holds [ { : or #"),
]  # fmt: skip

NAMES = [
    ("name: decoupled_adamw", "name: @@adam", "optimizer.name: unknown optimizer adam", "one of: decoupled_adamw, "),
    ("name: cosine_with_warmup", "name: @@cosine", "scheduler.name: unknown scheduler cosine", "one of: cosine_with_warmup, "),
    ("norm_type: rmsnorm", "norm_type: @@batchnorm", "model.norm_type: unknown norm_type batchnorm", "rmsnorm"),
    ("{rope: true}", "{attn_type: @@mha}", "model.attn_config.attn_type: unknown attn_type mha", "one of: multihead_attention, "),
    ("ffn_type: mb_dmoe", "ffn_type: @@moe", "model.ffn_config.ffn_type: unknown ffn_type moe", "mb_dmoe"),
    ("mlp_type: glu", "mlp_type: @@swiglu", "model.ffn_config.mlp_type: unknown mlp_type swiglu", "one of: mlp, glu"),
    ("{name: silu}", "@@{name: swish}", "model.ffn_config.ffn_act_fn: unknown activation swish", "silu"),
    ("name: mpt_causal_lm", "name: @@gpt", "model.name: unknown model gpt", "mpt_causal_lm"),
    ("  name: mpt_causal_lm", "  name: hf_causal_lm\n  pretrained_model_name_or_path: @@gpt2", "model.pretrained_model_name_or_path: gpt2 is no folder here", "download it"),
    ("  name: mpt_causal_lm", "  name: @@hf_t5", "model.name: hf_t5", "mpt_causal_lm"),
    ("  no_bias: true", "  no_bias: true\n  init_config: {name: @@normal}", "model.init_config.name: unknown initialisation normal", "kaiming_normal_"),
    ("clipping_type: norm", "clipping_type: @@l2", "algorithms.gradient_clipping.clipping_type: unknown clipping_type l2", "one of: norm, value, adaptive"),
    ("precision: fp32", "precision: @@fp8", "precision: precision fp8 is not supported", "one of: fp32, amp_bf16, amp_fp16, fp64"),
    ("device: cpu", "device: @@tpu", "device: ", "one of: auto, cpu, cuda, cuda:N"),
    ("shuffle: true", "shuffle: true, shuffle_algo: @@py3", "train_loader.dataset.shuffle_algo: ", "py1e"),
    ("shuffle: true", "shuffle: true, validate_hash: @@sha0", "train_loader.dataset.validate_hash: unknown hash 'sha0'", "one of: "),
    ("    ffn_type: mb_dmoe", "    ffn_type: mb_dmoe\n    backend: @@triton", "model.ffn_config.backend: unknown backend triton", "one of: auto, "),
]  # fmt: skip

CONTRADICTIONS = [
    ("  n_heads: 4", "  n_heads: @@5", "model.n_heads: d_model 32 is not a multiple of n_heads 5", "set head_dim"),
    ("moe_top_k: 2", "moe_top_k: @@5", "model.ffn_config.moe_top_k: moe_top_k 5 is above moe_num_experts 4", "a token goes to moe_top_k different experts: lower it,"),
    ("{rope: true}", "{attn_type: @@grouped_query_attention}", "model.attn_config.attn_type: grouped_query_attention needs kv_n_heads", "set kv_n_heads beside it to a divisor of n_heads 4"),
    ("{rope: true}", "{attn_type: grouped_query_attention, kv_n_heads: @@3}", "model.attn_config.kv_n_heads: n_heads 4 is not a multiple of kv_n_heads 3", "each key and value serves as many queries' heads: set"),
    ("{rope: true}", "{qk_ln: true, qk_gn: @@true}", "model.attn_config.qk_gn: qk_ln and qk_gn exclude each other", "keep one"),
    ("  d_model: 32\n  n_heads: 4\n  n_layers: 2\n  max_seq_len: ${max_seq_len}\n  vocab_size: 257\n  no_bias: true\n  norm_type: rmsnorm\n  attn_config: {rope: true}",
     "  d_model: 33\n  n_heads: 3\n  vocab_size: 257\n  attn_config: {rope: @@true}", "model.attn_config.rope: rope needs an even head dimension; it is 11", "set head_dim, or d_model and n_heads so that d_model /"),
    ("t_warmup: 4ba", "t_warmup: 4ba, t_max: @@39ba", "scheduler.t_max: t_max 39ba (39 batches) is below max_duration (40 batches)", "at least max_duration"),
    ("t_warmup: 4ba", "t_warmup: @@4sec", "scheduler.t_warmup: 4sec is not a number of batches", "use ba, ep, sp, tok or dur"),
    ("t_warmup: 4ba", "t_warmup: @@4 bats", 'scheduler.t_warmup: "4 bats" is not a time', "10ba"),
    ("t_warmup: 4ba", "t_warmup: @@1.5ba", 'scheduler.t_warmup: "1.5ba" is not a time: only dur and sec take fractions', "write 10ba, 1ep, 500sp, 3e4tok, 0.02dur, 90sec or 1h30m10s"),
    ("t_warmup: 4ba", "t_warmup: @@-1ba", 'scheduler.t_warmup: "-1ba" is not a time: it is negative', "write 10ba, 1ep, 500sp, 3e4tok, 0.02dur, 90sec or 1h30m10s"),
    ("t_warmup: 4ba", "t_warmup: @@1e999ba", 'scheduler.t_warmup: "1e999ba" is not a time: it is too large', "write 10ba, 1ep, 500sp, 3e4tok, 0.02dur, 90sec or 1h30m10s"),
    ("max_duration: 40ba", "max_duration: @@0ba", "max_duration: max_duration must be a positive number of", "for example 1000ba, 1ep or 2e9tok; a run is not ended"),
    ("max_duration: 40ba", "max_duration: @@1dur", "max_duration: max_duration must be a positive number of ba, ep, sp or tok", "for example 1000ba, 1ep or 2e9tok; a run is not ended"),
    ("max_duration: 40ba", "max_duration: @@1h30m10s", "max_duration: max_duration must be a positive number of ba, ep, sp or tok", "for example 1000ba, 1ep or 2e9tok; a run is not ended"),
    ("save_interval: 7ba", "save_interval: @@10sec", "save_interval: save_interval cannot be in seconds", "use ba, ep, sp, tok or dur"),
    ("max_seq_len: 32\nseed", "max_seq_len: @@1\nseed", "max_seq_len: max_seq_len must be at least 2", "each token predicts the next: one alone has nothing to learn"),
    ("save_folder: run", "save_overwrite: true\nautoresume: @@true", "autoresume: autoresume goes on with the run that save_overwrite would remove", "set one of the two to false"),
    ("save_folder: run", "run_name: @@../x", "run_name: run_name '../x' is a path", "save_folder takes a path"),
    ("save_folder: run", "save_num_checkpoints_to_keep: @@0", "save_num_checkpoints_to_keep: ", "docs/yaml.md says what save_num_checkpoints_to_keep takes"),
    ("save_folder: run", "eval_subset_num_batches: @@0", "eval_subset_num_batches: ", "docs/yaml.md says what eval_subset_num_batches takes"),
    ("device_train_microbatch_size: 3", "device_train_microbatch_size: @@some", "device_train_microbatch_size: device_train_microbatch_size is a number of samples or `auto`", "a number like 8, or auto"),
    ("max_duration: 40ba\n", "", "max_duration: required key is missing", "add it; docs/yaml.md says what max_duration takes"),
    ("{local: data, split: train, shuffle: true, max_seq_len: 32}", "@@{split: train}", "train_loader.dataset.local: neither local nor remote is given", "name the folder"),
    ("{local: data, split: train", "{streams: {a: @@{local: a, proportion: 1, repeat: 2}}, split: train", "train_loader.dataset.streams.a: more than one of proportion, repeat and choose", "keep one of them"),
    ("{local: data, split: train", "{streams: {a: {local: a, proportion: 1}, b: @@{local: b}}, split: train", "train_loader.dataset.streams.b.proportion: ", "give every stream a proportion, or none"),
    ("{local: data, split: train, shuffle: true", "{local: @@nodata, split: train, shuffle: true", "train_loader.dataset.local: ", "name the folder of an MDS set"),
    ("{local: data, split: train, shuffle: true", "{streams: {a: {local: @@nodata}}, split: train, shuffle: true", "train_loader.dataset.streams.a.local: ", "name the folder of an MDS set"),
    ("{rope: true}", "{rope: true, kv_n_heads: @@2}", "model.attn_config.kv_n_heads: kv_n_heads 2 does not fit multihead_attention", "set attn_type: grouped_query_attention"),
    ("{local: data, split: train", "{local: data, split: @@nowhere", "train_loader.dataset.split: ", "its splits: train, val"),
    ("  vocab_size: 257", "  vocab_size: @@100", "model.vocab_size: vocab_size 100 is below the 257 ids of tokenizer bytes", "set it to 257 or more"),
    ("save_folder: run", "load_path: @@nowhere", "load_path: ", "give a step-N folder, a run folder that holds one, or"),
    ("global_train_batch_size: 8", "global_train_batch_size: @@100000", "global_train_batch_size: ", "lower the batch size"),
    ("  vocab_size: 257", "  vocab_size: @@100000000000", "model.vocab_size: ", "most are the embedding table's"),
    ("seed: 5", "icl_tasks: @@nofile.yaml", "icl_tasks: nofile.yaml is no file here", "give the path of a YAML file that holds icl_tasks"),
    ("seed: 5", "eval_gauntlet: @@nog.yaml", "eval_gauntlet: nog.yaml is no file here", "give the path of a YAML file that holds eval_gauntlet"),
    ("{name: cosine_with_warmup, t_warmup: 4ba, alpha_f: 0.1}", "@@{name: inv_sqrt_with_warmup, t_warmup: 4ba}", "scheduler.t_scale: required key is missing", "docs/yaml.md says what scheduler.t_scale takes"),
    ("weight_decay: 1.0e-5", "disable_grad: @@['.*']", "optimizer.disable_grad: nothing is left to train", "leave out an expression"),
    ("  n_layers: 2", "  n_layers: 9999\n  head_dim: @@1000000", "model.head_dim: ", "most are the attention's"),
]  # fmt: skip

REFUSED = [
    ("seed: 5", "tp_config: @@{a: 1}", "tp_config: not supported by this version", "there is one process"),
    ("seed: 5", "code_paths: @@[a.py]", "code_paths: not supported by this version", "there is no Python to import"),
    ("seed: 5", "save_ignore_keys: @@[a]", "save_ignore_keys: not supported by this version", "save_weights_only"),
    ("seed: 5", "only_hf_checkpoint: @@true", "only_hf_checkpoint: not supported by this version", "callbacks.hf_checkpointer"),
    ("seed: 5", "callbacks: {async_eval: @@{}}", "callbacks.async_eval: not supported by this version", "there is no service that evaluates; eval_interval does"),
    ("seed: 5", "eval_loaders: @@[]", "eval_loaders: not supported by this version", "give eval_loader a list"),
    ("seed: 5", "fsdp_config: {device_mesh: @@[2, 4]}", "fsdp_config.device_mesh: not supported by this version", "remove it"),
    ("  gradient_clipping:", "  alibi: @@{}\n  gradient_clipping:", "algorithms.alibi: not supported by this version", "the model block"),
    ("moe_world_size: 1", "moe_world_size: @@2", "model.ffn_config.moe_world_size: ", "this version trains in one process: set it to 1"),
]  # fmt: skip

INTERPOLATION = [
    ("seed: 5", "seed: @@${variables.sede}", 'seed: ${variables.sede}: there is no "variables"', "${} takes the whole path of a key of this file"),
    ("seed: 5", "variables: {seed: 5}\nseed: @@${variables.sede}", 'seed: ${variables.sede}: there is no "sede"; did you mean "seed"?', "${} takes the whole path of a key of this file"),
    ("seed: 5", "variables: {a: '${variables.b}', b: @@'${variables.a}'}", "${} in a circle: variables.a -> variables.b -> variables.a", "give one of them a value of its own"),
    ("seed: 5", "seed: @@${max_seq_len", "", "write \\${ for a literal ${"),
    ("seed: 5", "seed: @@${oc.env:HOME}", "seed: ", "resolvers"),
    ("seed: 5", "run_name: @@a${model}", "run_name: ${model} is a mapping and cannot stand inside a string", "name one of its values, like ${model.d_model}"),
    ("seed: 5", "variables:\n  seed: soon\nseed: @@${variables.seed}", 'seed: expected an integer, got "soon" (from ${variables.seed}, bad.yaml:4:9)', "write one like 12, 3e4 or 1_000, without leading zeros"),
]  # fmt: skip

OVERRIDES = [
    ("seed", "not of the form key.path=value", "for example optimizer.lr=3e-4"),
    ("seed.x=5", 'cannot set "x": seed is a single value (good.yaml:3:7)', "set the whole of it instead"),
    ("optimizer={bates: 1}", "optimizer.bates: unknown key; did you mean \"betas\"?", "known here: "),
    ("optimizer.disable_grad=[wte, nomatch]", "optimizer.disable_grad.1: 'nomatch' takes no parameter", "parameters are called like"),
    ("optimizer.param_groups=[{param_str_match: wte}, {param_str_match: nomatch}]", "optimizer.param_groups.1.param_str_match: 'nomatch' takes no parameter", "parameters are called like"),
    ("load_path=oci://bucket/run", "load_path: oci://bucket/run is not on this machine", "download it, and give its folder"),
    ("optimzer.lr=1", 'optimzer: unknown key; did you mean "optimizer"?', "known here: "),
    ("optimizer.lr=1e999", 'optimizer.lr: "1e999" is too large', "fp32"),
    ("optimizer.betas=[0.9", "", "a [ is not closed"),
    ("optimizer={lr: ${seed}}", "", "in a value without quotes"),
    ("model.vocab_size=100000000000", "model.vocab_size: ", "most are the embedding table's"),
    ("model.ffn_config.moe_num_experts=100000000", "model.ffn_config.moe_num_experts: ", "most are the experts'"),
    ("global_train_batch_size=100000", "global_train_batch_size: ", "lower the batch size"),
]  # fmt: skip


class BadConfigTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data()

    def refused(self, place: str, message: str, hint: str, *arguments) -> None:
        before = sorted(self.folder.rglob("*"))
        result = self.run_command("train", *arguments)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertEqual(result.stderr.count("error:"), 1, result.stderr)
        self.assertRegex(result.stderr, f"error: {place}: {re.escape(message)}")
        self.assertTrue(hint, "each row has one")
        self.assertRegex(result.stderr, r"(?m)^hint: ")
        self.assertIn(hint, result.stderr.split("\nhint: ", 1)[1])
        self.assertEqual(sorted(self.folder.rglob("*")), before, "nothing is started")

    def check_rows(self, rows):
        for old, new, message, hint in rows:
            with self.subTest(new if new.strip("@") else message):
                self.assertEqual(CONFIG.count(old), 1, "the piece to replace stands once")
                text = CONFIG.replace(old, new)
                place = r"bad\.yaml:\d+:\d+"
                if "@@" in text:
                    before, after = text.split("@@")
                    place = rf"bad\.yaml:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
                    text = before + after
                (self.folder / "bad.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
                self.refused(place, message, hint, "bad.yaml")

    def test_syntax(self):
        self.check_rows(SYNTAX)

    def test_unknown_keys(self):
        self.check_rows(UNKNOWN_KEYS)

    def test_types(self):
        self.check_rows(TYPES)

    def test_names(self):
        self.check_rows(NAMES)

    def test_contradictions(self):
        self.check_rows(CONTRADICTIONS)

    def test_refused(self):
        self.check_rows(REFUSED)

    def test_interpolation(self):
        self.check_rows(INTERPOLATION)

    def test_overrides(self):
        self.write_config("good.yaml")
        for override, message, hint in OVERRIDES:
            with self.subTest(override):
                self.refused(re.escape(f'override "{override}"'), message, hint, "good.yaml", override)

    def test_an_override_that_changes_a_block(self):
        """The keys of the block in the file stay, and the hint says how to be rid of them."""
        self.write_config("good.yaml")
        override = "optimizer={name: sgd, lr: 1e-2}"
        place, hint = r"good\.yaml:\d+:\d+", "`optimizer=null` before it empties it"
        self.refused(place, "optimizer.betas: unknown key", hint, "good.yaml", override)
        self.check_command("train", "good.yaml", "optimizer=null", override, "max_duration=1ba")

    def test_a_value_makes_no_lines_of_its_own(self):
        """A message that could be forged by what stands in a file."""
        (self.folder / "bad.yaml").write_text(CONFIG.replace("seed: 5", 'seed: "1\\nerror: x\\nhint: y"'))
        lines = self.run_command("train", "bad.yaml").stderr.splitlines()
        self.assertEqual(len(lines), 3, lines)
        self.assertRegex(lines[1], r"^error: bad\.yaml:\d+:\d+: seed: expected an integer.*\\nerror: x")

    def test_the_corpus_is_large(self):
        rows = [SYNTAX, UNKNOWN_KEYS, TYPES, NAMES, CONTRADICTIONS, REFUSED, INTERPOLATION, OVERRIDES]
        self.assertGreaterEqual(sum(map(len, rows)), 100)


def usage_of(folder, *arguments):
    """(exit code, standard error, seconds of CPU, peak resident bytes) of the command."""
    process = subprocess.Popen(
        [BINARY, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    message = process.stderr.read()
    process.stderr.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, message, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


class HostileConfigTest(CommandTest):
    """Files made to cost more than their size."""

    def hostile(self):
        def multiplied(first, line):
            return first + "".join(line.format(now=i, last=i - 1) for i in range(1, 60))

        ten = ", ".join(["*a{last}"] * 10)
        return {
            "10 MB scalar": ("a: " + "x" * 10_000_000, "10000003 bytes; at most 1048576"),
            "1 MB scalar": ("a: " + "x" * 1_000_000, "model: required mapping is missing"),
            "20,000 brackets": ("a: " + "[" * 20_000, "nested deeper than 100 levels"),
            "20,000 brackets of an expression": (
                CONFIG.replace("weight_decay: 1.0e-5", "disable_grad: ['" + "(" * 20_000 + "a" + ")" * 20_000 + "']"),
                "is no regular expression: it has more than 1000 characters",
            ),
            "20,000 braces": ("a: " + "{a: " * 20_000, "nested deeper than 100 levels"),
            "900 indents": ("".join(" " * i + "a:\n" for i in range(900)), "nested deeper than 100 levels"),
            "anchor bomb": (multiplied("a0: &a0 [x]\n", "a{now}: &a{now} [" + ten + "]\n"), "grows beyond 100000 values"),
            "merge bomb": (
                multiplied("a0: &a0 {k0: 1}\n", "a{now}: &a{now}\n  b{now}: *a{last}\n  c{now}: *a{last}\n  <<: *a{last}\n"),
                "grows beyond 100000 values",
            ),
            "doubling text": (multiplied("a0: xxxxxxxxxx\n", "a{now}: ${{a{last}}}${{a{last}}}\n"), "grows beyond"),
            "doubling lists": (multiplied("a0: [x, x]\n", "a{now}: ['${{a{last}}}', '${{a{last}}}']\n"), "grows beyond"),
            "anchor in itself": ("a: &a {b: [*a, *a]}\n", "an alias inside the value it stands for"),
            "circle": ("".join(f"a{i}: ${{a{(i + 1) % 5000}}}\n" for i in range(5000)), "nested deeper than"),
            "small circle": ("a: ${b}\nb: ${a}\n", "${} in a circle: a -> b -> a"),
            "40,000 keys": ("".join(f"k{i}: 1\n" for i in range(40_000)), "model: required mapping is missing"),
            "90,000 keys": ("".join(f"k{i}: 1\n" for i in range(90_000)), "grows beyond 100000 values"),
            "unknown anchors": ("a: *" + "b" * 500_000, ""),
            "only colons": (":" * 500_000, ""),
            "only quotes": ("'" * 500_001, ""),
            "only dashes": ("- " * 200_000, ""),
            "dashes before a key": (("- " * 250_000 + "\n") * 2 + "k: \a", "a control character (byte 7)"),
            "a long key": ("a" * 900_000 + ": \a", "a control character (byte 7)"),
            "many items": ("- a\n" * 250_000 + "- k: \a", "a control character (byte 7)"),
            "zeros": ("\0" * 500_000, "a control character (byte 0)"),
        }

    def test_cost(self):
        report = []
        for name, (text, expected) in self.hostile().items():
            with self.subTest(name):
                (self.folder / "hostile.yaml").write_text(text)
                code, message, seconds, peak = usage_of(self.folder, "train", "hostile.yaml")
                report.append(f"{name}: {seconds:.2f} s, {peak / 2**20:.1f} MiB")
                self.assertEqual(code, 2, message[:2000])
                self.assertRegex(message, r"error: hostile\.yaml(:\d+:\d+:| has) ")
                self.assertIn(expected, message)
                self.assertLess(len(message), 3000, "a message that can be read")
                self.assertLess(peak, 64 << 20)
                self.assertLess(seconds, 2.0)
        if "-v" in sys.argv:
            print("\n".join(report))


if __name__ == "__main__":
    unittest.main()
