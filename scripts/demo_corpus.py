#!/usr/bin/env python3
"""Lists the demo's corpus: the Python standard library's .py sources of the interpreter that runs this.

Files are sorted by relative path, without tests, encodings (tables) and packages of third parties; every
20th, from index 7, is held out. Real text that every machine has.

usage: demo_corpus.py OUT        writes OUT/train.txt and OUT/held_out.txt: one absolute path a line
"""

import os
import sys
import sysconfig
from pathlib import Path

SKIPPED_FOLDERS = {
    "__pycache__",
    "_vendor",
    "dist-packages",
    "encodings",
    "idle_test",
    "pip",
    "setuptools",
    "site-packages",
    "test",
    "tests",
}
HOLD_OUT_EVERY = 20
HOLD_OUT_FIRST = 7


def list_sources(root):
    """Relative paths below `root`, sorted as strings with '/', so that all machines agree."""
    sources = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for name in files:
            if name.endswith(".py") and os.path.isfile(os.path.join(folder, name)):
                sources.append(Path(folder, name).relative_to(root).as_posix())
    return sorted(sources)


def split(sources):
    """(train, held out), each in order."""
    held_out = sources[HOLD_OUT_FIRST::HOLD_OUT_EVERY]
    chosen = set(held_out)
    return [source for source in sources if source not in chosen], held_out


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: demo_corpus.py OUT", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    root = Path(sysconfig.get_path("stdlib"))
    out = Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    sources = list_sources(root)
    if len(sources) <= HOLD_OUT_FIRST:
        print(f"demo_corpus.py: only {len(sources)} sources below {root}", file=sys.stderr)
        return 1
    for name, part in zip(("train", "held_out"), split(sources)):
        (out / f"{name}.txt").write_text("".join(f"{root / source}\n" for source in part), encoding="utf-8")
        size = sum((root / source).stat().st_size for source in part)
        print(f"{name}: {len(part)} files, {size / 1e6:.2f} MB below {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
