"""Training that starts from a Hugging Face folder, and the way back; with `transformers` installed, what comes
back is compared with it."""

import importlib.util
import json
import pathlib
import shutil
import unittest

import hf_models
import torch
from command import CONFIG, CommandTest, read_safetensors

MODEL = """model:
  name: mpt_causal_lm
  d_model: 48
  n_heads: 4
  n_layers: 2
  max_seq_len: 64
  vocab_size: 257
  no_bias: true
  norm_type: rmsnorm
  norm_eps: 1.0e-3
  tie_word_embeddings: false
  attn_config:
    {attn_type: grouped_query_attention, kv_n_heads: 2, rope: true, rope_theta: 10000, qk_ln: true}
  ffn_config:
    {ffn_type: mb_dmoe, mlp_type: glu, ffn_act_fn: {name: silu}, ffn_hidden_size: 40, moe_num_experts: 4,
     moe_top_k: 2, moe_world_size: 1, moe_loss_weight: 0.02}
"""


class FinetuneTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data()
        start, end = CONFIG.index("model:"), CONFIG.index("tokenizer:")
        self.write_config(content=CONFIG[:start] + MODEL + CONFIG[end:])
        config = dict(hf_models.CONFIGS["olmoe"], vocab_size=257, eos_token_id=256, bos_token_id=255)
        self.weights = hf_models.weights(config, torch.bfloat16)
        hf_models.write_folder(self.folder / "released", config, self.weights)
        (self.folder / "released/generation_config.json").write_text('{"eos_token_id": [256, 10]}')

    def train(self, *overrides):
        return self.run_command("train", "config.yaml", "max_duration=6ba", *overrides)

    def test_released_weights_are_where_training_starts(self):
        result = self.train("load_path=released", "eval_first=true")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.check_command("convert", "released", "converted", "--to", "dropless")
        for load in ("load_path=converted", "load_path=converted load_weights_only=true"):
            result = self.train(*load.split(), "eval_first=true", "save_folder=again", "save_overwrite=true")
            self.assertEqual(result.returncode, 0, result.stderr)
            timeless = [
                [{k: v for k, v in line.items() if k.startswith(("step", "loss", "metrics", "l2"))} for line in self.metrics(run)]
                for run in ("run", "again")
            ]
            self.assertEqual(*timeless)
        first = self.metrics()[0]
        self.assertEqual(first["step"], 0)
        answer = json.loads(self.check_command("eval", "released", "--data", "data/val", "--json"))
        self.assertAlmostEqual(first["metrics/eval/LanguageCrossEntropy"], answer["cross_entropy"], places=5)

        # Trained: other weights under the same names, and what came with the model goes back with it.
        self.check_command("convert", "run", "tuned", "--to", "hf", "--dtype", "bf16")
        tuned = read_safetensors(self.folder / "tuned/model.safetensors")
        self.assertEqual({name: shape for name, (_, shape, _) in tuned.items()},
                         {name: list(tensor.shape) for name, tensor in self.weights.items()})
        self.assertNotEqual(tuned, read_safetensors(self.folder / "released/model.safetensors"))
        config = json.loads((self.folder / "tuned/config.json").read_text())
        self.assertEqual((config["eos_token_id"], config["bos_token_id"]), (256, 255))
        self.assertEqual((self.folder / "tuned/generation_config.json").read_text(), '{"eos_token_id": [256, 10]}')

    def write_hf_block(self, **keys):
        """The config with the model block that names the folder."""
        start, end = CONFIG.index("model:"), CONFIG.index("tokenizer:")
        block = {"name": "hf_causal_lm", "pretrained_model_name_or_path": "released", **keys}
        self.write_config(content=CONFIG[:start] + f"model: {json.dumps(block)}\n" + CONFIG[end:])

    def timeless(self, run: str) -> list:
        return [{k: v for k, v in line.items() if k.startswith(("step", "loss", "metrics", "l2"))} for line in self.metrics(run)]

    def test_a_model_block_names_the_folder(self):
        result = self.train("load_path=released", "model.ffn_config.moe_loss_weight=0.02", "save_folder=written_out")
        self.assertEqual(result.returncode, 0, result.stderr)
        # The folder's config.json says what MODEL says; its loss weight is transformers' default, times top_k.
        self.write_hf_block(init_device="mixed", use_flash_attention_2=True, config_overrides={"router_aux_loss_coef": 0.01})
        result = self.train("save_folder=named")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("model.init_device has no effect", result.stderr)
        self.assertEqual(self.timeless("named"), self.timeless("written_out"))
        # Its checkpoints stand without the folder.
        (self.folder / "released").rename(self.folder / "moved")
        greedy = ("--prompt-ids", "[[5, 80]]", "--json", "--temperature", 0, "--max-new-tokens", 8)
        self.assertEqual(self.check_command("generate", "named", *greedy), self.check_command("generate", "written_out", *greedy))
        self.assertNotIn("hf_causal_lm", (self.folder / "named/latest/config.yaml").read_text())
        self.write_hf_block(pretrained_model_name_or_path="moved", config_overrides={"router_aux_loss_coef": 0.01})
        result = self.train("save_folder=named", "autoresume=true", "max_duration=8ba")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("resumed from", result.stderr)
        self.assertEqual(self.timeless("named")[-1]["step"], 8)

    def test_a_model_block_takes_the_architecture_alone(self):
        self.write_hf_block(pretrained=False, config_overrides={"initializer_range": 0.05, "num_hidden_layers": 3})
        result = self.train("save_folder=fresh", "optimizer=null", "optimizer={name: no_op}", "max_duration=1ba", "scheduler.t_warmup=0ba")
        self.assertEqual(result.returncode, 0, result.stderr)
        weights = read_safetensors(self.folder / "fresh/latest/model.safetensors")
        self.assertIn("transformer.blocks.2.attn.Wqkv.weight", weights)
        for name, (_, shape, data) in weights.items():
            if len(shape) == 2:
                std = torch.frombuffer(bytearray(data), dtype=torch.float32).std().item()
                self.assertLess(abs(std / 0.05 - 1), 0.1, name)

    def test_adapters_beside_the_folder_of_a_model_block(self):
        adapter = {"r": 3, "lora_alpha": 6, "target_modules": ["Wqkv", "gate_proj", "up_proj", "down_proj"]}
        self.write_config(content=(self.folder / "config.yaml").read_text().replace("model:\n", f"model:\n  peft_config: {json.dumps(adapter)}\n", 1))
        result = self.train("load_path=released", "save_folder=written_out")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.write_hf_block(peft_config=adapter, should_save_peft_only=True, config_overrides={"router_aux_loss_coef": 0.01})
        result = self.train("save_folder=named", "callbacks={hf_checkpointer: {save_folder: exported, save_interval: 6ba}}")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("model.should_save_peft_only has no effect", result.stderr)
        self.assertEqual(self.timeless("named"), self.timeless("written_out"))
        for run in ("named", "written_out"):
            self.check_command("convert", run, run + "-adapter", "--to", "peft")
        configs = [json.loads((self.folder / f"{run}-adapter/adapter_config.json").read_text()) for run in ("named", "written_out")]
        self.assertEqual(*configs)
        self.assertEqual(configs[0]["base_model_name_or_path"], "released")
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            self.assertEqual(*[(self.folder / folder / file).read_bytes() for folder in ("exported/ba6", "named-adapter")])
        result = self.train("save_folder=named", "autoresume=true", "max_duration=8ba")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("resumed from", result.stderr)

    def test_what_a_model_block_cannot_have(self):
        for keys, words in (
            ({"peft_config": {"r": 8}}, "model.peft_config.target_modules: required"),
            ({"peft_config": {"r": 8, "target_modules": ["Wqkv"], "lora_alfa": 1}}, "lora_alpha"),
            ({"peft_config": {"target_modules": ["Wqkv"]}, "pretrained": False}, "model.peft_config: adapters are trained beside a model"),
            ({"pretrained_lora_id_or_path": "adapter"}, "model.pretrained_lora_id_or_path: not supported"),
            ({"load_in_8bit": True}, "model.load_in_8bit: not supported"),
            ({"pretrained_model_name_or_path": "data"}, "data is no Hugging Face folder"),
            ({"pretrained_model_name_or_path": "gpt2"}, "gpt2 is no folder here, and nothing is fetched"),
            ({"config_overrides": {"n_positions": 5}}, "released/config.json with config_overrides: unknown key n_positions"),
            ({"config_overrides": {"model_type": "gpt2"}}, "model_type gpt2 is not supported"),
            ({"d_model": 48}, "model.d_model: unknown key"),
        ):
            with self.subTest(words):
                self.write_hf_block(**keys)
                result = self.train("save_folder=refused")
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertRegex(result.stderr, r"error: config.yaml:\d+:\d+: model")
                self.assertIn(words, result.stderr)
                self.assertFalse((self.folder / "refused").exists())

    def test_weights_that_are_no_numbers(self):
        name = "model.layers.1.mlp.experts.2.down_proj.weight"
        self.weights[name][3, 5] = float("nan")
        config = dict(hf_models.CONFIGS["olmoe"], vocab_size=257)
        hf_models.write_folder(self.folder / "ruined", config, self.weights)
        words = f"1 of the 23 tensors of ruined hold NaN or infinite values, {name} first"
        result = self.train("load_path=ruined")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("warning: " + words, result.stderr)
        result = self.run_command("generate", "ruined", "--prompt-ids", "[[1, 2, 3, 4, 5, 6, 7, 8]]", "--json")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn(words, result.stderr)

    def test_weights_of_other_shapes(self):
        narrow = ("load_path=released", "model.ffn_config.ffn_hidden_size=32", "save_folder=refused")
        result = self.train(*narrow)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertRegex(result.stderr, r'error: override "load_path=released": load_path: released: \S+ is \[.*\], the model needs \[')
        self.assertIn("load_ignore_keys, with load_weights_only=true, leaves a tensor of another shape out", result.stderr)
        result = self.train(*narrow, "load_weights_only=true", "load_ignore_keys=['*.experts.mlp.*']", "save_folder=narrow")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("load_ignore_keys leaves out 6 of", result.stderr)

    def test_companions_outlive_a_resume(self):
        self.assertEqual(self.train("load_path=released", "max_duration=6ba").returncode, 0)
        result = self.train("load_path=released", "autoresume=true", "max_duration=8ba")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.check_command("convert", "run", "tuned", "--to", "hf")
        self.assertEqual(json.loads((self.folder / "tuned/config.json").read_text())["eos_token_id"], 256)

    def test_the_tokenizer_of_the_training_goes_along(self):
        tokenizers = pathlib.Path(__file__).parents[1] / "data/tokenizer"
        shutil.copy(tokenizers / "gpt2.json", self.folder / "released/tokenizer.json")
        # Bytes are not what the model's ids were.
        result = self.train("load_path=released", "save_folder=bytes")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"config.yaml:\d+.*tokenizer.name: released has another tokenizer: id 0 is .* in released/tokenizer.json")
        self.check_command("convert", "bytes", "tuned", "--to", "hf")
        self.assertEqual(sorted(path.name for path in (self.folder / "tuned").iterdir()), ["config.json", "model.safetensors"])
        config = json.loads((self.folder / "tuned/config.json").read_text())
        self.assertEqual((config["eos_token_id"], config["bos_token_id"]), (256, None))
        # The same file in another place is the same tokenizer; one that a new model is trained with goes along too.
        self.folder.joinpath("mine").mkdir()
        shutil.copy(tokenizers / "gpt2.json", self.folder / "mine/tokenizer.json")
        ours = json.loads((tokenizers / "gpt2.json").read_text())
        vocab, added = len(ours["model"]["vocab"]) + 1, {token["content"]: token["id"] for token in ours["added_tokens"]}
        config = dict(hf_models.CONFIGS["olmoe"], vocab_size=vocab, eos_token_id=0)
        hf_models.write_folder(self.folder / "theirs", config, hf_models.weights(config))
        shutil.copy(tokenizers / "gpt2.json", self.folder / "theirs/tokenizer.json")
        for load in ((), ("load_path=theirs",)):
            result = self.train("tokenizer.name=mine/tokenizer.json", f"model.vocab_size={vocab}", *load, "save_folder=own", "save_overwrite=true")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertNotIn("another tokenizer", result.stderr)
            (self.folder / "mine").rename(self.folder / "away")
            self.check_command("generate", "own", "--prompt", "ab", "--max-new-tokens", 2)
            (self.folder / "away").rename(self.folder / "mine")
            self.check_command("convert", "own", "tuned", "--to", "hf", "--overwrite")
            self.assertEqual((self.folder / "tuned/tokenizer.json").read_text(), (tokenizers / "gpt2.json").read_text())
            # Where a text ends: the tokenizer's id for a new model, and the model's own beside its own tokenizer.
            end = json.loads((self.folder / "tuned/config.json").read_text())["eos_token_id"]
            self.assertEqual(end, 0 if load else added["<|endoftext|>"])

    def test_generation_stops_at_the_folders_eos(self):
        arguments = ("--prompt-ids", "[[5, 80]]", "--json", "--temperature", 0, "--max-new-tokens", 30)

        def generate(config_eos, generation_eos):
            path = self.folder / "released/config.json"
            path.write_text(json.dumps(dict(json.loads(path.read_text()), eos_token_id=config_eos)))
            (self.folder / "released/generation_config.json").write_text(json.dumps(dict(eos_token_id=generation_eos)))
            answer = json.loads(self.check_command("generate", "released", *arguments))
            return answer["sequences"][0], answer["finish"][0]

        free, _ = generate(None, None)  # at the tokenizer's, if at any
        a, b = free[len(free) // 2], free[len(free) // 3]
        for config_eos, generation_eos, stops in ((a, None, [a]), (a, [a, b], [a, b]), (b, a, [a])):
            length = min(free.index(stop) for stop in stops) + 1
            self.assertEqual(generate(config_eos, generation_eos), (free[:length], "eos"))

    def test_other_models_are_refused_or_warned_of(self):
        result = self.train("load_path=released", "model.ffn_config.ffn_hidden_size=32")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("another model", result.stderr)
        self.assertFalse((self.folder / "run").exists(), "what is refused leaves nothing")
        result = self.train("load_path=released", "model.ffn_config.ffn_hidden_size=32", "save_folder=new/runs/a")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertFalse((self.folder / "new").exists(), "nor folders above it")
        result = self.train("load_path=released", "model.norm_eps=1e-5", "save_folder=warned")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("model.norm_eps is 0.001 in released and 1e-05", result.stderr)
        result = self.train("load_path=released", "model.norm_eps=1e-5", "model.attn_config.rope_theta=500", "save_folder=warned2")
        self.assertRegex(result.stderr, "another model: .*model.norm_eps is .*; model.attn_config.rope_theta is|another model: .*rope_theta is .*; model.norm_eps is")
        (self.folder / "released/model.safetensors").unlink()
        result = self.train("load_path=released", "save_folder=other")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertFalse((self.folder / "other").exists())

    @unittest.skipUnless(importlib.util.find_spec("transformers"), "transformers is not installed")
    def test_transformers_reads_what_comes_out(self):
        from transformers import AutoModelForCausalLM

        self.assertEqual(self.train("load_path=released").returncode, 0)
        for dtype in ("fp32", "bf16"):
            self.check_command("convert", "run", dtype, "--to", "hf", "--dtype", dtype)
            prompts = [[5, 17, 80, 3, 44], [90, 1, 1, 25, 63]]
            answer = json.loads(
                self.check_command(
                    "generate", dtype, "--prompt-ids", json.dumps(prompts), "--temperature", 0, "--json",
                    "--logits", "--max-new-tokens", 24,
                )
            )
            model = AutoModelForCausalLM.from_pretrained(self.folder / dtype, dtype=torch.float32).eval()
            ids = torch.tensor(prompts)
            with torch.no_grad():
                logits = model(ids).logits[:, -1]
                theirs = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
                )[:, ids.shape[1] :]
            ours = torch.tensor(answer["logits_last"])
            self.assertLess(((ours - logits).norm() / logits.norm()).item(), 1e-5)
            for sequence, other in zip(answer["sequences"], theirs.tolist(), strict=True):
                self.assertEqual(sequence, other[: len(sequence)])


@unittest.skipUnless(importlib.util.find_spec("transformers"), "transformers is not installed")
class TransformersTest(CommandTest):
    """Models that transformers makes and saves itself, each family both ways."""

    def test_both_ways(self):
        import transformers

        for name, config in hf_models.CONFIGS.items():
            with self.subTest(name):
                made = transformers.AutoConfig.for_model(**dict(config))
                torch.manual_seed(3)
                model = transformers.AutoModelForCausalLM.from_config(made).float().eval()
                for parameter in model.parameters():
                    if parameter.dim() > 1:  # its own start is so near 0 that nothing would matter
                        parameter.data.mul_(0.3 / parameter.data.std())
                model.save_pretrained(self.folder / name)
                self.check_command("convert", name, f"{name}-ours", "--to", "dropless")
                self.check_command("convert", f"{name}-ours", f"{name}-back", "--to", "hf")
                back, report = transformers.AutoModelForCausalLM.from_pretrained(
                    self.folder / f"{name}-back", output_loading_info=True
                )
                self.assertFalse(report["missing_keys"] or report["unexpected_keys"], report)
                theirs = dict(model.named_parameters())
                for key, value in back.named_parameters():
                    self.assertTrue(torch.equal(value, theirs[key]), key)
                ids = torch.tensor(hf_models.PROMPTS)
                with torch.no_grad():
                    logits = model(ids).logits
                for folder in (name, f"{name}-ours"):
                    answer = json.loads(
                        self.check_command(
                            "generate", folder, "--prompt-ids", json.dumps(hf_models.PROMPTS), "--json",
                            "--logits", "--max-new-tokens", 0,
                        )
                    )
                    ours = torch.tensor(answer["logits_last"])
                    self.assertLess(((ours - logits[:, -1]).norm() / logits[:, -1].norm()).item(), 1e-5)


@unittest.skipUnless(importlib.util.find_spec("safetensors"), "safetensors is not installed")
class SafetensorsTest(CommandTest):
    def test_the_packages_files_are_ours(self):
        from safetensors.torch import load_file, save_file

        config = hf_models.CONFIGS["olmoe"]
        tensors = hf_models.weights(config, torch.bfloat16)
        hf_models.write_folder(self.folder / "model", config, tensors)
        save_file(tensors, self.folder / "model/model.safetensors", metadata={"format": "pt"})
        self.check_command("convert", "model", "ours", "--to", "dropless")
        self.check_command("convert", "ours", "back", "--to", "hf")
        # The same bytes, header and all.
        self.assertEqual(
            (self.folder / "back/model.safetensors").read_bytes(),
            (self.folder / "model/model.safetensors").read_bytes(),
        )
        read = load_file(self.folder / "ours/model.safetensors")
        for name, (_, shape, data) in read_safetensors(self.folder / "ours/model.safetensors").items():
            self.assertEqual(list(read[name].shape), shape)
            self.assertEqual(read[name].view(torch.uint8).numpy().tobytes(), data)


if __name__ == "__main__":
    unittest.main()
