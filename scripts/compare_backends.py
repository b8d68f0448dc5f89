#!/usr/bin/env python3
"""Trains a config once a seed and value of `model.ffn_config.backend`, in turns, and prints the table of docs/kernels.md.

usage: compare_backends.py BINARY CONFIG [--seeds 17,18,19] [--backends dropless,torch] [--tail 50] [--folder runs/compare]
                           [KEY=VALUE...]                      keys of the config, for every run

tokens/s is the median of the second half of the steps; the loss is the mean cross-entropy of the last `--tail` steps. A
run's folder is removed when it has been read, since it ends with a checkpoint; --keep leaves it.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

SPEED, LOSS = "throughput/tokens_per_sec", "loss/train/loss"


def train(binary, config, folder, backend, seed, overrides):
    """The run's metrics, a dictionary a step."""
    command = [binary, "train", config, *overrides, f"seed={seed}", f"model.ffn_config.backend={backend}", f"save_folder={folder}"]
    print(" ".join(map(str, command)), file=sys.stderr, flush=True)
    result = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if result.returncode != 0:
        sys.exit(f"the run of backend {backend}, seed {seed}, failed ({result.returncode}): {folder}")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [step for step in map(json.loads, lines) if LOSS in step]


def summary(steps, tail):
    speeds = [step[SPEED] for step in steps[len(steps) // 2 :] if SPEED in step]
    return {
        "tokens/s": statistics.median(speeds) if speeds else None,
        "first": steps[0][LOSS],
        "loss": statistics.fmean(step[LOSS] for step in steps[-tail:]),
    }


def text(name, value):
    if value is None:
        return "-"
    return f"{value / 1e3:.1f} k" if name == "tokens/s" else f"{value:.4f}" if name == "first" else f"{value:.3f}"


def table(results, seeds, backends, tail):
    yield "| seed | " + " | ".join(map(str, seeds)) + " | mean |"
    yield "|---|" + "---|" * (len(seeds) + 1)
    titles = {"tokens/s": "tokens/s", "first": "first loss", "loss": f"mean cross-entropy of the last {tail} steps"}
    for name, title in titles.items():
        for backend in backends:
            values = [results[backend, seed][name] for seed in seeds]
            mean = statistics.fmean(values) if None not in values else None
            yield f"| {title}, {backend} | " + " | ".join(text(name, value) for value in [*values, mean]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", default="17,18,19")
    parser.add_argument("--backends", default="dropless,torch")
    parser.add_argument("--tail", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("runs/compare"))
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_intermixed_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    backends = options.backends.split(",")
    if options.tail < 1:
        parser.error("--tail: at least 1")
    binary = options.binary.resolve()
    if not binary.is_file():
        parser.error(f"{options.binary}: no such program; ./dev build prints its path")
    results = {}
    for seed in seeds:
        for backend in backends:
            folder = options.folder / f"{backend}-{seed}"
            if folder.exists():
                sys.exit(f"{folder} is there already: remove it, or choose another --folder")
            steps = train(binary, options.config, folder, backend, seed, options.overrides)
            results[backend, seed] = summary(steps, options.tail)
            if not options.keep:
                shutil.rmtree(folder)
    print("\n".join(table(results, seeds, backends, options.tail)))


if __name__ == "__main__":
    main()
