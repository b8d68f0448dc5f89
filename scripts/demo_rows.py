#!/usr/bin/env python3
"""Writes files, one after the other, as rows for `dropless data write`: LENGTH bytes each, the first of them
the last of the row before, so that an evaluation scores every byte but the very first.

usage: demo_rows.py LIST LENGTH     LIST: one path a line
"""

import json
import struct
import sys
from pathlib import Path


def rows(data, length):
    """Lists of at most `length` byte values, overlapping by one."""
    return [list(data[begin : begin + length]) for begin in range(0, len(data) - 1, length - 1)]


def main(arguments):
    if len(arguments) != 2:
        print("usage: demo_rows.py LIST LENGTH", file=sys.stderr)
        return 2
    paths = Path(arguments[0]).read_text(encoding="utf-8").splitlines()
    data = b"".join(Path(path).read_bytes() for path in paths)
    for row in rows(data, int(arguments[1])):
        tokens = struct.pack(f"<{len(row)}i", *row).hex()
        print(json.dumps({"tokens": {"t": "ndarray", "dtype": "int32", "shape": [len(row)], "hex": tokens}}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
