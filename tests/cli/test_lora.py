"""LoRA: its gradients out of the whole matrices' gradients, checkpoints and resumes, merging, and PEFT's format."""

import importlib.util
import json
import shutil
import unittest

import hf_models
import torch
from command import CommandTest
from test_gradients import LR, TRAINING, GradientsTest, tensors

ALPHA, R = 6.0, 3
SCALE = ALPHA / R
LORA = f"peft_config: {{peft_type: LORA, task_type: CAUSAL_LM, r: {R}, lora_alpha: {ALPHA}, lora_dropout: 0.0, target_modules: TARGETS}}"
TUNE = TRAINING.replace("{name: sgd, lr: 4096.0, momentum: 0.0, weight_decay: 0.0}", "{name: adamw, lr: 0.02}").replace("1ba", "6ba")


class LoraTest(CommandTest):
    write_prompts = GradientsTest.write_prompts

    def setUp(self):
        super().setUp()
        self.write_prompts()

    def write_base(self, name: str, **keys):
        config = dict(hf_models.CONFIGS[name], **keys)
        hf_models.write_folder(self.folder / name, config, hf_models.weights(config))
        self.check_command("convert", name, "base", "--to", "dropless", "--overwrite")
        model = (self.folder / "base/config.yaml").read_text()
        self.model = model[model.index("model:") :]

    def write_config(self, training: str, targets: str = ""):  # noqa: D102
        model = self.model
        if targets:
            model = model.replace("model:\n", "model:\n  " + LORA.replace("TARGETS", targets) + "\n", 1)
        (self.folder / "train.yaml").write_text(training.replace("tokenizer: {name: none}\n", "") + model)

    def train(self, *overrides):
        balance = ["model.ffn_config.moe_loss_weight=0"] if "moe_loss_weight" in self.model else []
        return self.check_command("train", "train.yaml", *balance, *overrides)

    def logits(self, folder: str, *more) -> torch.Tensor:
        answer = json.loads(
            self.check_command(
                "generate", folder, *more, "--prompt-ids", json.dumps(hf_models.PROMPTS), "--json", "--logits", "--max-new-tokens", 0
            )
        )
        return torch.tensor(answer["logits_last"], dtype=torch.float64)

    def check_close(self, ours, theirs, tolerance, what=""):
        self.assertLess(((ours - theirs).norm() / theirs.norm()).item(), tolerance, what)

    def tune(self, targets: str, run: str = "tuned"):
        self.write_config(TUNE, targets)
        self.train("load_path=base", f"save_folder={run}", "save_overwrite=true")
        return tensors(self.folder / run / "latest/model.safetensors")

    def test_gradients_are_the_chain_rules(self):
        for name in ("olmoe", "qwen2_moe", "dbrx"):
            with self.subTest(name):
                self.write_base(name)
                targets = "[Wqkv, out_proj, w1, v1, w2]" if name == "dbrx" else "all-linear"
                before = self.tune(targets)
                self.check_command("convert", "tuned", "merged", "--to", "dropless", "--merge-adapter", "--overwrite")
                self.write_config(TRAINING)
                self.train("load_path=merged", "save_folder=whole", "save_overwrite=true")
                merged = tensors(self.folder / "merged/model.safetensors")
                stepped = tensors(self.folder / "whole/latest/model.safetensors")
                slopes = {key: (merged[key].double() - stepped[key].double()) / LR for key in merged}
                self.write_config(TRAINING, targets)
                self.train("load_path=tuned/latest", "load_weights_only=true", "save_folder=lora", "save_overwrite=true")
                after = tensors(self.folder / "lora/latest/model.safetensors")
                count = 0
                for key in before:
                    if ".lora_A" not in key:
                        self.assertEqual(".lora_" not in key, torch.equal(before[key], after[key]), key)
                        continue
                    other = key.replace("lora_A", "lora_B")
                    a, b = before[key].double(), before[other].double()
                    da, db = ((before[k].double() - after[k].double()) / LR for k in (key, other))
                    for e, slope in enumerate(self.slopes_of(key, slopes, b)):
                        rows, out = slice(e * R, (e + 1) * R), slice(e * slope.shape[0], (e + 1) * slope.shape[0])
                        expected_a, expected_b = SCALE * b[out].t() @ slope, SCALE * slope @ a[rows].t()
                        if expected_b.norm() == 0:
                            continue  # an expert without a token
                        self.check_close(da[rows], expected_a, 2e-4, key)
                        self.check_close(db[out], expected_b, 2e-4, key)
                        count += 1
                self.assertGreater(count, 10)

    def slopes_of(self, key: str, slopes: dict, b: torch.Tensor) -> list:
        """The gradients of the matrices, [out, in], that the adapters of `key` add to."""
        prefix = key[: key.index(".lora_A")]
        block, leaf = prefix.rsplit(".", 1)
        if ".experts.mlp" in prefix:
            each = slopes[prefix].chunk(4)
            return [matrix.t() for matrix in each] if leaf == "w2" else list(each)
        if leaf in ("q_proj", "k_proj", "v_proj"):
            whole = slopes[block + ".Wqkv.weight"]
            q = slopes[block + ".out_proj.weight"].shape[1]
            kv = (whole.shape[0] - q) // 2
            first = {"q_proj": 0, "k_proj": q, "v_proj": q + kv}[leaf]
            return [whole[first : first + b.shape[0]]]
        return [slopes[prefix + ".weight"]]

    def test_merged_and_beside_it_are_one_model(self):
        for name, targets in (
            ("olmoe", "all-linear"), ("mixtral", "[q_proj, v_proj, w1, w2, w3]"), ("llama", "[Wqkv, o_proj, gate_proj, up_proj, down_proj]"),
            ("dbrx", "[Wqkv, out_proj, w1, v1, w2]"), ("qwen3_moe", "all-linear"), ("mpt", "all-linear"),
        ):  # fmt: skip
            with self.subTest(name):
                self.write_base(name)
                weights = self.tune(targets)
                gated = any("gate_proj.lora_" in key or ".w1.lora_" in key for key in weights)
                self.assertEqual(gated, name != "mpt")
                base = tensors(self.folder / "base/model.safetensors")
                for key, tensor in base.items():
                    self.assertTrue(torch.equal(tensor, weights[key]), "the model itself is frozen: " + key)
                losses = [line["loss/train/loss"] for line in self.metrics("tuned")]
                self.assertLess(losses[-1], losses[0] - 0.1)
                beside = self.logits("tuned")
                self.assertGreater((beside - self.logits("base")).norm().item(), 0.1)
                self.check_command("convert", "tuned", "merged", "--to", "dropless", "--merge-adapter", "--overwrite")
                self.check_command("convert", "tuned", "hf", "--to", "hf", "--overwrite")
                for folder in ("merged", "hf"):
                    self.check_close(self.logits(folder), beside, 1e-5, folder)
                merged = tensors(self.folder / "merged/model.safetensors")
                self.assertEqual(set(merged), set(base))
                self.assertNotIn("peft_config: {", (self.folder / "merged/config.yaml").read_text())
                # The adapter alone, with the base's own tensors.
                refused = {"dbrx": "the experts of dbrx", "mpt": "one module for queries, keys and values"}
                if name in refused:
                    result = self.run_command("convert", "tuned", "adapter", "--to", "peft", "--overwrite")
                    self.assertEqual(result.returncode, 2, result.stderr)
                    self.assertIn(refused[name], result.stderr)
                    continue
                self.check_command("convert", "tuned", "adapter", "--to", "peft", "--overwrite")
                self.check_peft(name, "adapter", tensors(self.folder / "hf/model.safetensors"))
                # And back, beside the model in either layout.
                for folder in (name, "base"):
                    self.check_command("convert", folder, "back", "--to", "dropless", "--adapter", "adapter", "--overwrite")
                    back = tensors(self.folder / "back/model.safetensors")
                    if "Wqkv" not in targets:
                        self.assertEqual(set(back), set(weights))
                        self.assertTrue(all(torch.equal(back[key], weights[key]) for key in back))
                    self.check_close(self.logits("back"), beside, 1e-6, folder)
                    self.check_close(self.logits(folder, "--adapter", "adapter"), beside, 1e-6, folder)

    def check_peft(self, name: str, adapter: str, merged: dict):
        config = json.loads((self.folder / adapter / "adapter_config.json").read_text())
        self.assertEqual((config["peft_type"], config["r"], config["lora_alpha"]), ("LORA", R, ALPHA))
        self.assertEqual(config["base_model_name_or_path"], "base")
        parts = tensors(self.folder / adapter / "adapter_model.safetensors")
        base = hf_models.weights(hf_models.CONFIGS[name])
        changed = 0
        for key, tensor in base.items():
            module = "base_model.model." + key.removesuffix(".weight")
            expected = tensor.double()
            if module + ".lora_A.weight" in parts:
                a, b = parts.pop(module + ".lora_A.weight"), parts.pop(module + ".lora_B.weight")
                self.assertIn(module.rsplit(".", 1)[1], config["target_modules"])
                expected = expected + SCALE * b.double() @ a.double()
                changed += 1
            self.check_close(merged[key].double(), expected, 1e-6, key)
        self.assertFalse(parts, "adapters of no tensor")
        self.assertGreater(changed, 5)

    def write_adapter(self, folder: str, parts: dict, **config):
        (self.folder / folder).mkdir(exist_ok=True)
        config = dict(dict(peft_type="LORA", r=R, lora_alpha=ALPHA, task_type="CAUSAL_LM", target_modules=["any"], bias="none"), **config)
        (self.folder / folder / "adapter_config.json").write_text(json.dumps(config))
        path = self.folder / folder / "adapter_model.safetensors"
        hf_models.write_safetensors(path, {"base_model.model." + key + ".weight": value for key, value in parts.items()})

    def sides(self, seed: int, out: int, into: int, rank: int) -> tuple:
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(rank, into, generator=draw) / into**0.5, torch.randn(out, rank, generator=draw) / rank**0.5

    def test_an_adapter_of_stacked_experts(self):
        """As PEFT saves those of transformers 5: two parameters of a module, of which one has twice the rank and alpha, and
        of the attention one layer alone."""
        experts, width, inner = 4, 48, 40
        for name, old in (("olmoe", "mlp"), ("mixtral", "block_sparse_moe")):
            names = ("w1", "w3", "w2") if name == "mixtral" else ("gate_proj", "up_proj", "down_proj")
            for turned in (False, True):
                with self.subTest(name, turned=turned):
                    base = hf_models.weights(hf_models.CONFIGS[name])
                    parts = {}
                    module = "model.layers.1.self_attn.v_proj"
                    a, b = self.sides(1, base[module + ".weight"].shape[0], width, R)
                    parts |= {module + ".lora_A": a, module + ".lora_B": b}
                    base[module + ".weight"] += SCALE * b @ a
                    for layer in range(2):
                        stack = f"model.layers.{layer}.mlp.experts"
                        gate_up, down = (stack, stack + ".base_layer") if turned else (stack + ".base_layer", stack)
                        a, b = self.sides(2 + layer, 2 * inner, width, experts * 2 * R)
                        parts |= {gate_up + ".lora_A": a, gate_up + ".lora_B": b}
                        # lora_B's columns go through the experts first (PEFT's get_delta_weight); alpha 18 of rank 6.
                        change = torch.einsum("ofe,efi->eoi", b.view(2 * inner, 2 * R, experts), a.view(experts, 2 * R, width)) * 3
                        a, b = self.sides(4 + layer, width, inner, experts * R)
                        parts |= {down + ".lora_A": a, down + ".lora_B": b}
                        back = torch.einsum("ofe,efi->eoi", b.view(width, R, experts), a.view(experts, R, inner)) * SCALE
                        for e in range(experts):
                            prefix = f"model.layers.{layer}.{old}.experts.{e}."
                            for part, delta in zip(names, (*change[e].chunk(2), back[e])):
                                base[f"{prefix}{part}.weight"] += delta
                    for folder in (name, "sum", "beside", "merged", "tuned"):
                        shutil.rmtree(self.folder / folder, ignore_errors=True)
                    self.write_base(name)
                    hf_models.write_folder(self.folder / "sum", hf_models.CONFIGS[name], base)
                    pattern = {".*\\.gate_up_proj": 3 * 2 * R}
                    self.write_adapter("adapter", parts, rank_pattern={".*\\.gate_up_proj": 2 * R}, alpha_pattern=pattern)
                    expected = self.logits("sum")
                    self.assertGreater((expected - self.logits(name)).norm().item(), 0.1)
                    self.check_close(self.logits(name, "--adapter", "adapter"), expected, 1e-5)
                    # Beside the model it trains on, and merges.
                    self.check_command("convert", "base", "beside", "--to", "dropless", "--adapter", "adapter")
                    self.check_close(self.logits("beside"), expected, 1e-5)
                    self.check_command("convert", "beside", "merged", "--to", "hf")
                    self.check_close(self.logits("merged"), expected, 1e-5)
                    config = (self.folder / "beside/config.yaml").read_text()
                    self.model = config[config.index("model:") :]
                    self.write_config(TUNE)
                    self.train("load_path=beside", "save_folder=tuned")
                    losses = [line["loss/train/loss"] for line in self.metrics("tuned")]
                    self.assertLess(losses[-1], losses[0])
                    result = self.run_command("convert", "tuned", "more", "--to", "dropless", "--adapter", "adapter")
                    self.assertEqual(result.returncode, 2, result.stderr)
                    self.assertIn("has adapters", result.stderr)

    def test_bad_adapters(self):
        self.write_base("llama")
        module = "model.layers.0.self_attn.v_proj"
        a, b = self.sides(1, 24, 48, R)
        good = {module + ".lora_A": a, module + ".lora_B": b}
        self.write_adapter("good", good)
        self.check_command("generate", "base", "--adapter", "good", "--prompt-ids", "[[1]]", "--json", "--max-new-tokens", 1)
        cases = {
            "one side": (dict(list(good.items())[:1]), {}, "do not fit"),
            "another rank": (good, {"r": 4}, "has rank 3"),
            "another width": ({module + ".lora_A": a[:, 1:], module + ".lora_B": b}, {}, "of another shape"),
            "no module": ({"model.layers.7.self_attn.v_proj.lora_A": a, "model.layers.7.self_attn.v_proj.lora_B": b} | good, {}, "layers.7"),
            "another model": ({"h.0.attn.lora_A": a, "h.0.attn.lora_B": b}, {}, "no adapter of this model's modules"),
            "the router": ({"model.layers.0.mlp.gate.lora_A": a, "model.layers.0.mlp.gate.lora_B": b} | good, {}, "mlp.gate"),
            "a head": ({"lm_head": a} | good, {}, "lm_head.weight"),
            "dora": (good, {"use_dora": True}, "use_dora"),
            "kind": (good, {"peft_type": "IA3"}, "IA3"),
            "saved modules": (good, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
            "pissa": (good, {"init_lora_weights": "pissa"}, "pissa"),
            "an unknown switch": (good, {"use_new_thing": 1}, "use_new_thing"),
            "alpha": (good, {"lora_alpha": "much"}, "lora_alpha"),
        }  # fmt: skip
        for what, (parts, config, words) in cases.items():
            with self.subTest(what):
                self.write_adapter("bad", parts, **config)
                for arguments in (("generate", "base", "--prompt-ids", "[[1]]"), ("convert", "llama", "out", "--to", "dropless")):
                    result = self.run_command(*arguments, "--adapter", "bad")
                    self.assertEqual(result.returncode, 2, result.stderr)
                    self.assertIn(words, result.stderr)
                self.assertFalse((self.folder / "out").exists())
        (self.folder / "good/adapter_model.safetensors").write_bytes(b"0" * 40)
        result = self.run_command("generate", "base", "--adapter", "good", "--prompt-ids", "[[1]]")
        self.assertEqual(result.returncode, 1, result.stderr)
        for arguments, words in ((("base", "--adapter", "base"), "adapter_config.json"), (("good",), "--adapter")):
            result = self.run_command("generate", *arguments, "--prompt-ids", "[[1]]")
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(words, result.stderr)

    def test_resumed_to_the_bit(self):
        self.write_base("olmoe")
        self.write_config(TUNE, "all-linear")
        self.train("load_path=base", "save_folder=whole", "model.peft_config.lora_dropout=0.2")
        self.train("load_path=base", "save_folder=parts", "model.peft_config.lora_dropout=0.2", "save_interval=3ba")
        shutil.rmtree(self.folder / "parts/step-6")
        (self.folder / "parts/latest").unlink()
        (self.folder / "parts/latest").symlink_to("step-3")
        self.train("load_path=base", "save_folder=parts", "model.peft_config.lora_dropout=0.2", "autoresume=true")
        for file in ("model.safetensors", "optimizer.safetensors"):
            self.assertEqual(*[(self.folder / run / "latest" / file).read_bytes() for run in ("whole", "parts")])
        moments = tensors(self.folder / "whole/step-6/model.safetensors")
        adapters = sum(".lora_" in name for name in moments)
        from command import read_safetensors

        state = read_safetensors(self.folder / "whole/step-6/optimizer.safetensors")
        self.assertEqual(len([name for name in state if name.startswith("exp_avg/")]), adapters)
        dropped = [line["loss/train/loss"] for line in self.metrics("whole")]
        self.train("load_path=base", "save_folder=plain")
        self.assertNotEqual(dropped, [line["loss/train/loss"] for line in self.metrics("plain")])
        # Other adapters are another model.
        result = self.run_command("train", "train.yaml", "load_path=base", "save_folder=parts", "autoresume=true", "model.peft_config.r=4", "max_duration=8ba")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("peft_config.r is 3", result.stderr)

    def test_bad_configs(self):
        self.write_base("llama")
        self.write_config(TUNE, "all-linear")
        cases = {
            "target_modules=[lm_head]": "unknown module lm_head",
            "target_modules=[]": "no module",
            "target_modules=[Wqkv, q_proj]": "Wqkv is q_proj",
            "r=0": "r",
            "peft_type=IA3": "peft_type",
            "lora_dropout=1.0": "lora_dropout",
            "bias=all": "bias",
            "lora_alfa=3": "lora_alpha",
            "use_dora=true": "use_dora",
        }
        for override, words in cases.items():
            result = self.run_command("train", "train.yaml", "load_path=base", "model.peft_config." + override)
            self.assertEqual(result.returncode, 2, override + result.stderr)
            self.assertIn(words, result.stderr)
        result = self.run_command("train", "train.yaml")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("nothing names one's weights", result.stderr)
        self.assertFalse((self.folder / "run").exists())

    def test_what_peft_is_told_to_adapt(self):
        """The cases in which PEFT 0.21 makes other parameters out of the names of layers than these adapters are of."""
        projections = ("gate_proj", "up_proj", "down_proj")
        pair = ".*\\.gate_up_proj"
        dense = [f"model.layers.1.mlp.{name}.weight" for name in sorted(projections)]
        cases = {
            "qwen2_moe": (dict(lora_dropout=0.1), {}, dict(target_parameters=["mlp.experts.down_proj", "mlp.experts.gate_up_proj"], rank_pattern={pair: 2 * R}, alpha_pattern={pair: 2 * ALPHA})),
            "qwen3_moe": ({}, dict(mlp_only_layers=[1]), dict(target_parameters=dense)),
            "olmoe": (dict(use_rslora="true"), {}, dict(lora_alpha=ALPHA * R**0.5)),
        }  # fmt: skip
        for name, (lora, keys, expected) in cases.items():
            with self.subTest(name):
                self.write_base(name, **keys)
                self.write_config(TUNE, "all-linear")
                overrides = [f"model.peft_config.{key}={value}" for key, value in lora.items()]
                self.train("load_path=base", "save_folder=tuned", "save_overwrite=true", "max_duration=1ba", *overrides)
                self.check_command("convert", "tuned", "adapter", "--to", "peft", "--overwrite")
                config = json.loads((self.folder / "adapter/adapter_config.json").read_text())
                self.assertEqual((config["lora_dropout"], config["use_rslora"]), (0, False))
                self.assertLessEqual(set(projections), set(config["target_modules"]))
                for key, value in expected.items():
                    self.assertEqual(config[key], value)
                # They are read again as what they were.
                self.check_close(self.logits("base", "--adapter", "adapter"), self.logits("tuned"), 1e-6)

    def test_adapters_that_peft_has_no_form_for(self):
        for name, targets, words in (("olmoe", "[q_proj, up_proj]", "up_proj alone"), ("dbrx", "[Wqkv, w1]", "experts of dbrx")):
            with self.subTest(name):
                self.write_base(name)
                self.write_config(TUNE, targets)
                result = self.run_command("train", "train.yaml", "load_path=base", "save_folder=tuned", "save_overwrite=true", "max_duration=1ba")
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn("convert --to peft will not take these adapters", result.stderr)
                self.assertIn(words, result.stderr)
                result = self.run_command("convert", "tuned", "adapter", "--to", "peft")
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertIn(words, result.stderr)
                self.assertFalse((self.folder / "adapter").exists())

    @unittest.skipUnless(importlib.util.find_spec("peft") and importlib.util.find_spec("transformers"), "peft is not installed")
    def test_the_package_reads_it(self):
        import peft
        import transformers

        for name, targets, *more in (("olmoe", "all-linear", "rslora"), ("olmoe", "all-linear"), ("mixtral", "[q_proj, v_proj, w1, w2, w3]"), ("qwen2_moe", "all-linear"), ("qwen3_moe", "all-linear"), ("qwen2_moe", "[q_proj, k_proj, v_proj, down_proj]"), ("dbrx", "[Wqkv, out_proj]"), ("llama", "[Wqkv, o_proj]")):  # fmt: skip
            with self.subTest(name, more=more):
                shutil.rmtree(self.folder / name, ignore_errors=True)
                self.write_base(name, **(dict(mlp_only_layers=[1]) if name == "qwen3_moe" else {}))
                self.write_config(TUNE, targets)
                switches = ["model.peft_config.use_rslora=true", "model.peft_config.lora_dropout=0.1"] if more else []
                self.train("load_path=base", "save_folder=tuned", "save_overwrite=true", *switches)
                self.check_command("convert", "tuned", "adapter", "--to", "peft", "--overwrite")
                base = transformers.AutoModelForCausalLM.from_pretrained(self.folder / name, dtype=torch.float32)
                model = peft.PeftModel.from_pretrained(base, self.folder / "adapter").eval()
                ids = torch.tensor(hf_models.PROMPTS)
                with torch.no_grad():
                    theirs = model(ids).logits[:, -1].double()
                    self.check_close(self.logits("tuned"), theirs, 1e-5)
                    whole = model.merge_and_unload()(ids).logits[:, -1].double()
                self.check_close(self.logits("tuned"), whole, 1e-5)
        # The other way.
        attention = ["q_proj", "v_proj"]
        for name, targets in (("olmoe", ["q_proj", "gate_proj", "up_proj", "down_proj"]), ("mixtral", ["v_proj", "w1", "w2", "w3"]), ("olmoe", attention), ("qwen3_moe", [*attention, "gate_proj", "up_proj"]), ("dbrx", ["Wqkv", "out_proj"]), ("llama", [*attention, "up_proj"])):
            with self.subTest(name, targets=targets):
                shutil.rmtree(self.folder / name, ignore_errors=True)
                self.write_base(name)
                base = transformers.AutoModelForCausalLM.from_pretrained(self.folder / name, dtype=torch.float32)
                torch.manual_seed(1)
                config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM", use_rslora=name == "llama", init_lora_weights=False)
                model = peft.get_peft_model(base, config).eval()
                model.save_pretrained(self.folder / "theirs")
                with torch.no_grad():
                    theirs = model(torch.tensor(hf_models.PROMPTS)).logits[:, -1].double()
                self.check_close(self.logits(name, "--adapter", "theirs"), theirs, 1e-5)
                self.check_command("convert", name, "back", "--to", "dropless", "--adapter", "theirs", "--overwrite")
                self.check_close(self.logits("back"), theirs, 1e-5)


del GradientsTest

if __name__ == "__main__":
    unittest.main()
