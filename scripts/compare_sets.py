#!/usr/bin/env python3
"""Sets that dropless writes, read by MosaicML's streaming package: every encoding, every compression.

The values are those of tests/data/mds_all_encodings, which the package wrote, and of a set of images that it
writes here: `data cat` of it goes into `data write`, and the package must read the same values from the new
set as from its own. Needs an environment with mosaicml-streaming (0.13.0).

usage: compare_sets.py DROPLESS
"""

import io
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
from PIL import Image
from streaming import MDSWriter, StreamingDataset

SOURCE = pathlib.Path(__file__).resolve().parents[1] / "tests" / "data" / "mds_all_encodings"
COMPRESSIONS = [None, "zstd", "zstd:19", "gz", "gz:5", "bz2", "bz2:1", "br", "br:4", "snappy"]


def same(a, b) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if hasattr(a, "tobytes"):  # an image
        return (a.size, a.mode, a.tobytes()) == (b.size, b.mode, b.tobytes())
    return type(a) is type(b) and (a == b or a != a and b != b)


def read(folder: pathlib.Path, **options) -> list:
    return list(StreamingDataset(local=str(folder), shuffle=False, batch_size=1, **options))


def write_images(folder: pathlib.Path):
    rng = np.random.default_rng(3)

    def image(mode="RGB"):
        return Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).convert(mode)

    def jpeg_bytes() -> bytes:
        out = io.BytesIO()
        image().save(out, format="JPEG")
        return out.getvalue()

    kinds = ["png", "jpeg", "pil", "list[png]", "list[jpeg]", "list[pil]", "jpeg_array", "jpegarray"]
    make = {kind: image for kind in kinds}
    make |= {kind: lambda mode: [image(mode) for _ in range(3)] for kind in kinds if kind.startswith("list")}
    make |= {kind: lambda _: [jpeg_bytes() for _ in range(3)] for kind in kinds if "array" in kind}
    with MDSWriter(out=str(folder), columns={kind: kind for kind in kinds}) as writer:
        for mode in ["RGB", "L"]:
            writer.write({kind: make[kind](mode) for kind in kinds})


def compare(binary: str, source: pathlib.Path, scratch: pathlib.Path) -> int:
    """How many values differ."""
    lines = subprocess.run([binary, "data", "cat", source], check=True, capture_output=True, text=True).stdout
    shard = json.loads((source / "index.json").read_text())["shards"][0]
    columns = dict(zip(shard["column_names"], shard["column_encodings"]))
    want = read(source)
    wrong = 0
    for compression in COMPRESSIONS:
        folder = scratch / str(compression).replace(":", "-")
        subprocess.run([binary, "data", "write", folder, "--columns", json.dumps(columns), "--hashes", "sha1,xxh64",
                        "--exist-ok", *(["--compression", compression] if compression else [])],
                       input=lines, check=True, capture_output=True, text=True)
        got = read(folder, validate_hash="xxh64" if compression else None)
        bad = [(row, name) for row, sample in enumerate(want) for name in columns
               if len(got) != len(want) or not same(sample[name], got[row][name])]
        wrong += len(bad)
        print(f"{compression or 'raw':<8} {len(got)} samples of {len(columns)} columns, {len(bad)} values differ")
        for row, name in bad[:3]:
            print(f"  sample {row}, column {name} ({columns[name]})", file=sys.stderr)
    return wrong


def main():
    warnings.simplefilter("ignore")  # of the package about the empty shard
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        write_images(scratch / "images")
        wrong = sum(compare(sys.argv[1], source, scratch / ("of-" + source.name))
                    for source in [SOURCE, scratch / "images"])
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
