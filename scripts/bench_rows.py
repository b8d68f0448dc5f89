#!/usr/bin/env python3
"""The tables of docs/benchmarks.md as Markdown, from the documents that `dropless bench moe --json` writes.

usage: bench_rows.py FILE...     first the layer's rows; with --kernels in the run then its parts, a column a shape;
                                 then those of `--decode`

Before them the device and the rounds, and what --rivals had and had not. Shapes stand in the order of the files. A part is
given in TFLOP/s (T) or GB/s (G), whichever bounds it.
"""

import json
import sys
from pathlib import Path

from standard_output import write

NAMES = {
    (16384, 1024, 4096, 64, 1): "MB-Medium",
    (16384, 4096, 14336, 8, 2): "Mixtral",
    (8192, 6144, 10752, 16, 4): "DBRX",
    (32768, 2048, 1024, 64, 8): "OLMoE",
    (32768, 2048, 768, 128, 8): "Qwen3",
    (8192, 7168, 2048, 64, 8): "DeepSeek",
}
GIB = 1 << 30

SIDES = ("T", "d", "f", "E", "k")
NUMBER = (int, float)
NUMBER_OR_NULL = (*NUMBER, type(None))  # null: not measured, for want of memory for one
LAYER_FIELDS = {
    **dict.fromkeys(SIDES, NUMBER), "routing": str, "direction": str,
    **dict.fromkeys(("tflops", "dense_tflops", "of_ceiling"), NUMBER), "rivals": dict,
    **dict.fromkeys(("ms", "back_to_back_ms", "graph_ms", "ratio", "dense_model_ms", "kept_bytes", "peak_bytes"), NUMBER_OR_NULL),
}  # fmt: skip
PART_FIELDS = {"part": str, "bound_by": str, **dict.fromkeys(("ms", "tflops", "gb_per_s", "of_roofline"), NUMBER)}
DECODE_FIELDS = {
    **dict.fromkeys(SIDES, NUMBER), "dtype": str,
    **dict.fromkeys(("experts_read", "bytes", "us", "gb_per_s", "copy_gb_per_s", "of_copy", "torch_us", "ratio"), NUMBER),
}  # fmt: skip
OPTIONAL_FIELDS = {"dtype": str, "kernels": list, "rival_versions": dict, "rivals_absent": dict}


def line(cells):
    return "| " + " | ".join(cells) + " |"


def name_of(row):
    shape = tuple(row[side] for side in SIDES)
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
        ", ".join(str(row[side]) for side in SIDES) + f", {row['dtype']}" * (row["dtype"] != "bf16"),
        str(row["experts_read"]),
        f"{row['bytes'] / 1e6:.1f}", f"{row['us']:.1f}", *(f"{row[key]:.0f}" for key in ("gb_per_s", "copy_gb_per_s")),
        f"{row['of_copy']:.2f}", f"{row['torch_us']:.1f}", f"{row['ratio']:.2f}",
    ])  # fmt: skip


def decode_table(rows):
    head = ["T, d, f, E, k", "experts", "MB", "us", "GB/s", "copy", "of copy", "torch, us", "ratio"]
    return [line(head), "|" + "---|" * len(head), *(decode_row(row) for row in rows)]


def rivals_line(rows):
    """Of --rivals; None where the runs had none."""
    def told(field):
        pairs = ((name, " ".join(about.split())) for row in rows for name, about in row.get(field, {}).items())
        return ", ".join(f"{name} ({about})" for name, about in dict.fromkeys(pairs))

    there, absent = told("rival_versions"), told("rivals_absent")
    if not there:
        return f"rivals absent: {absent}" if absent else None
    return f"rivals: {there}" + (f"; absent: {absent}" if absent else "")


def check_fields(place, given, fields, prefix=""):
    for name, kind in fields.items():
        if name not in given:
            sys.exit(f"{place}: {prefix}{name} is missing")
        if not isinstance(given[name], kind):
            sys.exit(f"{place}: {prefix}{name} is {json.dumps(given[name])}, not what `dropless bench moe --json` writes")


def check_row(place, row):
    if "experts_read" in row:
        return check_fields(place, row, DECODE_FIELDS)
    check_fields(place, row, LAYER_FIELDS)
    check_fields(place, row, {name: kind for name, kind in OPTIONAL_FIELDS.items() if name in row})
    for field, kind in (("rivals", NUMBER_OR_NULL), ("rival_versions", str), ("rivals_absent", str)):
        names = row.get(field, {})
        check_fields(place, names, dict.fromkeys(names, kind), f"{field}.")
    for i, part in enumerate(row.get("kernels", [])):
        check_fields(f"{place}.kernels[{i}]", part if isinstance(part, dict) else {}, PART_FIELDS)


def read(path):
    """The document of `bench moe --json` on a GPU, or of --decode."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    except ValueError as error:
        sys.exit(f"{path}: no JSON document ({error}): give what `dropless bench moe --json` printed")
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows or not all(
        isinstance(row, dict) and ("back_to_back_ms" in row or "experts_read" in row) for row in rows
    ):
        sys.exit(f"{path}: not what `dropless bench moe --json` writes on a GPU (the CPU's rows are others)")
    check_fields(path, document, {"device": str, **{name: int for name in ("rounds", "calls") if name in document}})
    for i, row in enumerate(rows):
        check_row(f"{path}: rows[{i}]", row)
    if "error" in document:
        print(f"{path}: rows are missing: {document['error']}", file=sys.stderr)
    return document


def main(paths):
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    if paths[0] in ("-h", "--help"):
        return write(__doc__)
    documents = [read(path) for path in paths]
    about = {
        ", ".join([document["device"], *([f"medians of {document['rounds']}"] if "rounds" in document else []),
                   *([f"{document['calls']} runs at once"] if document.get("calls", 1) > 1 else [])])
        for document in documents
    }  # fmt: skip
    if len(about) > 1:
        sys.exit("files of several kinds, which one table would mix: " + "; ".join(sorted(about)))
    rows = [row for document in documents for row in document["rows"]]
    layers = [row for row in rows if "experts_read" not in row]
    with_parts = [row for row in layers if "kernels" in row and row["direction"] != "forward"]
    decoding = [row for row in rows if "experts_read" in row]
    tables = [(layer_table, layers), (parts_table, with_parts), (decode_table, decoding)]
    header = [about.pop(), *filter(None, [rivals_line(layers)])]
    return write("\n\n".join("\n".join(lines) for lines in [header, *(table(chosen) for table, chosen in tables if chosen)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
