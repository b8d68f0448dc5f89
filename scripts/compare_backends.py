#!/usr/bin/env python3
"""Trains a config once a seed and value of `model.ffn_config.backend`, in turns, and prints the table of docs/kernels.md.

usage: compare_backends.py BINARY CONFIG [--seeds 17,18,19] [--backends dropless,torch] [--tail 50] [--folder runs/compare]
                           [--keep] [KEY=VALUE...]             keys of the config, for every run

tokens/s is the median of the second half of the steps; the loss is the mean cross-entropy of the last `--tail` steps. Of two
backends the ratio and the difference follow, and what the second differs by from seed to seed: less than that is no difference.
A run's folder is removed when it has been read, since it ends with a checkpoint, or when Ctrl-C cut the run off; --keep leaves it.
Exit code: 2 for bad options, 1 for a failed run (its folder stays), 130 for Ctrl-C.
"""

import argparse
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from standard_output import write

SPEED, LOSS = "throughput/tokens_per_sec", "loss/train/loss"
DEVICE = b"  device   "  # as the command names it, among its first lines


class OptionError(Exception):
    pass


class RunError(Exception):
    pass


def pass_on(stream):
    """What the command tells, to stderr. The device, where it is told."""
    device = None
    for line in stream:
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        if device is None and line.startswith(DEVICE):
            device = line[len(DEVICE) :].decode(errors="replace").strip()
    return device


def train(command, keep):
    """The device and the exit code."""
    print(" ".join(map(str, command)), file=sys.stderr, flush=True)
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except OSError as error:
        raise OptionError(f"{command[0]}: {error.strerror}") from None
    try:
        device = pass_on(process.stderr)
        return device, process.wait()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what follows is not to be cut off in turn
        if keep:
            # It may have had the terminal's SIGINT: a second would stop it unsaved, SIGTERM does not.
            process.terminate()
            process.communicate()
        raise
    finally:
        process.kill()
        process.wait()


def read_steps(path):
    """The metrics of the training steps, a dictionary each."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    steps = []
    for number, line in enumerate(lines, start=1):
        try:
            step = json.loads(line)
        except ValueError:
            step = None
        if not isinstance(step, dict):
            raise RunError(f"{path}:{number}: no JSON object")
        if LOSS in step:
            if not isinstance(step[LOSS], (int, float)) or not math.isfinite(step[LOSS]):
                raise RunError(f"{path}: step {step.get('step', '?')}: {LOSS} is {step[LOSS]}, not a finite number")
            steps.append(step)
    if not steps:
        raise RunError(f"{path}: no {LOSS}")
    return steps


def summary(steps, tail):
    speeds = [step[SPEED] for step in steps[len(steps) // 2 :] if isinstance(step.get(SPEED), (int, float))]
    return {
        "tokens/s": statistics.median(speeds) if speeds else None,
        "first": steps[0][LOSS],
        "loss": statistics.fmean(step[LOSS] for step in steps[-tail:]),
    }


def measure(options, backend, seed):
    """The summary of a run and its device."""
    folder = options.folder / f"{backend}-{seed}"
    ours = [f"seed={seed}", f"model.ffn_config.backend={backend}", f"save_folder={folder}"]
    name = f"the run of backend {backend}, seed {seed}"
    try:
        device, code = train([options.binary, "train", options.config, *options.overrides, *ours], options.keep)
        if code != 0:
            raise RunError(f"{name}, failed ({code}): {folder}")
        result = summary(read_steps(folder / "metrics.jsonl"), options.tail)
        if not options.keep:
            shutil.rmtree(folder)
        return result, device
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        raise KeyboardInterrupt(f"interrupted in {name}" + (f"; {folder} stays" if folder.exists() else "")) from None


def text(name, value):
    if value is None:
        return "-"
    return f"{value / 1e3:.1f} k" if name == "tokens/s" else f"{value:.4f}" if name == "first" else f"{value:.3f}"


def mean_of(results, name, seeds, backend):
    values = [results[backend, seed][name] for seed in seeds]
    return statistics.fmean(values) if None not in values else None


def table(results, seeds, backends, tail):
    yield "| seed | " + " | ".join(map(str, seeds)) + " | mean |"
    yield "|---|" + "---|" * (len(seeds) + 1)
    titles = {"tokens/s": "tokens/s", "first": "first loss", "loss": f"mean cross-entropy of the last {tail} steps"}
    for name, title in titles.items():
        for backend in backends:
            values = [*(results[backend, seed][name] for seed in seeds), mean_of(results, name, seeds, backend)]
            yield f"| {title}, {backend} | " + " | ".join(text(name, value) for value in values) + " |"


def comparison(results, seeds, first, second):
    speeds = [mean_of(results, "tokens/s", seeds, backend) for backend in (first, second)]
    ratio = f"{speeds[0] / speeds[1]:.2f}" if speeds[0] is not None and speeds[1] else "-"
    difference = mean_of(results, "loss", seeds, first) - mean_of(results, "loss", seeds, second)
    losses = [results[second, seed]["loss"] for seed in seeds]
    spread = text("loss", max(losses) - min(losses) if len(seeds) > 1 else None)
    yield f"tokens/s, {first} over {second}: {ratio}"
    yield f"mean cross-entropy, {first} minus {second}: {difference:+.3f}"
    yield f"mean cross-entropy of {second}, largest minus smallest of the seeds: {spread}"


def without_repeats(values):
    for value in values:
        if values.count(value) > 1:
            raise argparse.ArgumentTypeError(f"{value} is there twice")
    return values


def seed_list(given):
    def seed(word):
        try:
            return int(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is no whole number") from None

    return without_repeats([seed(word) for word in given.split(",")])


def backend_list(given):
    for word in given.split(","):
        if not re.fullmatch(r"\w+", word):  # a part of the folder's name
            raise argparse.ArgumentTypeError(f"{word!r} is no name of a backend")
    return without_repeats(given.split(","))


def parse(parser):
    parser.add_argument("binary", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=seed_list, default="17,18,19")
    parser.add_argument("--backends", type=backend_list, default="dropless,torch")
    parser.add_argument("--tail", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("runs/compare"))
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_intermixed_args()
    if options.tail < 1:
        raise OptionError("--tail: at least 1")
    if not options.binary.is_file():
        raise OptionError(f"{options.binary}: no such program; ./dev build prints its path")
    if not os.access(options.binary, os.X_OK):
        raise OptionError(f"{options.binary}: not executable; ./dev build prints the program's path")
    options.binary = options.binary.resolve()
    for seed in options.seeds:
        for backend in options.backends:
            folder = options.folder / f"{backend}-{seed}"
            if folder.exists():
                raise OptionError(f"{folder} is there already: remove it, or choose another --folder")
    return options


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    try:
        options = parse(parser)
        runs = [(backend, seed) for seed in options.seeds for backend in options.backends]
        measured = {run: measure(options, *run) for run in runs}
    except OptionError as error:
        parser.error(str(error))
    except (RunError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        sys.exit(130)
    results = {run: result for run, (result, _) in measured.items()}
    lines = [*table(results, options.seeds, options.backends, options.tail)]
    if devices := list(dict.fromkeys(device for _, device in measured.values() if device)):
        lines = ["; ".join(devices), "", *lines]
    if len(options.backends) == 2:
        lines += ["", *comparison(results, options.seeds, *options.backends)]
    sys.exit(write("\n".join(lines)))


if __name__ == "__main__":
    main()
