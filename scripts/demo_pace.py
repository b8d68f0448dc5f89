#!/usr/bin/env python3
"""Chooses how the demo trains on this machine: the faster precision, and as many steps as five minutes have room for.

usage: demo_pace.py DROPLESS CONFIG FOLDER

Trains a few steps in each precision, into FOLDER, and prints the overrides for `dropless train CONFIG`. Fewer than
3200 steps may not reach what the demo promises; a slow machine takes longer. Training evaluates on a part of the
held-out text: all of it is scored afterwards. See docs/training.md.
"""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

TRAINING_SECONDS = 280  # the corpus, the n-gram and both evaluations take the rest of five minutes
FEWEST, MOST = 3200, 6400
TRIAL_STEPS, WARM_STEPS = 24, 8
PRECISIONS = ("fp32", "amp_bf16")


def steps_per_second(dropless, config, folder, precision):
    """Median over the trial's last steps."""
    overrides = [f"precision={precision}", f"max_duration={TRIAL_STEPS}ba", f"save_folder={folder}"]
    overrides += ["eval_interval=0", "eval_subset_num_batches=1"]
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([dropless, "train", config, *overrides], stdout=sys.stderr, check=True)
    lines = Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [json.loads(line).get("throughput/batches_per_sec") for line in lines]
    shutil.rmtree(folder)
    return statistics.median(rate for rate in rates[WARM_STEPS:] if rate)


def steps_for(rate):
    """Whole hundreds."""
    return min(max(int(rate * TRAINING_SECONDS) // 100 * 100, FEWEST), MOST)


def main(arguments):
    if len(arguments) != 3:
        print("usage: demo_pace.py DROPLESS CONFIG FOLDER", file=sys.stderr)
        return 2
    try:
        rates = {precision: steps_per_second(*arguments, precision) for precision in PRECISIONS}
    except subprocess.CalledProcessError as error:
        print(f"demo_pace.py: {error}", file=sys.stderr)
        return 1
    best = max(rates, key=rates.get)
    speeds = ", ".join(f"{precision} {rate:.1f}" for precision, rate in rates.items())
    print(f"demo_pace.py: steps a second: {speeds}", file=sys.stderr)
    print(f"precision={best} max_duration={steps_for(rates[best])}ba eval_subset_num_batches=8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
