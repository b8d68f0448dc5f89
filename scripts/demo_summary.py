#!/usr/bin/env python3
"""Prints what the demo reached: the model beside the n-grams, its speed, a sample, and where all lies.

usage: demo_summary.py RUN_FOLDER NGRAM_JSON
"""

import json
import math
import statistics
import sys
from pathlib import Path


def read_metrics(path):
    """The training lines of metrics.jsonl."""
    entries = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [entry for entry in entries if "throughput/tokens_per_sec" in entry]


def nats_per_byte(evaluation, num_bytes):
    """Mean over every byte; one that the model had nothing to predict from counts as a guess among 256."""
    unscored = num_bytes - evaluation["tokens"]
    return (evaluation["cross_entropy"] * evaluation["tokens"] + unscored * math.log(256)) / num_bytes


def summarize(run, ngram):
    training = read_metrics(run / "metrics.jsonl")
    evaluation = json.loads((run / "held_out.json").read_text(encoding="utf-8"))
    model = nats_per_byte(evaluation, ngram["bytes"])
    rows = [
        ("unigram entropy", ngram["unigram_nats"]),
        ("Witten-Bell 5-gram", ngram["witten_bell5_nats"]),
        ("this model", model),
    ]
    lines = [f"held-out text ({ngram['bytes'] / 1e6:.2f} MB)   nats/byte   bits/byte"]
    lines += [f"  {name:<26} {nats:9.4f}   {nats / math.log(2):9.4f}" for name, nats in rows]
    lines.append("")
    if training:
        speed = statistics.median(entry["throughput/tokens_per_sec"] for entry in training)
        lines.append(f"{training[-1]['step']} steps, {speed:,.0f} tokens/s (median)")
    lines.append(f"model    {run}/latest")
    lines.append(f"metrics  {run}/metrics.jsonl")
    lines.append("data     runs/demo-data (MDS: train, val; the lists of files: train.txt, held_out.txt)")
    lines.append(f"sample   {run}/sample.txt; more: ./dev run generate {run} --prompt 'import '")
    return "\n".join(lines)


def main(arguments):
    if len(arguments) != 2:
        print("usage: demo_summary.py RUN_FOLDER NGRAM_JSON", file=sys.stderr)
        return 2
    run = Path(arguments[0])
    sample = run / "sample.txt"
    if sample.is_file():
        print(sample.read_text(encoding="utf-8", errors="replace").rstrip() + "\n")
    print(summarize(run, json.loads(Path(arguments[1]).read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
