"""What goes wrong is said in one clear message, with the promised exit code and nothing lost."""

import os
import resource
import shutil
import signal
import subprocess
import unittest

from command import BINARY, CONFIG, CommandTest


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
        result = self.refuse(2, message, "train", self.config, override)
        self.assertRegex(result.stderr, r'error: (config\.yaml:\d+:\d+|override ".*"): ')
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
            ("model.attn_config.attn_type=grouped_query_attention", "kv_n_heads"),
            ("model.vocab_size=100", "vocab_size 100"),
            ("max_duration=0ba", "max_duration"),
            ("max_duration=5min", "max_duration"),
            ("max_duration=9e15ep", "too many to count"),
            ("scheduler.t_max=39ba", "t_max 39ba"),
            ("global_train_batch_size=100000", "a batch of 100000"),
            ("precision=amp_fp8", "amp_fp8"),
            ("optimizer.name=adam", "decoupled_adamw"),
            ("no_such_key=1", "no_such_key"),
            ("=3", "=3"),
            ("device=cuda:x", "cuda"),
            ("device=cuda:99", "device cuda"),
            ("precision=amp_fp16", "needs a GPU"),
            ("train_loader.dataset.split=nowhere", "nowhere"),
            ("eval_loader.dataset.local=nowhere", "nowhere"),
            ("model.n_heads=null", "must not be null"),
            ("optimizer.lr=1e-320", "1.2e-38"),
            ("run_name=../x", "is a path"),
            ("save_folder=s3://bucket/run", "folders of this machine"),
            ("save_folder=~/run", "~ is the shell's"),
            ("save_folder=/proc/run", "cannot create folder /proc/run"),
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
        self.assertFalse((self.folder / "run").exists(), "nothing is started")
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
        # Nothing to train: nothing is removed.
        self.check_command("train", self.config, "save_overwrite=true", "load_path=run", "max_duration=3ba", "scheduler.t_warmup=0ba")
        self.assertEqual(sorted(str(p) for p in (self.folder / "run").rglob("*")), before)
        # What it goes on from stands until the first save.
        self.refuse(
            1, "what this run started from still stands: run/step-3", "train", self.config, "save_overwrite=true",
            "load_path=run/step-3", "max_duration=5ba", "scheduler.t_warmup=0ba", "optimizer.lr=1e30", "algorithms=null",
            "save_interval=100ba",
        )  # fmt: skip
        self.check_command("generate", "run", "--prompt", "a", "--max-new-tokens", 1)
        # From its own checkpoint: read first, then replaced.
        self.check_command("train", self.config, "save_overwrite=true", "load_path=run/step-3", "max_duration=5ba", "scheduler.t_warmup=0ba")
        self.assertFalse((self.folder / "run" / "step-3").exists())
        self.assertTrue((self.folder / "run" / "step-5").exists())

    def test_non_finite_loss_stops_and_names_the_last_checkpoint(self):
        result = self.refuse(
            1, "last good checkpoint: run/step-", "train", self.config, "optimizer.lr=1e30",
            "algorithms=null", "save_interval=1ba", "scheduler.t_warmup=2ba",
        )  # fmt: skip
        self.assertRegex(result.stderr, r"the (loss|gradient norm)( of step \d+)? is -?(nan|inf)")

    def test_ruined_weights_are_not_saved(self):
        """Steps whose own loss is finite and whose update leaves nothing that can be trained."""
        for name, overrides in {
            "large": ["optimizer.lr=1e20", "optimizer.eps=0"],
            "infinite": ["optimizer.lr=3e38", "algorithms=null"],
        }.items():
            with self.subTest(name):
                result = self.refuse(
                    1, f"last good checkpoint: {name}/step-1 ", "train", self.config, *overrides,
                    f"save_folder={name}", "save_interval=1ba", "save_num_checkpoints_to_keep=1",
                )  # fmt: skip
                self.assertIn("after step 2", result.stderr)
                # Step 1 has a learning rate of 0: its weights are as good as new.
                self.assertTrue((self.folder / name / "step-1" / "manifest.json").exists())
                self.assertFalse((self.folder / name / "step-2").exists())
                self.check_command("eval", name, "--data", "data", "--split", "val", "--json")

    def test_non_finite_evaluation_stops(self):
        """The update of the last step before an evaluation is seen there first."""
        self.refuse(
            1, "the evaluation loss is", "train", self.config, "optimizer.lr=3e38",
            "algorithms=null", "eval_interval=2ba", "save_interval=1000ba",
        )  # fmt: skip
        self.assertFalse((self.folder / "run" / "latest").exists())

    def test_models_beyond_memory(self):
        for key, value in [
            ("model.d_model", "1000000000"),
            ("model.vocab_size", "100000000000"),
            ("model.head_dim", "9000000000000000000"),
            ("model.ffn_config.ffn_hidden_size", "9000000000000000000"),
            ("model.ffn_config.moe_num_experts", "1000000000"),
            ("model.n_layers", "1000000000"),
            ("model.max_seq_len", "9000000000000000000"),
            ("max_seq_len", "9000000000000000000"),
        ]:
            with self.subTest(key):
                self.refuse_override(f"{key}={value}", key.split(".")[-1])
        result = self.refuse(2, "46.6 TiB", "train", self.config, "model.vocab_size=100000000000")
        self.assertRegex(result.stderr, r"cpu has \d+\.\d [GM]iB")
        self.write_config("huge.yaml", CONFIG.replace("d_model: 32", "d_model: 1000000000"))
        self.refuse(2, "d_model 1000000000", "info", "huge.yaml")

    def test_info_reads_the_whole_config(self):
        self.write_config("bad.yaml", CONFIG.replace("lr: 3.0e-3", "lr: -1"))
        self.refuse(2, "optimizer.lr", "info", "bad.yaml")
        self.check_command("info", self.config)

    def test_save_folder_that_is_no_folder(self):
        (self.folder / "file").write_text("kept")
        (self.folder / "dangling").symlink_to("nowhere")
        for name in ["file", "file/run", "dangling", "dangling/run"]:
            with self.subTest(name):
                where = name.split("/")[0]
                self.refuse(2, where + " is ", "train", self.config, f"save_folder={name}")
        self.assertEqual((self.folder / "file").read_text(), "kept")
        self.assertFalse((self.folder / "nowhere").exists())

    def test_what_still_stands_after_a_failure(self):
        self.check_command("train", self.config, "max_duration=3ba", "scheduler.t_warmup=0ba")
        result = self.refuse(
            1, "no checkpoint was saved", "train", self.config, "load_path=run", "save_folder=next",
            "optimizer.lr=3e38", "algorithms=null", "scheduler.t_warmup=0ba",
        )  # fmt: skip
        self.assertIn("still stands: run/step-3", result.stderr)

    def test_batch_without_a_scored_token(self):
        lines = '{"tokens":{"t":"ndarray","dtype":"int32","shape":[1],"hex":"07000000"}}\n' * 16
        self.check_command(
            "data", "write", "single", "--columns", '{"tokens":"ndarray:int32"}', input=lines
        )
        self.refuse(
            1, "batch 1 (epoch 0", "train", self.config, "train_loader.dataset.local=single",
            "train_loader.dataset.split=null", "scheduler.t_warmup=0ba",
        )  # fmt: skip

    def test_a_tokenizer_that_is_not_here(self):
        """Token ids do without; text does not."""
        hub = "tokenizer={name: EleutherAI/gpt-neox-20b, kwargs: {model_max_length: 32}}"
        short = ["max_duration=2ba", "scheduler.t_warmup=0ba", hub]
        result = self.run_command("train", self.config, *short)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("'EleutherAI/gpt-neox-20b'", result.stderr)
        self.check_command("eval", "run", "--data", "data", "--split", "val")
        self.refuse(2, 'did you mean "bytes"', "train", self.config, *short[:2], "tokenizer={name: byte}", "save_folder=other")
        self.refuse(2, "the folder of a model", "eval", "nothing")
        text = '{"text":{"t":"str","v":"some text"}}\n' * 16
        self.check_command("data", "write", "texts", "--columns", '{"text":"str"}', input=text)
        self.refuse(
            2, "holds text", "train", self.config, "train_loader.dataset.local=texts",
            "train_loader.dataset.split=null", "save_folder=other", *short,
        )  # fmt: skip

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
        self.assertRegex(
            result.stderr,
            rf"cannot write run/step-6\.tmp/model\.safetensors: .*; needed {len(before['model.safetensors'])} bytes, a file may have {limit}\n",
        )
        after = {p.name: p.read_bytes() for p in (self.folder / "run" / "step-5").iterdir()}
        self.assertEqual(before, after)
        self.assertEqual(
            [p.name for p in (self.folder / "run").iterdir() if p.name.endswith(".tmp")], []
        )

    def test_a_save_that_fails_after_its_checkpoint_is_complete(self):
        """The message names that one, and the next start does what was left to do."""
        short = ("scheduler.t_warmup=0ba", "save_interval=2ba", "save_num_checkpoints_to_keep=1")
        for name, point in [("full", "rename latest.tmp:ENOSPC"), ("killed", "rename latest.tmp")]:
            with self.subTest(name):
                run = self.folder / name
                self.check_command("train", self.config, f"save_folder={name}", "max_duration=2ba", *short)
                again = ("train", self.config, f"save_folder={name}", "max_duration=4ba", *short, "autoresume=true")
                result = self.run_command(*again, env={**os.environ, "DROPLESS_FAIL_AT": point})
                if name == "full":
                    self.assertEqual(result.returncode, 1, result.stderr)
                    self.assertIn(f"last good checkpoint: {name}/step-4 ", result.stderr)
                else:
                    self.assertEqual(result.returncode, -signal.SIGKILL)
                self.assertEqual(os.readlink(run / "latest"), "step-2")
                result = self.run_command(*again)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn("nothing to train", result.stderr)
                self.assertEqual(os.readlink(run / "latest"), "step-4")
                self.assertEqual([path.name for path in run.glob("step-*")], ["step-4"])

    def test_damage_found_by_an_evaluation_loses_no_step(self):
        shutil.copytree(self.folder / "data", self.folder / "damaged")
        with open(self.folder / "damaged" / "val" / "shard.00000.mds", "r+b") as shard:
            shard.seek(4)
            shard.write(b"\xff" * 36)  # the offsets
        self.refuse(
            1, "last good checkpoint: evaluated/step-2 ", "train", self.config, "max_duration=4ba",
            "scheduler.t_warmup=0ba", "eval_interval=2ba", "save_interval=1000ba",
            "eval_loader.dataset.local=damaged", "save_folder=evaluated",
        )  # fmt: skip

    def test_latest_that_a_copy_made_a_folder(self):
        short = ("max_duration=2ba", "scheduler.t_warmup=0ba", "save_folder=copied")
        self.check_command("train", self.config, *short)
        (self.folder / "copied" / "latest").unlink()
        shutil.copytree(self.folder / "copied" / "step-2", self.folder / "copied" / "latest")
        before = (self.folder / "copied" / "metrics.jsonl").read_bytes()
        again = ("train", self.config, *short, "max_duration=3ba", "autoresume=true")
        self.refuse(2, "copied/latest is not a link to a checkpoint", *again)
        self.assertEqual(before, (self.folder / "copied" / "metrics.jsonl").read_bytes())
        self.check_command("generate", "copied", "--prompt", "a", "--max-new-tokens", "2")
        shutil.rmtree(self.folder / "copied" / "latest")
        self.check_command(*again)

    def test_full_disk_of_the_logs(self):
        """A limit that the logs reach long before anything is saved."""
        limit = 8192
        for log, overrides in [("metrics.jsonl", []), ("events.out.tfevents", ["loggers={tensorboard: {}}"])]:
            with self.subTest(log):
                result = self.run_command(
                    "train", self.config, f"save_folder={log}", "save_interval=1000ba", *overrides,
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
                )  # fmt: skip
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertRegex(result.stderr, r"error: cannot write \S*: ")
                self.assertIn("no checkpoint was saved", result.stderr)

    def test_generate_arguments(self):
        self.check_command("train", self.config, "max_duration=2ba", "scheduler.t_warmup=0ba")
        for arguments, message in [
            (["--prompt-ids", "[[300]]"], "300"),
            (["--prompt-ids", "[[-1]]"], "token ids"),
            (["--prompt-ids", "nonsense"], "--prompt-ids"),
            (["--prompt-ids", "[]"], "no prompt"),
            (["--prompt", "a", "--temperature", "-1"], "temperature"),
            (["--prompt", "a", "--top-p", "0"], "top-p"),
            (["--prompt", "a", "--max-new-tokens", "-1"], "max-new-tokens"),
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
