"""What the verbs have in common: arguments, standard output, signals, and what eval and info say."""

import json
import os
import pathlib
import signal
import subprocess
import time
import unittest

from command import BINARY, CONFIG, CommandTest

INT_COLUMN = ["--columns", '{"a":"int"}']


class VerbsTest(CommandTest):
    def refuse(self, code, message, *arguments, **options):
        result = self.run_command(*arguments, **options)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertIn(message, result.stderr)
        return result

    def test_a_launcher_of_several_processes_is_refused(self):
        os.environ["WORLD_SIZE"] = "2"
        self.addCleanup(os.environ.pop, "WORLD_SIZE")
        self.refuse(2, "WORLD_SIZE is 2", "train", "config.yaml")

    def start(self, *arguments) -> subprocess.Popen:
        process = subprocess.Popen(
            [BINARY, *map(str, arguments)], cwd=self.folder, stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def train(self, *overrides):
        self.write_data(4000, 1000)
        self.write_config()
        self.check_command("train", "config.yaml", "max_duration=2ba", "scheduler.t_warmup=0ba", *overrides)

    def test_a_full_standard_output_is_an_error(self):
        self.train()
        for arguments in [
            ["--help"],
            ["version"],
            ["version", "--json"],
            ["info", "run"],
            ["eval", "run", "--data", "val.txt"],
            ["generate", "run", "--prompt", "a", "--max-new-tokens", 3],
            ["generate", "run", "--prompt", "a", "--max-new-tokens", 3, "--json"],
            ["data", "info", "data/val"],
            ["data", "cat", "data/val"],
        ]:
            with self.subTest(arguments), open("/dev/full", "w") as full:
                result = subprocess.run(
                    [BINARY, *map(str, arguments)], cwd=self.folder, stdout=full,
                    stderr=subprocess.PIPE, text=True, timeout=300,
                )  # fmt: skip
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertIn("cannot write to standard output", result.stderr)

    def test_unknown_verbs_are_named(self):
        self.refuse(2, "no verb 'bogus'", "bogus")
        self.refuse(2, "did you mean 'dropless train'?", "trian", "config.yaml")
        self.refuse(2, "did you mean 'dropless data verify'?", "data", "verfy", "set")
        self.refuse(2, "its verbs: text json tokenizer cat info merge order write verify", "data", "bogus")

    def test_numbers_are_refused_with_their_range(self):
        self.write_data(4000, 1000)
        largest = "from 0 to 9223372036854775807"
        for message, arguments in [
            ("--count: '-1' is not a whole number " + largest, ["data", "cat", "data/val", "--count", "-1"]),
            ("--from: 'x' is not a whole number " + largest, ["data", "cat", "data/val", "--from", "x"]),
            ("'0' is not a whole number from 1 to", ["data", "text", "val.txt", "--out", "x", "--concat-tokens", 0]),
            ("--max-new-tokens: '99999999999999999999' is not", ["generate", "run", "--max-new-tokens", "9" * 20]),
            ("from 0 to 2147483647", ["generate", "run", "--max-new-tokens", 2**31]),
            ("--seed: '-1' is not", ["generate", "run", "--seed", "-1"]),
            ("from 0 to 18446744073709551615", ["generate", "run", "--seed", "-1"]),
        ]:
            with self.subTest(arguments):
                self.refuse(2, message, *arguments)

    def test_empty_prompts_count_as_given(self):
        self.train()
        self.refuse(2, "--prompt-ids is empty", "generate", "run", "--prompt-ids", "")
        self.refuse(2, "--prompt-file is empty", "generate", "run", "--prompt-file", "")
        self.refuse(2, "--prompt is empty", "generate", "run", "--prompt", "")
        (self.folder / "nothing.txt").write_text("")
        self.refuse(2, "nothing.txt is empty", "generate", "run", "--prompt-file", "nothing.txt")
        self.check_command("generate", "run", "--max-new-tokens", 1)

    def test_empty_names_count_as_given(self):
        self.train()
        self.refuse(2, "--data is empty", "eval", "config.yaml", "--data", "")
        self.refuse(2, "--split needs --data", "eval", "config.yaml", "--split", "train")
        before = sorted(self.folder.iterdir())
        self.refuse(2, "name of the folder to write is empty", "data", "text", "val.txt", "--out", "")
        self.refuse(2, "name of the folder to write is empty", "data", "write", "", *INT_COLUMN, input="")
        self.assertEqual(sorted(self.folder.iterdir()), before)

    def test_info_of_a_weights_file_asks_for_its_folder(self):
        self.train()
        self.refuse(2, "name the checkpoint's folder", "info", "run/step-2/model.safetensors")

    def test_train_keeps_its_name(self):
        self.write_data(4000, 1000)
        self.write_config()
        process = self.start("train", "config.yaml", "max_duration=100000ba", "scheduler.t_warmup=0ba")
        self.wait_for(lambda: (self.folder / "run" / "metrics.jsonl").exists())
        name = pathlib.Path(f"/proc/{process.pid}/comm").read_text().strip()
        self.assertEqual(name, "dropless")

    def test_libtorch_failures_are_one_line(self):
        """libtorch_cuda reads the setting when it is loaded, which is where a driver is: any library stands for it."""
        maps = pathlib.Path("/proc/self/maps").read_text().split()
        (self.folder / "libcuda.so.1").symlink_to(next(word for word in maps if "/libc." in word or "/libc-" in word))
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(self.folder),
            "PYTORCH_ALLOC_CONF": "bogus",
        }
        result = self.run_command("generate", "run", "--prompt", "a", "--device", "cuda", env=environment)
        if "libtorch_cuda cannot be loaded" in result.stderr:
            self.skipTest("the CUDA libraries of the torch wheel are not installed")
        self.assertEqual(result.returncode, 1, result.stderr)
        error, hint = result.stderr.splitlines()
        self.assertRegex(error, "^error: libtorch: .*AllocatorConfig")
        self.assertRegex(hint, "^hint: .*PYTORCH_")

    def test_a_signal_ends_a_wait_for_standard_input(self):
        for number in [signal.SIGTERM, signal.SIGINT]:
            with self.subTest(number):
                process = self.start("data", "write", "set", *INT_COLUMN)
                process.stdin.write('{"a":{"t":"int","v":"5"}}\n{"a":')
                process.stdin.flush()
                self.wait_for(lambda: any(self.folder.iterdir()))  # set.tmp-PID
                process.send_signal(number)
                self.assertEqual(process.wait(timeout=60), 1)
                self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_signal_ends_verbs_that_only_print(self):
        self.train()
        (self.folder / "text.txt").write_text("a" * 3000000)
        for arguments in [
            ["eval", "run", "--data", "text.txt"],
            ["bench", "moe", "--device", "cpu", "--shape", "20000,512,512,8,2"],
        ]:
            for number in [signal.SIGTERM, signal.SIGINT]:
                with self.subTest(verb=arguments[0], signal=number):
                    process = self.start(*arguments)
                    status = pathlib.Path(f"/proc/{process.pid}/status")
                    caught = lambda: int(status.read_text().split("SigCgt:")[1].split()[0], 16)
                    self.wait_for(lambda: caught() >> (number - 1) & 1)
                    time.sleep(0.5)
                    self.assertIsNone(process.poll())
                    process.send_signal(number)
                    self.assertEqual(process.wait(timeout=1), 1)
                    said = "terminated by SIGTERM" if number == signal.SIGTERM else "interrupted"
                    self.assertEqual(process.stderr.read().splitlines()[-1], f"error: {said}")

    def test_a_last_line_without_its_end_is_read(self):
        lines = '{"a":{"t":"int","v":"5"}}\n{"a":{"t":"int","v":"6"}}'
        self.check_command("data", "write", "set", *INT_COLUMN, input=lines)
        self.assertEqual(self.check_command("data", "cat", "set"), lines + "\n")

    def test_what_an_index_or_manifest_names_is_damaged_not_absent(self):
        self.train()
        for path, arguments in [
            ("data/val/shard.00000.mds", ["data", "cat", "data/val"]),
            ("data/val/shard.00000.mds", ["train", "config.yaml", "save_folder=other"]),
            ("run/step-2/model.safetensors", ["info", "run"]),
            ("run/step-2/config.yaml", ["info", "run", "--json"]),
        ]:
            with self.subTest(path):
                file = self.folder / path
                raw = file.read_bytes()
                file.unlink()
                file.mkdir()
                self.assertIn("a folder", self.refuse(1, file.name, *arguments).stderr)
                file.rmdir()
                file.write_bytes(raw)
        verify = ["data", "verify", "data/val"]
        self.check_command(*verify)

    def test_info_finds_flipped_bits(self):
        self.train()
        for name in ["model.safetensors", "config.yaml", "manifest.json"]:
            file = self.folder / "run" / "step-2" / name
            raw = file.read_bytes()
            for place in [9, len(raw) // 3, len(raw) - 5]:
                with self.subTest(f"{name} {place}"):
                    file.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
                    self.refuse(1, name, "info", "run/step-2")
            file.write_bytes(raw)
        self.check_command("info", "run")

    def test_verify_finds_altered_bytes(self):
        """A token changed into another is a valid set: only a hash tells."""
        self.write_data(4000, 1000)
        index = json.loads((self.folder / "data/val/index.json").read_text())
        self.assertEqual(index["shards"][0]["hashes"], ["xxh128"])
        shard = self.folder / "data/val/shard.00000.mds"
        raw = shard.read_bytes()
        shard.write_bytes(raw[:-4] + bytes([raw[-4] ^ 1]) + raw[-3:])
        result = self.run_command("data", "verify", "data/val")
        self.assertEqual(result.returncode, 1)
        self.assertTrue(result.stdout.startswith("shard.00000.mds: xxh128 is "), result.stdout)

    def test_hashes_can_be_chosen(self):
        (self.folder / "a.txt").write_text("some text\n")
        for name, names in [("none", []), ("xxh128,sha256", ["sha256", "xxh128"])]:
            self.check_command("data", "text", "a.txt", "--out", name, "--hashes", name)
            (shard,) = json.loads(self.check_command("data", "info", name, "--json"))["shards"]
            self.assertEqual(sorted(shard["hashes"]), names)
            self.check_command("data", "verify", name)
        self.refuse(2, "unknown hash 'md6'", "data", "text", "a.txt", "--out", "x", "--hashes", "md6")
        self.refuse(2, "stands twice", "data", "text", "a.txt", "--out", "x", "--hashes", "sha256,sha256")
        self.assertFalse((self.folder / "x").exists())

    def test_an_unknown_version_is_said_once(self):
        self.write_data(4000, 1000)
        index = self.folder / "data/val/index.json"
        index.write_text(index.read_text().replace('"version": 2', '"version": 3'))
        self.refuse(2, "index.json: version 3; only version 2 can be read", "data", "info", "data/val")

    def test_eval_of_a_config_takes_device_and_dtype(self):
        self.train()
        exact = json.loads(self.check_command("eval", "config.yaml", "--json"))
        rough = json.loads(self.check_command("eval", "config.yaml", "--json", "--dtype", "bf16"))
        self.assertNotEqual(exact["cross_entropy"], rough["cross_entropy"])
        self.assertAlmostEqual(exact["cross_entropy"], rough["cross_entropy"], places=1)
        self.refuse(2, "tpu", "eval", "config.yaml", "--device", "tpu")
        self.refuse(2, "fp7", "eval", "config.yaml", "--dtype", "fp7")

    def test_eval_without_a_scored_token_has_no_figure(self):
        self.train()
        (self.folder / "one.txt").write_text("a")
        answer = json.loads(self.check_command("eval", "run", "--data", "one.txt", "--json"))
        self.assertEqual(answer, {"cross_entropy": None, "perplexity": None, "tokens": 0})
        text = self.check_command("eval", "run", "--data", "one.txt")
        self.assertIn("no token to score", text)
        self.assertNotIn("perplexity", text)

    def test_eval_of_several_loaders_prints_their_total(self):
        self.train()
        loader = """eval_loader:
  - {label: a, name: text, dataset: {local: data, split: val, shuffle: false, max_seq_len: 32}, drop_last: false}
  - {label: b, name: text, dataset: {local: data, split: train, shuffle: false, max_seq_len: 32}, drop_last: false}
"""
        begin, end = CONFIG.index("eval_loader:"), CONFIG.index("optimizer:")
        self.write_config("two.yaml", CONFIG[:begin] + loader + CONFIG[end:])
        answer = json.loads(self.check_command("eval", "two.yaml", "--json"))
        lines = self.check_command("eval", "two.yaml").splitlines()
        self.assertEqual([line.split(":")[0] for line in lines], ["a", "b", "all of them"])
        self.assertIn(f"cross-entropy {answer['cross_entropy']:.4f} ", lines[2])
        self.assertIn(f" {answer['tokens']} tokens", lines[2])
        self.assertEqual(answer["tokens"], sum(part["tokens"] for part in answer["loaders"].values()))

    def test_a_non_finite_loss_names_checkpoint_and_loader(self):
        """Weights far beyond fp16 overflow in it, and not in the fp32 they were trained in."""
        self.train("optimizer.lr=1000")
        for loader, arguments in [("eval_loader", ["config.yaml"]), ("val.txt", ["run", "--data", "val.txt"])]:
            result = self.refuse(1, f"run/step-2 on {loader}: ", "eval", *arguments, "--dtype", "fp16")
            self.assertRegex(result.stderr, "the evaluation loss is (not a number|infinite) after")


if __name__ == "__main__":
    unittest.main()
