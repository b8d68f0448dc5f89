"""Hugging Face folders: read directly, converted both ways, refused; figures by transformers in
tests/data/hf_logits.json (make_hf_logits.py)."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import unittest

import fingerprint
import hf_models
import torch
from command import CONFIG, CommandTest, read_safetensors

EXPECTED = json.loads((pathlib.Path(__file__).parents[1] / "data/hf_logits.json").read_text())


class ConvertTest(CommandTest):
    def write_model(self, name: str, stacked: bool = False, dtype=torch.float32, folder=None, **keys):
        config = dict(hf_models.CONFIGS[name], **keys)
        tensors = hf_models.weights(config, dtype)
        if stacked:
            tensors = hf_models.stack_experts(config, tensors)
        folder = folder or name
        hf_models.write_folder(self.folder / folder, config, tensors)
        return folder

    def figures(self, model: str) -> dict:
        return json.loads(
            self.check_command(
                "generate", model, "--prompt-ids", json.dumps(hf_models.PROMPTS), "--temperature", 0,
                "--max-new-tokens", 64, "--json", "--logits",
            )
        )

    def check_figures(self, name: str, model: str):
        answer, expected = self.figures(model), EXPECTED[name]
        for ours, theirs in zip(answer["logits_last"], expected["logits_last"], strict=True):
            ours, theirs = torch.tensor(ours), torch.tensor(theirs)
            self.assertLess(((ours - theirs).norm() / theirs.norm()).item(), 1e-5, name)
        self.assertAlmostEqual(answer["cross_entropy"], expected["cross_entropy"], delta=1e-6)
        self.assertEqual(answer["sequences"], expected["greedy"])

    def check_refused(self, words, *arguments, code=2):
        result = self.run_command(*arguments)
        self.assertEqual(result.returncode, code, result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)

    def tensors_of(self, folder: str) -> dict:
        tensors = {}
        for file in sorted((self.folder / folder).glob("model*.safetensors")):
            tensors |= read_safetensors(file)
        return tensors

    def test_every_family_computes_what_transformers_does(self):
        for name in hf_models.CONFIGS:
            with self.subTest(name):
                self.check_figures(name, self.write_model(name))
                # The logits of all positions, as those behind every beginning of the prompts: one batch of all lengths.
                prefixes = [ids[: n + 1] for ids in hf_models.PROMPTS for n in range(len(ids))]
                answer = json.loads(
                    self.check_command(
                        "generate", name, "--prompt-ids", json.dumps(prefixes), "--json", "--logits", "--max-new-tokens", 0
                    )
                )
                logits, stored = torch.tensor(answer["logits_last"]), EXPECTED[name]["logits_all"]
                self.assertLess(fingerprint.distance("logits", logits, stored), 1e-5 * stored[0], name)

    def test_stacked_experts_are_the_same_model(self):
        for name in ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe"):
            with self.subTest(name):
                self.check_figures(name, self.write_model(name, stacked=True))

    def test_round_trip_is_bit_equal(self):
        for name in hf_models.CONFIGS:
            with self.subTest(name):
                self.write_model(name)
                self.check_command("convert", name, f"{name}-ours", "--to", "dropless")
                self.check_figures(name, f"{name}-ours")
                self.check_command("convert", f"{name}-ours", f"{name}-back", "--to", "hf")
                self.assertEqual(self.tensors_of(name), self.tensors_of(f"{name}-back"))
                self.check_figures(name, f"{name}-back")
                before = json.loads((self.folder / name / "config.json").read_text())
                after = json.loads((self.folder / f"{name}-back" / "config.json").read_text())
                self.assertEqual(after["model_type"], before["model_type"])

    def test_mpt_goes_back_to_transformers(self):
        self.write_model("mpt", eos_token_id=0)
        self.check_command("convert", "mpt", "ours", "--to", "dropless")
        self.check_command("convert", "ours", "back", "--to", "hf")
        self.check_command("convert", "ours", "foundry", "--to", "llm-foundry")
        for folder, architecture in (("back", "MptForCausalLM"), ("foundry", "MPTForCausalLM")):
            self.assertEqual(self.tensors_of("mpt"), self.tensors_of(folder))
            self.check_figures("mpt", folder)
            config = json.loads((self.folder / folder / "config.json").read_text())
            self.assertEqual((config["model_type"], config["architectures"]), ("mpt", [architecture]))
            # transformers' class takes whole numbers alone for these.
            for key, value in config["attn_config"].items():
                self.assertFalse(key in ("attn_pdrop", "alibi_bias_max") and type(value) is not int, key)
        if importlib.util.find_spec("transformers") and importlib.util.find_spec("safetensors"):
            import transformers

            for folder in ("back", "foundry"):
                model = transformers.AutoModelForCausalLM.from_pretrained(self.folder / folder, dtype=torch.float32)
                with torch.no_grad():
                    logits = model(torch.tensor(hf_models.PROMPTS)).logits[:, -1]
                expected = torch.tensor(EXPECTED["mpt"]["logits_last"])
                self.assertLess(((logits - expected).norm() / expected.norm()).item(), 1e-5)
        # Its class does not read logit_scale.
        self.write_model("mpt", folder="scaled", logit_scale=0.5)
        self.check_figures("mpt", "scaled")
        # Its class takes 8 whatever the config says, and save_pretrained writes a dtype into the part.
        self.write_model("mpt", folder="sixteen", attn_config=dict(hf_models.CONFIGS["mpt"]["attn_config"], alibi_bias_max=16, dtype="float32"))
        self.check_figures("mpt", "sixteen")
        result = self.run_command("convert", "sixteen", "sixteen-ours", "--to", "dropless")
        self.assertEqual(result.stderr.count("alibi_bias_max 16 is read as 8"), 1, result.stderr)
        # Others are refused by name.
        self.check_command("convert", "foundry", "foundry-ours", "--to", "dropless")
        config = dict(json.loads((self.folder / "foundry/config.json").read_text()))
        config["attn_config"]["alibi_bias_max"] = 16
        (self.folder / "foundry/config.json").write_text(json.dumps(config))
        self.check_command("convert", "foundry", "foundry-ours", "--to", "dropless", "--overwrite")
        self.check_refused(["model.attn_config.alibi_bias_max 16"], "convert", "foundry-ours", "x", "--to", "hf")
        tensors = hf_models.weights(dict(hf_models.CONFIGS["mpt"], expansion_ratio=2))
        config = dict(hf_models.CONFIGS["mpt"], architectures=["MPTForCausalLM"], expansion_ratio=2)
        config["attn_config"] = dict(config["attn_config"], rope=False)
        hf_models.write_folder(self.folder / "narrow", config, tensors)
        self.check_command("convert", "narrow", "narrow-ours", "--to", "dropless")
        self.check_refused(["no family", "model.attn_config.rope"], "convert", "narrow-ours", "x", "--to", "hf")

    def test_a_head_beside_tied_embeddings(self):
        config = dict(hf_models.CONFIGS["olmoe"], tie_word_embeddings=True)
        tensors = hf_models.weights(config)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        hf_models.write_folder(self.folder / "copy", config, tensors)
        self.check_command("generate", "copy", "--prompt-ids", "[[1]]", "--json", "--max-new-tokens", 1)
        tensors["lm_head.weight"][95, 47] += 1
        hf_models.write_folder(self.folder / "own", config, tensors)
        words = ["lm_head.weight is another matrix than model.embed_tokens.weight", "tie_word_embeddings"]
        for command in (["generate", "own", "--prompt-ids", "[[1]]"], ["convert", "own", "ours", "--to", "dropless"]):
            self.check_refused(words, *command)

    def test_stacked_and_bfloat16_come_back_bit_equal(self):
        each = self.write_model("olmoe", dtype=torch.bfloat16)
        stacked = self.write_model("olmoe", dtype=torch.bfloat16, stacked=True, folder="stacked")
        for source in (each, stacked):
            self.check_command("convert", source, "ours", "--to", "dropless", "--overwrite")
            self.check_command("convert", "ours", "back", "--to", "hf", "--overwrite")
            self.assertEqual(self.tensors_of(each), self.tensors_of("back"))
        self.assertEqual(self.figures(each), self.figures("ours"))
        self.assertEqual(json.loads((self.folder / "back/config.json").read_text())["torch_dtype"], "bfloat16")

    def test_weights_held_in_bf16_compute_what_cast_ones_do(self):
        # Of the folders' forms only ours can be used where it lies: one matrix of all experts, and in bf16.
        each = self.write_model("qwen2_moe", dtype=torch.bfloat16)
        for name, dtype in (("bf16", "bf16"), ("fp32", "fp32")):
            self.check_command("convert", each, name, "--to", "dropless", "--dtype", dtype)
        arguments = ["--prompt-ids", "[[5, 9, 2], [7, 7, 1]]", "--temperature", 0, "--json", "--logits", "--max-new-tokens", 6]
        answers = [
            json.loads(self.check_command("generate", folder, *arguments, "--dtype", "bf16", "--timings"))
            for folder in (each, "bf16", "fp32")
        ]
        for answer in answers:
            seconds = answer.pop("seconds")
            self.assertTrue(all(seconds[key] > 0 for key in ("load", "prompt", "pass", "passes")), seconds)
            self.assertGreaterEqual(seconds["passes"], seconds["pass"])
        self.assertEqual(answers[0], answers[1])
        self.assertEqual(answers[0], answers[2])
        exact = json.loads(self.check_command("generate", "fp32", *arguments))
        self.assertNotEqual(exact["logits_last"], answers[0]["logits_last"])
        for rough, fine in zip(answers[0]["logits_last"], exact["logits_last"]):
            difference = torch.tensor(rough) - torch.tensor(fine)
            self.assertLess(difference.norm() / torch.tensor(fine).norm(), 0.05)

    def test_dtype_is_torchs_conversion(self):
        config = hf_models.CONFIGS["mixtral"]
        self.write_model("mixtral")
        for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            self.check_command("convert", "mixtral", name, "--to", "dropless", "--dtype", name)
            self.check_command("convert", name, f"{name}-hf", "--to", "hf")
            hf_models.write_folder(self.folder / f"{name}-expected", config, hf_models.weights(config, dtype))
            self.assertEqual(self.tensors_of(f"{name}-hf"), self.tensors_of(f"{name}-expected"))

    def test_shards_and_companions(self):
        self.write_model("olmoe", eos_token_id=[2, 11])
        (self.folder / "olmoe/tokenizer_config.json").write_text('{"a": 1}')
        (self.folder / "olmoe/generation_config.json").write_text('{"eos_token_id": 2}')
        self.check_command("convert", "olmoe", "ours", "--to", "dropless")
        self.check_command("convert", "ours", "back", "--to", "hf", "--shard-bytes", 30000)
        shards = sorted(path.name for path in (self.folder / "back").glob("*.safetensors"))
        self.assertGreater(len(shards), 3)
        self.assertEqual(shards[0], f"model-00001-of-{len(shards):05}.safetensors")
        index = json.loads((self.folder / "back/model.safetensors.index.json").read_text())
        self.assertEqual(set(index["weight_map"]), set(self.tensors_of("olmoe")))
        self.assertEqual(self.tensors_of("back"), self.tensors_of("olmoe"))
        self.check_figures("olmoe", "back")
        for name in ("tokenizer_config.json", "generation_config.json"):
            self.assertEqual(
                (self.folder / "back" / name).read_text(), (self.folder / "olmoe" / name).read_text()
            )
        self.assertEqual(json.loads((self.folder / "back/config.json").read_text())["eos_token_id"], [2, 11])
        # An index that lies, and a shard that is gone.
        index["weight_map"]["model.extra"] = shards[0]
        (self.folder / "back/model.safetensors.index.json").write_text(json.dumps(index))
        self.check_refused(["model.extra", shards[0]], "convert", "back", "x", "--to", "dropless", code=1)
        del index["weight_map"]["model.extra"]
        (self.folder / "back/model.safetensors.index.json").write_text(json.dumps(index))
        (self.folder / "back" / shards[1]).unlink()
        self.check_refused([shards[1], "missing"], "convert", "back", "x", "--to", "dropless", code=1)
        self.assertFalse((self.folder / "x").exists())

    def test_a_trained_model_goes_out_or_is_refused_by_name(self):
        self.write_data()
        self.write_config()
        self.check_command("train", "config.yaml", "max_duration=8ba")
        self.check_command("convert", "run", "out", "--to", "hf")
        arguments = ("--prompt-ids", "[[5, 80, 3]]", "--temperature", 0, "--json", "--logits")
        ours, theirs = (json.loads(self.check_command("generate", m, *arguments)) for m in ("run", "out"))
        self.assertEqual(ours["logits_last"], theirs["logits_last"])
        self.check_command(
            "train", "config.yaml", "max_duration=8ba", "model.attn_config.softmax_scale=0.3", "save_folder=scaled"
        )
        self.check_refused(["softmax_scale", "0.3"], "convert", "scaled", "refused", "--to", "hf")
        self.assertFalse((self.folder / "refused").exists())

    def test_what_config_json_says_is_honoured_or_refused_by_name(self):
        for number, (keys, word) in enumerate((
            (dict(rope_scaling=dict(rope_type="longrope", factor=4.0)), "longrope"),
            (dict(sliding_window=0), "sliding_window 0"),
            (dict(attention_bias=True), "attention_bias"),
            (dict(hidden_act="mish"), "mish"),
            (dict(attention_multiplier=0.5), "attention_multiplier"),
            (dict(quantization_config=dict(bits=4)), "quantised weights are not read"),
            (dict(attention_dropout=0.1), "attention_dropout"),
            (dict(hidden_size="48"), "hidden_size"),
            (dict(model_type="deepseek_v3"), "deepseek_v3"),
        )):
            with self.subTest(word):
                folder = f"bad{number}"
                config = dict(hf_models.CONFIGS["mixtral"])
                hf_models.write_folder(self.folder / folder, dict(config, **keys), hf_models.weights(config))
                for verb in (["info"], ["generate"], ["convert"]):
                    rest = ["x", "--to", "dropless"] if verb == ["convert"] else []
                    self.check_refused([word, "config.json"], *verb, folder, *rest)
        self.assertFalse((self.folder / "x").exists())
        # A window that no position reaches, and an unknown key without a value, change nothing.
        self.write_model("mixtral", folder="wide", sliding_window=64, mystery=None)
        self.check_figures("mixtral", "wide")

    def test_tensors_that_are_not_those_of_the_config(self):
        config = hf_models.CONFIGS["olmoe"]
        good = hf_models.weights(config)
        lost = "model.layers.1.mlp.experts.2.up_proj.weight"
        cases = {
            "missing": ({name: t for name, t in good.items() if name != lost}, lost),
            "extra": (dict(good, **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}), "q_proj.bias"),
            "shape": (dict(good, **{"model.norm.weight": torch.ones(47)}), "model.norm.weight is [47]"),
        }
        for folder, (tensors, word) in cases.items():
            with self.subTest(folder):
                hf_models.write_folder(self.folder / folder, config, tensors)
                self.check_refused([word], "generate", folder, "--prompt-ids", "[[1]]")
                self.check_refused([word], "convert", folder, "x", "--to", "dropless")
        self.assertFalse((self.folder / "x").exists())
        good["model.norm.weight"][3] = float("nan")
        hf_models.write_folder(self.folder / "nan", config, good)
        result = self.run_command("convert", "nan", "with-nan", "--to", "dropless")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("warning", result.stderr)
        self.assertIn("transformer.norm_f.weight", result.stderr)
        # Attention would hide these: no score that is no number comes out of libtorch's kernels.
        for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
            tensors = dict(hf_models.weights(config))
            tensors[name][0, 0] = float("nan")
            hf_models.write_folder(self.folder / name, config, tensors)
            for prompts in ("[[1, 2]]", "[[1]]"):
                self.check_refused(["1 of the ", name], "generate", name, "--prompt-ids", prompts, "--json", code=1)
        # fp16 has no room for what is finite elsewhere.
        large = hf_models.weights(config)
        large["model.norm.weight"][3] = 1e6
        hf_models.write_folder(self.folder / "large", config, large)
        self.check_command("convert", "large", "large-ours", "--to", "dropless")
        result = self.run_command("convert", "large-ours", "half", "--to", "hf", "--dtype", "fp16")
        self.assertIn("fp16 ends at 65504", result.stderr)
        # Whoever runs them, or trains on from them, learns of the tensor.
        (self.folder / "text.txt").write_text("some text")
        words = ["1 of the ", "model.norm.weight"]
        self.check_refused(words, "generate", "nan", "--prompt-ids", "[[1, 2]]", "--json", code=1)
        self.write_model("olmoe", folder="bytes", vocab_size=257)
        weights = hf_models.weights(dict(config, vocab_size=257))
        weights["model.layers.1.mlp.gate.weight"][0, 0] = float("inf")
        hf_models.write_safetensors(self.folder / "bytes/model.safetensors", weights)
        self.check_command("convert", "bytes", "tokens", "--to", "dropless")
        self.write_data()
        words[1] = "model.layers.1.mlp.gate.weight"
        self.check_refused(words, "eval", "bytes", "--data", "data/val", code=1)
        model = (self.folder / "tokens/config.yaml").read_text()
        head = CONFIG[: CONFIG.index("model:")] + CONFIG[CONFIG.index("tokenizer:") :]
        self.write_config(content=head.replace("max_seq_len: 32\n", "", 1) + model.replace("max_seq_len: 64\n", "max_seq_len: 32\n", 1).split("tokenizer:")[0])
        self.check_refused(words, "train", "config.yaml", "load_path=bytes", code=1)

    def test_a_tokenizer_of_more_ids_than_embeddings(self):
        tokenizer = pathlib.Path(__file__).parents[1] / "data/tokenizer/bpe.model"
        self.write_model("olmoe")
        shutil.copy(tokenizer, self.folder / "olmoe/tokenizer.model")
        (self.folder / "text.txt").write_text("some text")
        words = ["tokenizer.model has", "embeddings of 96", "olmoe/config.json"]
        self.check_refused(words, "generate", "olmoe", "--prompt-ids", "[[1]]")
        self.check_refused(words, "eval", "olmoe", "--data", "text.txt")
        self.check_refused(words, "convert", "olmoe", "ours", "--to", "dropless", code=0)
        words[-1] = "ours/config.yaml"
        self.check_refused(words, "eval", "ours", "--data", "text.txt")
        self.check_refused(words, "convert", "ours", "back", "--to", "hf", code=0)

    def run_hint(self, folder: str):
        """Runs the line of Python that the refusal gives."""
        result = self.run_command("generate", folder, "--prompt-ids", "[[1]]")
        line = result.stderr[result.stderr.index("python -c") :].strip()
        self.assertTrue(line.startswith('python -c "') and line.endswith('"'), line)
        subprocess.run([sys.executable, "-c", line[len('python -c "') : -1]], cwd=self.folder, check=True, timeout=300)

    def test_pickles_are_refused_with_the_line_that_converts_them(self):
        self.write_model("olmoe")
        tensors = hf_models.weights(hf_models.CONFIGS["olmoe"])
        (self.folder / "olmoe/model.safetensors").unlink()
        torch.save(tensors, self.folder / "olmoe/pytorch_model.bin")
        (self.folder / "olmoe/tokenizer_config.json").write_text("{}")
        self.check_refused(
            ["pytorch_model.bin is a pickle", "python -c", "save_pretrained"],
            "convert", "olmoe", "x", "--to", "dropless",
        )
        if importlib.util.find_spec("transformers") and importlib.util.find_spec("safetensors"):
            self.run_hint("olmoe")
            self.check_figures("olmoe", "olmoe-safetensors")
            files = {path.name for path in (self.folder / "olmoe-safetensors").iterdir()}
            self.assertIn("tokenizer_config.json", files)
            self.assertNotIn("pytorch_model.bin", files)
        (self.folder / "olmoe/config.json").unlink()
        self.check_refused(["no config.json in olmoe, which holds weights"], "generate", "olmoe", "--prompt-ids", "[[1]]")

    def test_an_index_and_files_that_contradict_it(self):
        self.write_model("olmoe")
        self.check_command("convert", "olmoe", "ours", "--to", "dropless")
        self.check_command("convert", "ours", "back", "--to", "hf", "--shard-bytes", 30000)
        path = self.folder / "back/model.safetensors.index.json"
        index = json.loads(path.read_text())
        true_size = index["metadata"]["total_size"]
        index["metadata"]["total_size"] = 7
        path.write_text(json.dumps(index))
        shutil.copy(self.folder / "olmoe/model.safetensors", self.folder / "back/model-extra.safetensors")
        words = ["total_size is 7", f"{true_size} bytes", "model-extra.safetensors is left out"]
        self.check_refused(words, "generate", "back", "--prompt-ids", "[[1]]", "--json", code=0)
        self.check_refused(words, "convert", "back", "again", "--to", "dropless", code=0)
        # transformers would read the one that the index does not name.
        (self.folder / "back/model-extra.safetensors").rename(self.folder / "back/model.safetensors")
        self.check_refused(["holds both model.safetensors and"], "generate", "back", "--prompt-ids", "[[1]]")
        (self.folder / "olmoe/config.json").unlink()
        for arguments in (("generate", "olmoe", "--prompt-ids", "[[1]]"), ("convert", "olmoe", "x", "--to", "dropless"), ("info", "olmoe")):
            self.check_refused(["no config.json in", "olmoe"], *arguments)

    def test_targets(self):
        self.write_model("olmoe")
        (self.folder / "full").mkdir()
        (self.folder / "full/mine").write_text("precious")
        self.check_refused(["full is not empty"], "convert", "olmoe", "full", "--to", "dropless")
        self.assertEqual((self.folder / "full/mine").read_text(), "precious")
        self.check_refused(["one folder"], "convert", "olmoe", "olmoe", "--to", "dropless", "--overwrite")
        self.check_refused(["one is in the other"], "convert", "olmoe", "olmoe/x", "--to", "dropless")
        self.check_refused(["onnx"], "convert", "olmoe", "x", "--to", "onnx")
        self.check_refused(["int8"], "convert", "olmoe", "x", "--to", "dropless", "--dtype", "int8")
        self.check_refused(["absent"], "convert", "absent", "x", "--to", "dropless")
        self.check_refused(["already"], "convert", "olmoe", "x", "--to", "hf")
        self.check_command("convert", "olmoe", "full", "--to", "dropless", "--overwrite")
        self.assertFalse((self.folder / "full/mine").exists())
        self.check_figures("olmoe", "full")
        # A disk that fills up leaves nothing behind, and what was there stays.
        before = sorted(path.name for path in self.folder.iterdir())
        result = self.run_command(
            "convert", "olmoe", "full", "--to", "dropless", "--overwrite", "--dtype", "bf16",
            env={"DROPLESS_FAIL_AT": "8:ENOSPC"},
        )
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertEqual(before, sorted(path.name for path in self.folder.iterdir()))
        self.check_figures("olmoe", "full")

    def test_a_conversion_that_was_cut_off_goes_on(self):
        self.write_model("olmoe")
        self.check_command("convert", "olmoe", "whole", "--to", "dropless", "--shard-bytes", 30000)
        self.check_figures("olmoe", "whole")
        expected = self.tensors_of("whole")
        names = sorted(path.name for path in (self.folder / "whole").iterdir())
        arguments = ("convert", "olmoe", "ours", "--to", "dropless", "--shard-bytes", 30000)
        shards = len([name for name in names if name.endswith(".safetensors")])
        for how in ("", ":ENOSPC"):  # killed, or a full disk
            with self.subTest(how):
                point = f"fsync model-00003-of-{shards:05}.safetensors{how}"
                result = self.run_command(*arguments, env={"DROPLESS_FAIL_AT": point})
                self.assertNotEqual(result.returncode, 0)
                self.assertFalse((self.folder / "ours").exists())
                left = self.folder / "ours.dropless-tmp"
                first = left / f"model-00001-of-{shards:05}.safetensors"
                stamp = first.stat().st_mtime_ns
                # Another conversion does not take these files for its own.
                if how:
                    self.write_model("olmoe", folder="other", dtype=torch.bfloat16)
                    self.check_command(
                        "convert", "other", "ours", "--to", "dropless", "--shard-bytes", 30000
                    )
                    self.assertNotEqual(expected, self.tensors_of("ours"))
                    continue
                result = self.run_command(*arguments)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn("2 files of an earlier start", result.stderr)
                moved = self.folder / "ours" / first.name
                self.assertEqual(moved.stat().st_mtime_ns, stamp)
                self.assertEqual(expected, self.tensors_of("ours"))
                self.assertEqual(names, sorted(path.name for path in (self.folder / "ours").iterdir()))
                self.check_figures("olmoe", "ours")
                info = json.loads(self.check_command("info", "ours", "--json"))
                self.assertEqual({t["name"] for t in info["tensors"]}, set(expected))
                self.assertGreater(len({t["file"] for t in info["tensors"]}), 3)
                moved.write_bytes(moved.read_bytes()[:-1] + b"?")
                self.check_refused([first.name], "generate", "ours", "--prompt-ids", "[[1]]", code=1)
                shutil.rmtree(self.folder / "ours")

    def test_eval_and_info_of_a_folder(self):
        folder = self.write_model("qwen3_moe", vocab_size=257)
        info = json.loads(self.check_command("info", folder, "--json"))
        tensors = self.tensors_of(folder)
        self.assertEqual({t["name"] for t in info["tensors"]}, set(tensors))
        total = sum(torch.Size(shape).numel() for _, shape, _ in tensors.values())
        self.assertEqual(info["parameters"]["total"], total)
        self.write_data()
        answer = json.loads(self.check_command("eval", folder, "--data", "data/val", "--json"))
        self.check_command("convert", folder, "ours", "--to", "dropless")
        self.assertEqual(answer, json.loads(self.check_command("eval", "ours", "--data", "data/val", "--json")))
        self.assertGreater(answer["tokens"], 1000)


FULL_SIZE = {
    "mixtral-8x7b": 46_702_792_704,
    "olmoe-1b-7b": 6_919_161_856,
    "qwen3-30b-a3b": 30_532_122_624,
    "dbrx-132b": 131_596_523_520,
}
ACTIVE = {"mixtral-8x7b": 12.88, "olmoe-1b-7b": 1.28, "qwen3-30b-a3b": 3.35, "dbrx-132b": 36.47}
CONFIG_JSON = {
    "mixtral-8x7b": dict(
        model_type="mixtral", hidden_size=4096, intermediate_size=14336, max_position_embeddings=32768,
        num_attention_heads=32, num_experts_per_tok=2, num_hidden_layers=32, num_key_value_heads=8,
        num_local_experts=8, rms_norm_eps=1e-5, rope_theta=1e6, vocab_size=32000,
    ),
    "olmoe-1b-7b": dict(
        model_type="olmoe", hidden_size=2048, intermediate_size=1024, max_position_embeddings=4096,
        num_attention_heads=16, num_experts=64, num_experts_per_tok=8, num_hidden_layers=16,
        num_key_value_heads=16, vocab_size=50304,
    ),
    "qwen3-30b-a3b": dict(
        model_type="qwen3_moe", hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
        max_position_embeddings=40960, num_attention_heads=32, num_experts=128, num_experts_per_tok=8,
        num_hidden_layers=48, num_key_value_heads=4, head_dim=128, norm_topk_prob=True, vocab_size=151936,
    ),
    "dbrx-132b": dict(
        model_type="dbrx", d_model=6144, n_heads=48, n_layers=40, max_seq_len=32768, vocab_size=100352,
        attn_config=dict(clip_qkv=8, kv_n_heads=8, model_type="", rope_theta=500000),
        ffn_config=dict(
            ffn_act_fn=dict(name="silu"), ffn_hidden_size=10752, model_type="", moe_jitter_eps=0,
            moe_loss_weight=0.05, moe_num_experts=16, moe_top_k=4,
        ),
    ),
}


class FullSizeTest(CommandTest):
    def test_counts_of_released_models(self):
        for name, total in FULL_SIZE.items():
            with self.subTest(name):
                (self.folder / name).mkdir()
                (self.folder / name / "config.json").write_text(json.dumps(CONFIG_JSON[name]))
                recipe = pathlib.Path(__file__).parents[2] / "configs" / f"{name}.yaml"
                counts = [
                    json.loads(self.check_command("info", model, "--json"))["parameters"]
                    for model in (name, recipe)
                ]
                self.assertEqual(counts[0], counts[1])
                self.assertEqual(counts[0]["total"], total)
                self.assertAlmostEqual(counts[0]["active"] / 1e9, ACTIVE[name], delta=0.005)


if __name__ == "__main__":
    unittest.main()
