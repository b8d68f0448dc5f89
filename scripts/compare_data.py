#!/usr/bin/env python3
"""Times dropless and MosaicML's streaming package on the same sets, one after the other in one run.

Needs an environment with mosaicml-streaming (0.13.0) and numpy. Both run on one core, turn by turn; the sets
lie in the page cache. The package iterates with one process and no workers. Of each the best of nine runs
counts, three in each of three turns, in processor time, which other programs change least. In order dropless hashes every byte, which the package
does not; at random both copy out a sample and decode it, and dropless is timed once more with the hash.

usage: compare_data.py DROPLESS [FOLDER]       sets are made under FOLDER; default: a temporary one
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from streaming import MDSWriter, StreamingDataset
from streaming.base.shuffle import get_shuffle

TURNS = 3
RUNS = 3  # in a turn, as in `dropless bench data`


def make(path: pathlib.Path, samples: int, tokens: int):
    rng = np.random.default_rng(1)
    with MDSWriter(out=str(path), columns={"tokens": "ndarray:int32"}) as writer:
        for _ in range(samples):
            writer.write({"tokens": rng.integers(0, 50000, tokens, dtype=np.int32)})


def processor_seconds(work) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def package(data: StreamingDataset) -> dict:
    order = [int(i) for i in np.random.default_rng(2).permutation(len(data))[:20000]]

    def iterate():
        assert sum(1 for _ in data) == len(data)

    def pick():
        for i in order:
            data[i]

    return {
        "samples_per_s": len(data) / min(processor_seconds(iterate) for _ in range(RUNS)),
        "random_samples_per_s": len(order) / min(processor_seconds(pick) for _ in range(RUNS)),
    }


def best_of(turns: list) -> dict:
    return {key: max(turn[key] for turn in turns) for key in turns[0] if isinstance(turns[0][key], float)}


def compare_sets(folder: pathlib.Path, ours):
    print("| set | | dropless | package | ratio |\n|---|---|---|---|---|")
    for name, samples, tokens in [("rows of 4096 tokens", 20000, 4096), ("rows of 32 tokens", 20000, 32)]:
        path = folder / name.replace(" ", "-")
        make(path, samples, tokens)
        data = StreamingDataset(local=str(path), batch_size=1, shuffle=False)
        mine, theirs = [], []
        for _ in range(TURNS):
            mine.append(ours("--set", str(path))["read"])
            theirs.append(package(data))
        mine, theirs = best_of(mine), best_of(theirs)
        for key, what in [("samples_per_s", "in order"), ("random_samples_per_s", "at random")]:
            print(f"| {name} | samples/s {what} | {mine[key]:,.0f} | {theirs[key]:,.0f} | {mine[key] / theirs[key]:.1f} |")
        hashed = mine["random_hashed_samples_per_s"]
        print(f"| {name} | samples/s at random, hashed | {hashed:,.0f} | | {hashed / theirs['random_samples_per_s']:.1f} |")
        print(f"| {name} | GB/s in order | {mine['gigabytes_per_s']:.2f} | | |")


def compare_orders(binary: str, ours):
    """The orders are the same: a digest of each is compared before the times are shown."""
    sizes = np.full(2000, 5000)
    turns = [ours() for _ in range(TURNS)]
    print("| order of 10 million samples | dropless, s | MB | package (shuffle alone), s |\n|---|---|---|---|")
    for i, row in enumerate(turns[0]["order"]):
        name = row["algorithm"]
        seconds = min(turn["order"][i]["processor_seconds"] for turn in turns)
        ids = None

        def shuffle():
            nonlocal ids
            ids = get_shuffle(name, sizes, 1, 9176, 0, 4_000_000)

        theirs = min(processor_seconds(shuffle) for _ in range(TURNS * RUNS))
        spec = {"streams": [{"shard_sizes": sizes.tolist()}], "shuffle_algo": name, "num_canonical_nodes": 1,
                "batch_size": 1}
        answer = subprocess.run([binary, "data", "order", "--digest"], input=json.dumps(spec), check=True,
                                capture_output=True, text=True).stdout
        if json.loads(answer)["sha256"] != hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest():
            sys.exit(f"{name}: another order than the package's")
        print(f"| {name} | {seconds:.2f} | {row['peak_bytes'] / 1e6:.0f} | {theirs:.2f} |")
    opened = min(turn["open"]["processor_seconds"] for turn in turns)
    print(f"\nopen: {turns[0]['open']['shards']} shards in {opened:.2f} s")


def main():
    binary = sys.argv[1]
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else scratch)

        def ours(*arguments) -> dict:
            return json.loads(subprocess.run([binary, "bench", "data", *arguments, "--json"], check=True,
                                             capture_output=True, text=True).stdout)

        compare_sets(folder, ours)
        compare_orders(binary, ours)


if __name__ == "__main__":
    main()
