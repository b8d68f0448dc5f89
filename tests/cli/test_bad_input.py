"""What goes wrong is said in one clear message, with the promised exit code and nothing lost."""

import resource
import subprocess
import unittest

from command import BINARY, CommandTest


class BadInputTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data()
        self.config = self.write_config()

    def refuse(self, code: int, message: str, *arguments, **options):
        result = self.run_command(*arguments, **options)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertIn(message, result.stderr)
        self.assertEqual(result.stderr.count("error:"), 1, result.stderr)
        self.assertEqual(result.stdout, "")
        return result

    def refuse_override(self, override: str, message: str):
        self.refuse(2, message, "train", self.config, override)
        self.assertFalse((self.folder / "run").exists(), "nothing is started")

    def test_config_errors_have_a_place(self):
        lines = (self.folder / self.config).read_text().splitlines()
        number = next(i for i, line in enumerate(lines) if "n_heads" in line)
        for broken, message in [
            ("  n_haeds: 4", "did you mean"),
            ("  n_heads: four", "n_heads"),
            ("  n_heads: 5", "not a multiple of n_heads"),
            ("  n_heads: 4\n  n_heads: 4", "n_heads"),
            ("  n_heads: ${variables.nothing}", "variables.nothing"),
        ]:
            text = "\n".join(lines[:number] + [broken] + lines[number + 1 :])
            self.write_config("broken.yaml", text)
            with self.subTest(broken):
                result = self.refuse(2, message, "train", "broken.yaml")
                self.assertRegex(result.stderr, r"broken\.yaml:\d+:\d+")

    def test_impossible_sizes(self):
        for override, message in [
            ("model.ffn_config.moe_top_k=5", "moe_top_k 5"),
            ("device_train_microbatch_size=9", "device_train_microbatch_size 9"),
            ("model.attn_config.attn_type=grouped_query_attention", "kv_n_heads"),
            ("model.vocab_size=100", "vocab_size 100"),
            ("max_duration=0ba", "max_duration"),
            ("max_duration=5min", "max_duration"),
            ("scheduler.t_warmup=50ba", "t_warmup"),
            ("global_train_batch_size=100000", "a batch of 100000"),
            ("precision=amp_fp8", "amp_fp8"),
            ("optimizer.name=sgd", "decoupled_adamw"),
            ("no_such_key=1", "no_such_key"),
            ("=3", "=3"),
            ("tokenizer.name=nowhere", "nowhere"),
            ("device=cuda:x", "cuda"),
            ("model.ffn_config.moe_world_size=2", "moe_world_size"),
            ("model.ffn_config.mlp_typ=glu", "did you mean"),
        ]:
            with self.subTest(override):
                self.refuse_override(override, message)

    def test_missing_paths(self):
        self.refuse(2, "nothing.yaml", "train", "nothing.yaml")
        self.refuse_override("train_loader.dataset.local=nowhere", "nowhere")
        self.refuse_override("load_path=nowhere", "nowhere")
        self.refuse(2, "nowhere", "generate", "nowhere", "--prompt", "a")
        self.refuse(2, "nowhere", "eval", "nowhere", "--data", "data")
        self.refuse(2, "nowhere", "info", "nowhere")

    def test_damaged_data(self):
        shard = next((self.folder / "data" / "train").glob("*.mds"))
        raw = shard.read_bytes()
        shard.write_bytes(raw[: len(raw) // 2])
        self.refuse(1, shard.name, "train", self.config)
        shard.unlink()
        self.refuse(1, shard.name, "train", self.config)
        index = self.folder / "data" / "train" / "index.json"
        index.write_text("{")
        self.refuse(1, "index.json", "train", self.config)

    def test_damaged_checkpoint(self):
        self.check_command("train", self.config, "max_duration=3ba", "scheduler.t_warmup=0ba")
        model = self.folder / "run" / "step-3" / "model.safetensors"
        good = model.read_bytes()
        for bad in [good[:-1], good + b"\0", b"", good[:100] + b"\xff" + good[101:]]:
            model.write_bytes(bad)
            self.refuse(1, "model.safetensors", "generate", "run", "--prompt", "a")
            self.refuse(1, "model.safetensors", "train", self.config, "load_path=run", "save_folder=next")
        model.unlink()
        self.refuse(1, "model.safetensors", "eval", "run", "--data", "data", "--split", "val")
        model.write_bytes(good)
        self.check_command("generate", "run", "--prompt", "a", "--max-new-tokens", 1)

    def test_checkpoint_of_another_model(self):
        self.check_command("train", self.config, "max_duration=3ba", "scheduler.t_warmup=0ba")
        for change in ["model.n_layers=3", "model.n_layers=1", "model.ffn_config.ffn_hidden_size=40"]:
            self.refuse(2, "another model", "train", self.config, "load_path=run", "save_folder=n" + change, change)

    def test_a_failing_load_removes_nothing(self):
        self.check_command("train", self.config, "max_duration=3ba", "scheduler.t_warmup=0ba")
        before = sorted(str(p) for p in (self.folder / "run").rglob("*"))
        for arguments in [["load_path=run", "model.n_layers=3"], ["load_path=nowhere"]]:
            self.refuse(2, "", "train", self.config, "save_overwrite=true", *arguments)
            self.assertEqual(sorted(str(p) for p in (self.folder / "run").rglob("*")), before)
        # From its own checkpoint: read first, then replaced.
        self.check_command("train", self.config, "save_overwrite=true", "load_path=run/step-3", "max_duration=5ba", "scheduler.t_warmup=0ba")
        self.assertFalse((self.folder / "run" / "step-3").exists())
        self.assertTrue((self.folder / "run" / "step-5").exists())

    def test_non_finite_loss_stops_and_names_the_last_checkpoint(self):
        result = self.refuse(
            1, "last good checkpoint: run/step-", "train", self.config, "optimizer.lr=1e30",
            "algorithms=null", "save_interval=1ba", "scheduler.t_warmup=2ba",
        )  # fmt: skip
        self.assertRegex(result.stderr, r"the (loss|gradient norm) of step \d+ is -?(nan|inf)")

    def test_full_disk_keeps_the_last_checkpoint(self):
        self.check_command("train", self.config, "max_duration=5ba", "scheduler.t_warmup=0ba")
        before = {p.name: p.read_bytes() for p in (self.folder / "run" / "step-5").iterdir()}
        # A file-size limit below the model's stands in for the full disk.
        limit = len(before["model.safetensors"]) // 2
        result = subprocess.run(
            [BINARY, "train", self.config, "autoresume=true", "max_duration=6ba", "scheduler.t_warmup=0ba"],
            cwd=self.folder, capture_output=True, text=True, timeout=120,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("last good checkpoint: run/step-5", result.stderr)
        after = {p.name: p.read_bytes() for p in (self.folder / "run" / "step-5").iterdir()}
        self.assertEqual(before, after)
        self.assertEqual(
            [p.name for p in (self.folder / "run").iterdir() if p.name.endswith(".tmp")], []
        )

    def test_generate_arguments(self):
        self.check_command("train", self.config, "max_duration=2ba", "scheduler.t_warmup=0ba")
        for arguments, message in [
            (["--prompt-ids", "[[1],[2,3]]"], "different lengths"),
            (["--prompt-ids", "[[300]]"], "300"),
            (["--prompt-ids", "[[-1]]"], "token ids"),
            (["--prompt-ids", "nonsense"], "--prompt-ids"),
            (["--prompt-ids", "[]"], "no prompt"),
            (["--prompt", "a", "--temperature", "-1"], "temperature"),
            (["--prompt", "a", "--top-p", "0"], "top-p"),
            (["--prompt", "a", "--max-new-tokens", "-1"], "new tokens"),
            (["--prompt-file", "nowhere.txt"], "nowhere.txt"),
            (["--prompt", "a", "--dtype", "fp7"], "fp7"),
        ]:
            with self.subTest(arguments):
                self.refuse(2, message, "generate", "run", "--json", *arguments)

    def test_arguments_of_the_command_line(self):
        for arguments in [[], ["trian"], ["train"], ["generate"], ["train", self.config, "--bogus"]]:
            with self.subTest(arguments):
                result = self.run_command(*arguments)
                self.assertEqual(result.returncode, 2)
                self.assertEqual(result.stdout, "")
                self.assertNotEqual(result.stderr, "")
        self.assertIn("Example", self.check_command("train", "--help"))


if __name__ == "__main__":
    unittest.main()
