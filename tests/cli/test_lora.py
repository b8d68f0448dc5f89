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

    def logits(self, folder: str) -> torch.Tensor:
        answer = json.loads(
            self.check_command(
                "generate", folder, "--prompt-ids", json.dumps(hf_models.PROMPTS), "--json", "--logits", "--max-new-tokens", 0
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
            ("dbrx", "[Wqkv, out_proj, w1, v1, w2]"), ("qwen3_moe", "all-linear"),
        ):  # fmt: skip
            with self.subTest(name):
                self.write_base(name)
                weights = self.tune(targets)
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
                if name == "dbrx":
                    result = self.run_command("convert", "tuned", "adapter", "--to", "peft", "--overwrite")
                    self.assertEqual(result.returncode, 2, result.stderr)
                    self.assertIn("the experts of dbrx", result.stderr)
                    continue
                self.check_command("convert", "tuned", "adapter", "--to", "peft", "--overwrite")
                self.check_peft(name, "adapter", tensors(self.folder / "hf/model.safetensors"))

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
        self.assertIn("load_path names none", result.stderr)
        self.assertFalse((self.folder / "run").exists())

    @unittest.skipUnless(importlib.util.find_spec("peft") and importlib.util.find_spec("transformers"), "peft is not installed")
    def test_the_package_reads_it(self):
        import peft
        import transformers

        for name, targets in (("olmoe", "all-linear"), ("mixtral", "[q_proj, v_proj, w1, w2, w3]"), ("qwen2_moe", "[q_proj, k_proj, v_proj]"), ("dbrx", "[Wqkv, out_proj]"), ("llama", "[Wqkv, o_proj]")):
            with self.subTest(name):
                self.write_base(name)
                self.tune(targets)
                self.check_command("convert", "tuned", "adapter", "--to", "peft", "--overwrite")
                base = transformers.AutoModelForCausalLM.from_pretrained(self.folder / name, dtype=torch.float32)
                model = peft.PeftModel.from_pretrained(base, self.folder / "adapter").eval()
                ids = torch.tensor(hf_models.PROMPTS)
                with torch.no_grad():
                    theirs = model(ids).logits[:, -1].double()
                    self.check_close(self.logits("tuned"), theirs, 1e-5)
                    whole = model.merge_and_unload()(ids).logits[:, -1].double()
                self.check_close(self.logits("tuned"), whole, 1e-5)


del GradientsTest

if __name__ == "__main__":
    unittest.main()
