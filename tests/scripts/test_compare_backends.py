"""The table that compare_backends.py makes of runs by a stand-in for the command."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_backends.py"
# Trains: four steps, whose loss and speed follow from seed and backend. Some seeds fail; 98 lasts until a signal.
COMMAND = f"""#!{sys.executable}
import json, pathlib, signal, sys, time
assert sys.argv[1:4] == ["train", "a.yaml", "max_duration=4ba"], sys.argv
given = dict(word.split("=", 1) for word in sys.argv[3:])
seed, torch = int(given["seed"]), given["model.ffn_config.backend"] == "torch"
if seed == 13:
    sys.exit(3)
folder = pathlib.Path(given["save_folder"])
folder.mkdir(parents=True)
if seed == 98:
    # As the command does: a Ctrl-C ends it with what it has saved, and without a failure.
    def stop(number, frame):
        time.sleep(0.5)
        (folder / "saved").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("under way", file=sys.stderr, flush=True)
    time.sleep(60)
print("dropless: train\\n  device   a GPU, amp_bf16\\n  folder   here", file=sys.stderr)
broken = {{90: None, 91: "", 92: '{{"step": 1}}', 93: '{{"step": 1', 94: "[1]", 95: '{{"step": 3, "loss/train/loss": null}}',
          96: '{{"step": 3, "loss/train/loss": NaN}}'}}
if seed in broken:
    if broken[seed] is not None:
        (folder / "metrics.jsonl").write_text(broken[seed] + "\\n")
    sys.exit(0)
seed += torch  # so that the backends differ
with open(folder / "metrics.jsonl", "w") as file:
    for step in range(1, 5):
        line = {{"step": step, "loss/train/loss": seed / step, "throughput/tokens_per_sec": (80 if torch else 200) * 1e3 * step}}
        print(json.dumps(line), file=file)
    print(json.dumps({{"step": 4, "metrics/eval/LanguageCrossEntropy": 1.0}}), file=file)
"""


class CompareBackendsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        command = self.folder / "command"
        command.write_text(COMMAND)
        command.chmod(0o755)
        # Handlers are not inherited, but SIG_IGN is: a shell's background jobs have it.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def command(self, *options, binary="./command"):
        return [sys.executable, SCRIPT, binary, "a.yaml", "max_duration=4ba", "--tail", "2", *options]

    def compare(self, *options, **given):
        return subprocess.run(self.command(*options, **given), cwd=self.folder, capture_output=True, text=True, check=False)

    def refuse(self, code, message, *options, **given):
        result = self.compare(*options, **given)
        self.assertEqual((result.returncode, result.stdout), (code, ""), result.stderr)
        self.assertIn(message, result.stderr.splitlines()[-1])
        self.assertNotIn("Traceback", result.stderr)

    def test_table(self):
        result = self.compare("--seeds", "12,24")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(
            result.stdout.splitlines(),
            [
                "a GPU, amp_bf16",
                "",
                "| seed | 12 | 24 | mean |",
                "|---|---|---|---|",
                "| tokens/s, dropless | 700.0 k | 700.0 k | 700.0 k |",
                "| tokens/s, torch | 280.0 k | 280.0 k | 280.0 k |",
                "| first loss, dropless | 12.0000 | 24.0000 | 18.0000 |",
                "| first loss, torch | 13.0000 | 25.0000 | 19.0000 |",
                "| mean cross-entropy of the last 2 steps, dropless | 3.500 | 7.000 | 5.250 |",
                "| mean cross-entropy of the last 2 steps, torch | 3.792 | 7.292 | 5.542 |",
                "",
                "tokens/s, dropless over torch: 2.50",
                "mean cross-entropy, dropless minus torch: -0.292",
                "mean cross-entropy of torch, largest minus smallest of the seeds: 3.500",
            ],
        )
        self.assertEqual(list((self.folder / "runs" / "compare").iterdir()), [])

    def test_what_is_compared(self):
        lines = self.compare("--seeds", "12").stdout.splitlines()
        self.assertEqual(lines[-1], "mean cross-entropy of torch, largest minus smallest of the seeds: -")
        for backends in ("torch", "a,b,c"):
            self.assertTrue(self.compare("--backends", backends).stdout.splitlines()[-1].startswith("|"), backends)

    def test_tells_what_the_command_says(self):
        self.assertIn("  folder   here", self.compare("--seeds", "12").stderr.splitlines())

    def test_bad_options(self):
        for option, value, message in (
            ("--seeds", "a", "'a' is no whole number"), ("--seeds", "", "'' is no whole number"),
            ("--seeds", "1,", "'' is no whole number"), ("--seeds", "1,2,01", "1 is there twice"),
            ("--backends", "", "'' is no name"), ("--backends", "../a", "'../a' is no name"),
            ("--backends", "torch,torch", "torch is there twice"), ("--tail", "0", "at least 1"), ("--tail", "x", "--tail"),
        ):  # fmt: skip
            with self.subTest((option, value)):
                self.refuse(2, message, option, value)
        (self.folder / "text").write_text("no program")
        self.refuse(2, "text: not executable", binary="./text")
        self.refuse(2, "absent: no such program", binary="./absent")
        (self.folder / "text").chmod(0o755)
        self.refuse(2, "text: Exec format error", binary="./text")

    def test_failed_runs(self):
        self.refuse(1, "backend dropless, seed 13, failed (3)", "--seeds", "13")
        for seed, message in (
            (90, "No such file"), (91, "metrics.jsonl:1: no JSON"), (92, "no loss/train/loss"), (93, "metrics.jsonl:1: no JSON"),
            (94, "metrics.jsonl:1: no JSON"), (95, "step 3: loss/train/loss is None"), (96, "step 3: loss/train/loss is nan"),
        ):  # fmt: skip
            with self.subTest(seed):
                self.refuse(1, message, "--seeds", str(seed))
                self.refuse(2, f"dropless-{seed} is there already", "--seeds", str(seed))

    def test_no_reader(self):
        for output, code, message in (("| true", 0, ""), ("> /dev/full", 1, "cannot write to standard output: No space left")):
            command = '"$@" ' + output
            result = subprocess.run(
                ["bash", "-c", command, "bash", *self.command("--seeds", "1")], cwd=self.folder, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            self.assertEqual(result.returncode, code, result.stderr)
            self.assertIn(message, result.stderr)
            self.assertNotIn("Traceback", result.stderr)
            self.assertNotIn("Exception ignored", result.stderr)

    def interrupt(self, end, *options):
        """Calls `end` with the process once the run of seed 98 is under way."""
        process = subprocess.Popen(
            self.command("--seeds", "1,98", *options), cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        for line in process.stderr:
            if line == "under way\n":
                break
        end(process)
        output, errors = process.communicate(timeout=30)
        self.assertEqual((process.returncode, output), (130, ""), errors)
        self.assertEqual(len(errors.splitlines()), 1, errors)
        self.assertIn("interrupted in the run of backend dropless, seed 98", errors)
        return errors

    def test_interrupted(self):
        folder = self.folder / "runs" / "compare"
        self.interrupt(lambda process: os.killpg(process.pid, signal.SIGINT))
        self.assertEqual(list(folder.iterdir()), [])
        self.interrupt(lambda process: process.send_signal(signal.SIGINT))
        self.assertEqual(list(folder.iterdir()), [])
        self.assertEqual(self.compare("--seeds", "1").returncode, 0)

    def test_interrupted_keeps(self):
        folder = self.folder / "runs" / "compare" / "dropless-98"
        errors = self.interrupt(lambda process: os.killpg(process.pid, signal.SIGINT), "--keep")
        self.assertIn("dropless-98 stays", errors)
        self.assertTrue((folder / "saved").exists())

    def test_keeps(self):
        self.assertEqual(self.compare("--seeds", "1", "--backends", "torch", "--keep").returncode, 0)
        line = (self.folder / "runs" / "compare" / "torch-1" / "metrics.jsonl").read_text().splitlines()[0]
        self.assertEqual(json.loads(line)["step"], 1)
        # Before the first run, not when its turn comes.
        self.refuse(2, "torch-1 is there already", "--seeds", "3,1")
        self.assertFalse((self.folder / "runs" / "compare" / "dropless-3").exists())


if __name__ == "__main__":
    unittest.main()
