"""Tables of two made-up shapes as bench_rows.py writes them."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_rows.py"
ROW = {
    "T": 32768, "d": 2048, "f": 1024, "E": 64, "k": 8, "dtype": "bf16", "routing": "router", "direction": "forward",
    "ms": 4.987, "back_to_back_ms": 5.5, "graph_ms": None, "tflops": 661.4, "dense_tflops": 788.2, "of_ceiling": 0.904,
    "rivals": {"torch": 11.44, "loop": 12, "padded": None}, "best_rival": "torch", "ratio": 2.294,
    "dense_model_ms": 4.88, "kept_bytes": 1 << 30, "peak_bytes": 3 << 29,
}  # fmt: skip
PARTS = [
    {"part": "up", "calls": 1, "ms": 3.61, "share": 0.2, "tflops": 608.4, "gb_per_s": 627,
     "bound_by": "flops", "of_roofline": 0.94},
    {"part": "route", "calls": 1, "ms": 0.0414, "share": 0.0, "tflops": 0, "gb_per_s": 256.2,
     "bound_by": "bytes", "of_roofline": 0.06},
]
FEW = {
    "T": 8, "d": 2048, "f": 1024, "E": 64, "k": 8, "dtype": "bf16", "experts_read": 40, "bytes": 503578624, "us": 126.23,
    "gb_per_s": 3989.3, "copy_gb_per_s": 4155.9, "of_copy": 0.9599, "torch_us": 266.99, "ratio": 2.115, "rival_differs_by": 0.004,
}  # fmt: skip


class BenchRowsTest(unittest.TestCase):
    def tables(self, *documents):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for i, rows in enumerate(documents):
                paths.append(Path(folder, f"{i}.json"))
                paths[-1].write_text(json.dumps({"device": "a GPU", "rounds": 9, "rows": rows}), encoding="utf-8")
            result = subprocess.run([sys.executable, SCRIPT, *paths], capture_output=True, text=True, check=True)
        lines = result.stdout.splitlines()
        self.assertEqual(lines[:2], ["a GPU, medians of 9", ""])
        return lines[2:]

    def test_rows_of_the_layer(self):
        rows = self.tables([ROW, {**ROW, "direction": "forward+backward", "routing": "zipf", "ms": 15.27}])
        self.assertEqual(len(rows), 4)
        self.assertIn("| torch | loop | padded | ratio |", rows[0])
        self.assertEqual(
            rows[2],
            "| OLMoE | forward | 4.99 | 5.50 | - | 661 | 788 | 0.90 | 11.4 | 12.0 | - | 2.29 | 4.88 | 1.00 | 1.50 |",
        )
        self.assertTrue(rows[3].startswith("| OLMoE | zipf, with backward | 15.3 |"), rows[3])
        self.assertEqual({row.count("|") for row in rows}, {16})

    def test_parts_have_a_column_a_shape(self):
        both = {**ROW, "direction": "forward+backward", "kernels": PARTS}
        rows = self.tables([both], [{**both, "T": 5, "kernels": PARTS[:1]}])[5:]
        self.assertEqual(rows[0], "| part | OLMoE | 5,2048,1024,64,8 |")
        self.assertEqual(rows[2], "| up | 3.61, 608 T, 0.94 | 3.61, 608 T, 0.94 |")
        self.assertEqual(rows[3], "| route | 0.041, 256 G, 0.06 | - |")

    def test_decoding(self):
        rows = self.tables([FEW], [ROW])
        self.assertEqual(rows[3:5], ["", "| T, d, f, E, k | experts | MB | us | GB/s | copy | of copy | torch, us | ratio |"])
        self.assertEqual(rows[6], "| 8, 2048, 1024, 64, 8 | 40 | 503.6 | 126.2 | 3989 | 4156 | 0.96 | 267.0 | 2.12 |")
        self.assertEqual(self.tables([FEW])[0][:3], "| T")

    def test_rows_with_other_rivals_and_routings(self):
        more = {**ROW, "rivals": {**ROW["rivals"], "sonic": 6.3}}
        rows = self.tables([ROW, more])
        self.assertEqual({row.count("|") for row in rows}, {17})
        self.assertIn("| - | - | 2.29 |", rows[2])
        both = {**ROW, "direction": "forward+backward", "kernels": PARTS}
        self.assertIn("| part | OLMoE | OLMoE, zipf |", self.tables([both, {**both, "routing": "zipf"}]))

    def run_on(self, document, redirect=""):
        """Of a document, or of a file's text."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(document if isinstance(document, str) else json.dumps(document)), file.flush()
            command = ["bash", "-c", '"$@" ' + redirect, "bash", sys.executable, SCRIPT, file.name]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertNotIn("Traceback", result.stderr)
        self.assertNotIn("Exception ignored", result.stderr)
        return result

    def test_rivals_of_a_program(self):
        given = {"rival_versions": {"sonic": "sonic-moe 0.1"}, "rivals_absent": {"hf": "no module\nnamed hf"}}
        other = {"rival_versions": {}, "rivals_absent": {"sonic": "f of 8", "hf": "no module named hf"}}
        rows = [{**ROW, **given}, {**ROW, **given, "routing": "zipf"}, {**ROW, **other, "f": 8}]
        lines = self.run_on({"device": "a GPU", "rounds": 9, "rows": rows}).stdout.splitlines()
        self.assertEqual(
            lines[:3],
            ["a GPU, medians of 9", "rivals: sonic (sonic-moe 0.1); absent: hf (no module named hf), sonic (f of 8)", ""],
        )
        only = {"rival_versions": {}, "rivals_absent": {"hf": "no GPU"}}
        lines = self.run_on({"device": "a GPU", "rows": [{**ROW, **only}]}).stdout.splitlines()
        self.assertEqual(lines[:3], ["a GPU", "rivals absent: hf (no GPU)", ""])

    def test_rows_that_lack_something(self):
        def without(row, name):
            return {key: value for key, value in row.items() if key != name}

        parts = {**ROW, "direction": "forward+backward", "kernels": PARTS}
        for row, name in (
            *((without(FEW, name), name) for name in ("T", "dtype", "bytes", "torch_us", "ratio")),
            *((without(ROW, name), name) for name in ("T", "routing", "direction", "rivals", "ms", "tflops", "peak_bytes")),
            ({**FEW, "us": "1"}, "us"), ({**FEW, "of_copy": None}, "of_copy"), ({**ROW, "ms": "1"}, "ms"),
            ({**ROW, "rivals": [1]}, "rivals"), ({**ROW, "rivals": {"torch": "x"}}, "rivals.torch"),
            ({**ROW, "rivals_absent": ["x"]}, "rivals_absent"), ({**ROW, "rival_versions": {"x": 1}}, "rival_versions.x"),
            ({**parts, "kernels": 1}, "kernels"), ({**parts, "kernels": [without(PARTS[0], "bound_by")]}, "bound_by"),
        ):  # fmt: skip
            with self.subTest(row=row, name=name):
                result = self.run_on({"device": "a GPU", "rows": [ROW, row]})
                self.assertEqual((result.returncode, result.stdout), (1, ""))
                self.assertRegex(result.stderr, rf"rows\[1\]\S*: {name} ")
        for document in ({"rows": [ROW]}, {"device": 1, "rows": [ROW]}):
            self.assertIn(": device ", self.run_on(document).stderr)
        self.assertIn(": calls ", self.run_on({"device": "a GPU", "calls": "1", "rows": [ROW]}).stderr)

    def test_no_json(self):
        for text in ("", "no JSON", "{}{}"):
            result = self.run_on(text)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertRegex(result.stderr, "no JSON document .*: give what `dropless bench moe --json` printed")

    def test_no_reader(self):
        self.assertEqual(self.run_on({"device": "a GPU", "rows": [ROW]}, "| true").stderr, "")
        result = self.run_on({"device": "a GPU", "rows": [ROW]}, "> /dev/full")
        self.assertEqual((result.returncode, result.stderr.count("\n")), (1, 1), result.stderr)
        self.assertIn("cannot write to standard output: No space left", result.stderr)

    def test_wants_a_file(self):
        def run(*arguments):
            return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)

        self.assertEqual((run().returncode, "usage" in run().stderr), (2, True))
        self.assertEqual((run("--help").returncode, "usage" in run("--help").stdout), (0, True))
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            for text in ("", "{}", "[1]", '{"rows": [{"ms": 1}]}', '{"rows": [1]}', '{"rows": []}'):
                file.seek(0), file.truncate(), file.write(text), file.flush()
                result = run(file.name)
                self.assertEqual((result.returncode, result.stdout), (1, ""), text)
                self.assertIn(file.name, result.stderr, text)
                self.assertNotIn("Traceback", result.stderr, text)
            other = Path(file.name + ".other")
            self.addCleanup(other.unlink)
            for path, calls in ((Path(file.name), 1), (other, 5)):
                path.write_text(json.dumps({"device": "a GPU", "calls": calls, "rows": [ROW], "error": "full"}))
            result = run(file.name, str(other))
            self.assertEqual((result.returncode, "5 runs at once" in result.stderr), (1, True), result.stderr)
            result = run(file.name)
            self.assertEqual((result.returncode, "rows are missing: full" in result.stderr), (0, True), result.stderr)
        self.assertIn("No such file", run("absent.json").stderr)


if __name__ == "__main__":
    unittest.main()
