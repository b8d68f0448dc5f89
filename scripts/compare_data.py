#!/usr/bin/env python3
"""Times dropless and MosaicML's streaming package on the same sets, one after the other in one run.

Needs an environment with mosaicml-streaming (0.13.0) and numpy. Both run on one core; the sets lie in the
page cache. The package iterates with one process and no workers.

usage: compare_data.py DROPLESS [FOLDER]       sets are made under FOLDER; default: a temporary one
"""

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


def make(path: pathlib.Path, samples: int, tokens: int):
    rng = np.random.default_rng(1)
    with MDSWriter(out=str(path), columns={"tokens": "ndarray:int32"}) as writer:
        for _ in range(samples):
            writer.write({"tokens": rng.integers(0, 50000, tokens, dtype=np.int32)})


def package(path: pathlib.Path) -> dict:
    data = StreamingDataset(local=str(path), batch_size=1, shuffle=False)
    begin = time.perf_counter()
    count = sum(1 for _ in data)
    iterated = count / (time.perf_counter() - begin)
    order = np.random.default_rng(2).permutation(len(data))[:20000]
    begin = time.perf_counter()
    for i in order:
        data[int(i)]
    return {"samples_per_s": iterated, "random_samples_per_s": len(order) / (time.perf_counter() - begin)}


def main():
    binary = sys.argv[1]
    os.sched_setaffinity(0, {0})
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else scratch)

        def ours(*arguments) -> dict:
            return json.loads(subprocess.run([binary, "bench", "data", *arguments, "--json"], check=True,
                                             capture_output=True, text=True).stdout)

        for name, samples, tokens in [("rows of 4096 tokens", 20000, 4096), ("rows of 32 tokens", 200000, 32)]:
            path = folder / name.replace(" ", "-")
            make(path, samples, tokens)
            mine, theirs = ours("--set", str(path))["read"], package(path)
            for key in ["samples_per_s", "random_samples_per_s"]:
                print(f"{name}: {key} {mine[key]:.0f}, the package {theirs[key]:.0f}: {mine[key] / theirs[key]:.1f}x")
            print(f"{name}: {mine['gigabytes_per_s']:.2f} GB/s")
        mine = ours()
        sizes = np.full(2000, 5000)
        for row in mine["order"]:
            begin = time.perf_counter()
            get_shuffle(row["algorithm"], sizes, 64 if row["algorithm"] in ("py1s", "py2s") else 1, 9176, 0, 4_000_000)
            theirs = time.perf_counter() - begin
            print(f"order {row['algorithm']}: {row['seconds']:.2f} s, the package (shuffle alone) {theirs:.2f} s;"
                  f" {row['peak_bytes'] / 1e6:.0f} MB more")
        print(f"open: {mine['open']['shards']} shards in {mine['open']['seconds']:.2f} s")


if __name__ == "__main__":
    main()
