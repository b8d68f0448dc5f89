#!/usr/bin/env python3
"""The tables of docs/benchmarks.md as Markdown, from the documents that `dropless bench moe --json` writes.

usage: bench_rows.py FILE...     first the layer's rows; with --kernels in the run then its parts, a column a shape;
                                 then those of `--decode`

Before them the device and the rounds. Shapes stand in the order of the files. A part is given in TFLOP/s (T) or GB/s (G), whichever bounds it.
"""

import json
import sys
from pathlib import Path

NAMES = {
    (16384, 1024, 4096, 64, 1): "MB-Medium",
    (16384, 4096, 14336, 8, 2): "Mixtral",
    (8192, 6144, 10752, 16, 4): "DBRX",
    (32768, 2048, 1024, 64, 8): "OLMoE",
    (32768, 2048, 768, 128, 8): "Qwen3",
    (8192, 7168, 2048, 64, 8): "DeepSeek",
}
GIB = 1 << 30


def line(cells):
    return "| " + " | ".join(cells) + " |"


def name_of(row):
    shape = tuple(row[side] for side in ("T", "d", "f", "E", "k"))
    name = NAMES.get(shape, ",".join(map(str, shape)))
    return name if row.get("dtype", "bf16") == "bf16" else f"{name}, {row['dtype']}"


def number(value, scale=1.0):
    """Three digits, or two behind the point."""
    if value is None:
        return "-"
    value *= scale
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def layer_row(row, rivals):
    direction = "forward" if row["direction"] == "forward" else "with backward"
    if row["routing"] != "router":
        direction = f"{row['routing']}, {direction}"
    return line([
        name_of(row), direction,
        *(number(row[key]) for key in ("ms", "back_to_back_ms", "graph_ms")),
        f"{row['tflops']:.0f}", f"{row['dense_tflops']:.0f}", f"{row['of_ceiling']:.2f}",
        *(number(row["rivals"].get(name)) for name in rivals),
        number(row["ratio"]), number(row["dense_model_ms"]),
        *(number(row[key], 1 / GIB) for key in ("kept_bytes", "peak_bytes")),
    ])


def layer_table(rows):
    rivals = list(dict.fromkeys(name for row in rows for name in row["rivals"]))
    head = ["shape", "direction", "alone, ms", "in a row", "graph", "TFLOP/s", "dense", "of the ceiling",
            *rivals, "ratio", "N F", "kept", "peak"]
    return [line(head), "|" + "---|" * len(head), *(layer_row(row, rivals) for row in rows)]


def part_cell(part):
    ms = f"{part['ms']:.1f}" if part["ms"] >= 10 else f"{part['ms']:.2f}" if part["ms"] >= 0.095 else f"{part['ms']:.3f}"
    rate = f"{part['tflops']:.0f} T" if part["bound_by"] == "flops" else f"{part['gb_per_s']:.0f} G"
    return f"{ms}, {rate}, {part['of_roofline']:.2f}"


def parts_table(rows):
    def column(row):
        return name_of(row) + (f", {row['routing']}" if row["routing"] != "router" else "")

    names, cells = [], {}
    for row in rows:
        for part in row["kernels"]:
            if part["part"] not in names:
                names.append(part["part"])
            if (part["part"], column(row)) in cells:
                sys.exit(f"two runs of {column(row)}: one table of parts has room for one")
            cells[part["part"], column(row)] = part_cell(part)
    shapes = list(dict.fromkeys(column(row) for row in rows))
    return [line(["part", *shapes]), "|" + "---|" * (len(shapes) + 1),
            *(line([name, *(cells.get((name, shape), "-") for shape in shapes)]) for name in names)]


def decode_row(row):
    return line([
        ", ".join(str(row[side]) for side in ("T", "d", "f", "E", "k")) + f", {row['dtype']}" * (row["dtype"] != "bf16"),
        str(row["experts_read"]),
        f"{row['bytes'] / 1e6:.1f}", f"{row['us']:.1f}", *(f"{row[key]:.0f}" for key in ("gb_per_s", "copy_gb_per_s")),
        f"{row['of_copy']:.2f}", f"{row['torch_us']:.1f}", f"{row['ratio']:.2f}",
    ])  # fmt: skip


def decode_table(rows):
    head = ["T, d, f, E, k", "experts", "MB", "us", "GB/s", "copy", "of copy", "torch, us", "ratio"]
    return [line(head), "|" + "---|" * len(head), *(decode_row(row) for row in rows)]


def read(path):
    """The document of `bench moe --json` on a GPU, or of --decode."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows or not all(
        isinstance(row, dict) and ("back_to_back_ms" in row or "experts_read" in row) for row in rows
    ):
        sys.exit(f"{path}: not what `dropless bench moe --json` writes on a GPU (the CPU's rows are others)")
    if "error" in document:
        print(f"{path}: rows are missing: {document['error']}", file=sys.stderr)
    return document


def main(paths):
    if not paths or paths[0] in ("-h", "--help"):
        print(__doc__, file=sys.stdout if paths else sys.stderr)
        return 0 if paths else 2
    documents = [read(path) for path in paths]
    about = {
        ", ".join([document.get("device", "?"), *([f"medians of {document['rounds']}"] if "rounds" in document else []),
                   *([f"{document['calls']} runs at once"] if document.get("calls", 1) > 1 else [])])
        for document in documents
    }  # fmt: skip
    if len(about) > 1:
        sys.exit("files of several kinds, which one table would mix: " + "; ".join(sorted(about)))
    print(about.pop() + "\n")
    rows = [row for document in documents for row in document["rows"]]
    layers = [row for row in rows if "rivals" in row]
    with_parts = [row for row in layers if "kernels" in row and row["direction"] != "forward"]
    decoding = [row for row in rows if "experts_read" in row]
    tables = [(layer_table, layers), (parts_table, with_parts), (decode_table, decoding)]
    print("\n\n".join("\n".join(table(chosen)) for table, chosen in tables if chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
