#!/usr/bin/env python3
"""Chooses how the demo trains on this machine: the faster precision, and as many steps as five minutes have room for.

usage: demo_pace.py DROPLESS CONFIG FEWEST_STEPS MOST_STEPS

Trains a few steps in each precision. Prints the overrides for `dropless train CONFIG`, and a line that says why. With
fewer than FEWEST_STEPS the model may not reach what the demo promises: a slow machine takes longer, and MOST_STEPS
below that count for nothing. See docs/training.md.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TRAINING_SECONDS = 270  # of 300; the others: the corpus, the n-gram, these trials, saving and scoring
TRIAL_STEPS, WARM_STEPS = 24, 8
PRECISIONS = ("fp32", "amp_bf16")


class TrialError(Exception):
    pass


def steps_per_second(dropless, config, precision):
    """Median over the trial's last steps."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"precision={precision}", f"max_duration={TRIAL_STEPS}ba", f"save_folder={folder}/run"]
        overrides += ["eval_interval=0", "eval_subset_num_batches=1"]
        command = [dropless, "train", config, *overrides]
        status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        if status != 0:
            raise TrialError(f"{' '.join(map(str, command))} ended with {status}")
        lines = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [json.loads(line).get("throughput/batches_per_sec") for line in lines]
    rates = [rate for rate in rates if rate][WARM_STEPS:]
    if not rates:
        raise TrialError(f"the trial in {precision} was stopped before its end")
    return statistics.median(rates)


def steps_for(rate, fewest, most):
    """Whole hundreds, or a bound."""
    return max(min(int(rate * TRAINING_SECONDS) // 100 * 100, most), fewest)


def main(arguments):
    if len(arguments) != 4 or not all(argument.isdigit() for argument in arguments[2:]):
        print("usage: demo_pace.py DROPLESS CONFIG FEWEST_STEPS MOST_STEPS", file=sys.stderr)
        return 2
    dropless, config, fewest, most = arguments
    try:
        rates = {precision: steps_per_second(dropless, config, precision) for precision in PRECISIONS}
    except (TrialError, OSError) as error:
        print(f"demo_pace.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    best = max(rates, key=rates.get)
    steps = steps_for(rates[best], int(fewest), int(most))
    speeds = ", ".join(f"{rate:.1f} steps a second in {precision}" for precision, rate in rates.items())
    print(f"precision={best} max_duration={steps}ba")
    print(f"this machine trains {speeds}: {steps} steps, about {steps / rates[best] / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
