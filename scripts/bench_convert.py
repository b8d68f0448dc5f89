#!/usr/bin/env python3
"""Times `dropless convert` of a synthetic checkpoint in DBRX's names and widths beside cp of the same folder, every byte
on the disk, with the converter's peak memory: one JSON line.

usage: bench_convert.py BINARY FOLDER [--layers 2]        needs twice the model's bytes (two layers: 13.4 GB) below FOLDER
"""

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests/cli"))
import hf_models  # noqa: E402

FILES = 3
BLOCK = 1 << 24


def write_shard(path: pathlib.Path, shapes: dict):
    """Finite bf16 values, never all in memory."""
    block = bytearray(random.Random(1).randbytes(BLOCK))
    block[1::2] = bytes(byte & 0xBF for byte in block[1::2])  # no exponent of ones
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, BLOCK):
            file.write(memoryview(block)[: min(BLOCK, end - start)])


def make_model(folder: pathlib.Path, layers: int):
    config = dict(hf_models.CONFIGS["dbrx"], d_model=6144, n_heads=48, n_layers=layers, max_seq_len=32768, vocab_size=16384)
    config["attn_config"] = dict(config["attn_config"], kv_n_heads=8, clip_qkv=8)
    config["ffn_config"] = dict(config["ffn_config"], ffn_hidden_size=10752, hidden_size=6144, moe_num_experts=16, moe_top_k=4)
    shapes = hf_models.shapes(config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    files = {f"model-{i + 1:05}-of-{FILES:05}.safetensors": list(shapes)[i::FILES] for i in range(FILES)}
    for file, names in files.items():
        write_shard(folder / file, {name: shapes[name] for name in names})
    index = {"weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def run_and_watch(*command) -> int:
    """The command's peak resident bytes; getrusage's would be this process's, which the child begins as."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        if found := re.search(r"VmHWM:\s*(\d+) kB", status):
            peak = int(found[1]) * 1024
        time.sleep(0.02)
    if process.returncode != 0:
        raise SystemExit(f"exit code {process.returncode}: {command}")
    return peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args()
    source, copy, target = (arguments.folder / name for name in ("source", "copy", "target"))
    make_model(source, arguments.layers)
    size = sum(path.stat().st_size for path in source.iterdir()) / 1e6
    os.sync()
    start = time.monotonic()
    subprocess.run(["cp", "-r", source, copy], check=True)
    os.sync()
    copied = time.monotonic() - start
    shutil.rmtree(copy)
    start = time.monotonic()
    peak = run_and_watch(arguments.binary, "convert", source, target, "--to", "dropless") / 1e6
    os.sync()
    converted = time.monotonic() - start
    figures = {"MB": size, "cp_MB/s": size / copied, "convert_MB/s": size / converted, "peak_MB": peak}
    print(json.dumps({key: round(value) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
