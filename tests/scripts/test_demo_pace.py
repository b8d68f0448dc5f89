"""scripts/demo_pace.py: the faster precision, and steps by its speed, with a command that only claims speeds."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "demo_pace.py"
# Writes a slow first step, then the speed in a file named as the precision; fails where there is none.
COMMAND = """#!/bin/sh
for argument; do case $argument in
  precision=*) rate=$(cat "$(dirname "$0")/${argument#*=}") || exit 1 ;;
  save_folder=*) folder=${argument#*=} ;;
esac; done
mkdir -p "$folder" && echo '{"step":1,"throughput/batches_per_sec":0.1}' >"$folder/metrics.jsonl"
for step in 2 3 4 5 6 7 8 9 10 11 12; do
  echo "{\\"step\\":$step,\\"throughput/batches_per_sec\\":$rate}" >>"$folder/metrics.jsonl"
done
echo '{"step":12,"metrics/eval/LanguageCrossEntropy":1.0}' >>"$folder/metrics.jsonl"
"""


class DemoPace(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.command = self.folder / "dropless"
        self.command.write_text(COMMAND, encoding="utf-8")
        self.command.chmod(0o755)

    def pace(self, **rates):
        for precision, rate in rates.items():
            (self.folder / precision).write_text(str(rate), encoding="utf-8")
        return self.run_script(self.command, "demo.yaml", "3200", "6400")

    def run_script(self, *arguments):
        return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)

    def test_takes_the_faster_precision_and_fills_the_time(self):
        for fp32, bf16, expected in (
            (15.0, 9.0, "precision=fp32 max_duration=4000ba"),
            (9.0, 15.99, "precision=amp_bf16 max_duration=4300ba"),
            (2.0, 1.0, "precision=fp32 max_duration=3200ba"),  # a slow machine takes longer
            (2.0, 100.0, "precision=amp_bf16 max_duration=6400ba"),
        ):
            with self.subTest(fp32=fp32, bf16=bf16):
                result = self.pace(fp32=fp32, amp_bf16=bf16)
                self.assertEqual(result.returncode, 0, result.stderr)
                overrides, reason = result.stdout.splitlines()
                self.assertEqual(overrides, expected)
                self.assertIn(f"{fp32:.1f} steps a second in fp32, {bf16:.1f} steps a second in amp_bf16", reason)

    def test_keeps_to_the_fewest_steps(self):
        for rate in "0.1", "100":
            (self.folder / "fp32").write_text(rate, encoding="utf-8")
            (self.folder / "amp_bf16").write_text("0.01", encoding="utf-8")
            result = self.run_script(self.command, "demo.yaml", "120", "0")
            self.assertEqual(result.stdout.splitlines()[0], "precision=fp32 max_duration=120ba")

    def test_says_that_training_failed(self):
        result = self.pace(fp32=15.0)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stdout, "")
        self.assertIn("precision=amp_bf16", result.stderr)

    def test_says_that_a_trial_was_stopped(self):
        (self.folder / "fp32").write_text("", encoding="utf-8")
        self.command.write_text(COMMAND.replace("for step in 2 3 4 5 6 7 8 9 10 11 12", "for step in"), encoding="utf-8")
        result = self.run_script(self.command, "demo.yaml", "3200", "6400")
        self.assertEqual(result.returncode, 1)
        self.assertIn("stopped before its end", result.stderr)

    def test_refuses_other_arguments(self):
        self.assertEqual(self.run_script(self.command).returncode, 2)
        self.assertEqual(self.run_script(self.command, "demo.yaml", "3200", "many").returncode, 2)


if __name__ == "__main__":
    unittest.main()
