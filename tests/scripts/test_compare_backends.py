"""The table that compare_backends.py makes of runs by a stand-in for the command."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_backends.py"
# Trains: four steps, whose loss and speed follow from seed and backend.
COMMAND = f"""#!{sys.executable}
import json, pathlib, sys
assert sys.argv[1:4] == ["train", "a.yaml", "max_duration=4ba"], sys.argv
given = dict(word.split("=", 1) for word in sys.argv[3:])
seed, torch = int(given["seed"]), given["model.ffn_config.backend"] == "torch"
if seed == 13:
    sys.exit(3)
folder = pathlib.Path(given["save_folder"])
folder.mkdir(parents=True)
with open(folder / "metrics.jsonl", "w") as file:
    for step in range(1, 5):
        line = {{"step": step, "loss/train/loss": seed / step, "throughput/tokens_per_sec": (100 if torch else 200) * 1e3 * step}}
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

    def compare(self, *options):
        command = [sys.executable, SCRIPT, "./command", "a.yaml", "max_duration=4ba", "--tail", "2", *options]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)

    def test_table(self):
        result = self.compare("--seeds", "12,24")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(
            result.stdout.splitlines(),
            [
                "| seed | 12 | 24 | mean |",
                "|---|---|---|---|",
                "| tokens/s, dropless | 700.0 k | 700.0 k | 700.0 k |",
                "| tokens/s, torch | 350.0 k | 350.0 k | 350.0 k |",
                "| first loss, dropless | 12.0000 | 24.0000 | 18.0000 |",
                "| first loss, torch | 12.0000 | 24.0000 | 18.0000 |",
                "| mean cross-entropy of the last 2 steps, dropless | 3.500 | 7.000 | 5.250 |",
                "| mean cross-entropy of the last 2 steps, torch | 3.500 | 7.000 | 5.250 |",
            ],
        )
        self.assertEqual(list((self.folder / "runs" / "compare").iterdir()), [])

    def test_failures(self):
        result = self.compare("--seeds", "13")
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn("backend dropless, seed 13, failed (3)", result.stderr)
        self.assertEqual(self.compare("--seeds", "1", "--backends", "torch", "--keep").returncode, 0)
        line = (self.folder / "runs" / "compare" / "torch-1" / "metrics.jsonl").read_text().splitlines()[0]
        self.assertEqual(json.loads(line)["step"], 1)
        self.assertIn("is there already", self.compare("--seeds", "1", "--backends", "torch").stderr)


if __name__ == "__main__":
    unittest.main()
