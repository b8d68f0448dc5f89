"""`dropless bench moe`: the shape of its report, on the CPU, and what it refuses."""

import json
import subprocess
import sys
import unittest
from pathlib import Path

from command import BINARY, CommandTest


class BenchMoeTest(CommandTest):
    def test_json(self):
        report = json.loads(
            self.check_command(
                "bench", "moe", "--device", "cpu", "--dtype", "fp32", "--rounds", 1, "--json",
                "--shape", "64,32,48,4,2", "--shape", "40,16,24,2,1",
            )
        )
        self.assertIn("CPU", report["device"])
        self.assertEqual(
            [(row["T"], row["d"], row["f"], row["E"], row["k"], row["direction"]) for row in report["rows"]],
            [
                (64, 32, 48, 4, 2, "forward"), (64, 32, 48, 4, 2, "forward+backward"),
                (40, 16, 24, 2, 1, "forward"), (40, 16, 24, 2, 1, "forward+backward"),
            ],
        )
        for row in report["rows"]:
            # 2 * 3 * T k d f of arithmetic forward, three times that with backward.
            passes = 1 if row["direction"] == "forward" else 3
            flops = passes * 6 * row["T"] * row["k"] * row["d"] * row["f"]
            self.assertAlmostEqual(row["tflops"] * row["ms"] * 1e9 / flops, 1, places=6)
            self.assertAlmostEqual(row["ratio"] * row["ms"] / min(row["rivals"].values()), 1, places=6)
            self.assertEqual(row["rivals"][row["best_rival"]], min(row["rivals"].values()))
            # Three formulations of a loop over experts, and of grouped products where libtorch has them.
            self.assertGreaterEqual(len([name for name in row["rivals"] if name.startswith("loop")]), 3)
            # The promise of N experts of width F beside what was measured.
            self.assertEqual(row["all_parameters"], row["E"] / row["k"])
            self.assertAlmostEqual(row["of_dense_model"] * row["dense_model_ms"] / row["ms"], 1, places=6)
            # Two pre-activations, 12 bytes a row and the offsets.
            rows = row["T"] * row["k"]
            self.assertEqual(row["kept_bytes"], rows * (2 * 4 * row["f"] + 12) + 8 * (row["E"] + 1))
            self.assertGreater(row["peak_bytes"], row["kept_bytes"])

    def test_kernels_need_a_gpu(self):
        result = self.run_command("bench", "moe", "--device", "cpu", "--kernels", "--rounds", 1)
        self.assertEqual(result.returncode, 2)
        self.assertIn("--kernels", result.stderr)

    def test_both_types_by_default(self):
        report = json.loads(
            self.check_command("bench", "moe", "--device", "cpu", "--rounds", 1, "--json", "--shape", "64,32,48,4,2")
        )
        self.assertEqual([row["dtype"] for row in report["rows"]], ["fp32", "fp32", "bf16", "bf16"])

    def test_routings(self):
        report = json.loads(
            self.check_command(
                "bench", "moe", "--device", "cpu", "--dtype", "fp32", "--rounds", 1, "--json",
                "--shape", "64,32,16,8,2", "--routing", "uniform", "--routing", "zipf", "--routing", "router",
            )
        )
        self.assertEqual([row["routing"] for row in report["rows"][::2]], ["uniform", "zipf", "router"])
        for row in report["rows"]:
            self.assertEqual(list(row["rivals"]), ["torch", "loop", "padded"])
            self.assertEqual(row["rivals"][row["best_rival"]], min(row["rivals"].values()))
            self.assertAlmostEqual(row["ratio"] * row["ms"] / min(row["rivals"].values()), 1, places=6)
            self.assertLess(row["rivals_differ_by"], 1e-5)  # they compute the same layer
            self.assertLess(row["gradients_differ_by"], 1e-5)
            self.assertGreater(row["dense_model_ms"], 0)
            self.assertGreater(row["back_to_back_ms"], 0)
            self.assertIsNone(row["graph_ms"])  # of a GPU only
            self.assertIsNone(row["peak_bytes"])  # libtorch does not count on the CPU
        for arguments in [["--routing", "even"], ["--shape", "64,4,16,8,2", "--routing", "zipf"]]:
            result = self.run_command("bench", "moe", "--device", "cpu", *arguments)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertIn("routing", result.stderr)

    def test_routing_of_a_run(self):
        run = self.folder / "run"
        run.mkdir()
        counts = [[1, 1, 1, 1, 1, 1, 1, 1], [5, 0, 1, 1, 1, 0, 0, 0]]  # the second layer's fullest has more
        lines = [{"step": 10, "mb_moe/tokens_per_expert": [[8] + [0] * 7]}, {"step": 20, "mb_moe/tokens_per_expert": counts}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')
        arguments = ["bench", "moe", "--device", "cpu", "--dtype", "fp32", "--rounds", 1, "--routing", "run"]
        report = json.loads(self.check_command(*arguments, "--json", "--shape", "64,32,16,8,2"))
        for row in report["rows"]:
            self.assertEqual(row["routing"], "run:run")
            self.assertLess(row["rivals_differ_by"], 1e-5)
        result = self.run_command(*arguments, "--shape", "64,32,16,4,2")
        self.assertEqual((result.returncode, "8 experts" in result.stderr), (2, True), result.stderr)
        self.assertEqual(result.stdout, "")
        result = self.run_command(*arguments, "--routing", "./run", "--shape", "64,32,16,8,2")
        self.assertEqual((result.returncode, "two are named run:run" in result.stderr), (2, True), result.stderr)
        (run / "metrics.jsonl").unlink()
        result = self.run_command(*arguments, "--shape", "64,32,16,8,2")
        self.assertEqual((result.returncode, result.stdout), (2, ""), result.stderr)
        self.assertIn("--routing run has no metrics.jsonl", result.stderr)
        for line in ('{"step": 1}', *(f'{{"step": 1, "mb_moe/tokens_per_expert": [[{counts}]]}}' for counts in ('1, "a"', "-1, 2", "1e308, 1", "0, 0"))):
            (run / "metrics.jsonl").write_text(line + "\n")
            result = self.run_command(*arguments, "--shape", "64,32,16,8,2")
            self.assertEqual((result.returncode, "mb_moe/tokens_per_expert" in result.stderr), (2, True), result.stderr)

    # Answers as benchmarks/moe_rivals.py does: "two" takes 2 ms forward, three times that with backward.
    PROGRAM = '''
import json, sys
for line in sys.stdin:
    question = json.loads(line)
    if "prepare" in question:
        assert question["prepare"]["T"] == 64 and question["prepare"]["device"].startswith("cpu"), question
        answer = {"rivals": {"full": "no memory", "two": "a program"}, "absent": {"none": "not installed"}}
    else:
        assert question["calls"] in (1, 4), question
        ms = {"full": None, "two": 6 if question["backward"] else 2}[question["time"]]
        answer = {"ms": ms}
    print(json.dumps(answer), flush=True)
'''

    def rivals(self, program, *options):
        (self.folder / "rivals.py").write_text(program)
        return self.run_command(
            "bench", "moe", "--device", "cpu", "--dtype", "fp32", "--rounds", 3, "--shape", "64,32,16,8,2",
            "--rivals", f"{sys.executable} {self.folder}/rivals.py", *options,
        )

    def test_rivals_of_another_program(self):
        result = self.rivals(self.PROGRAM, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = json.loads(result.stdout)["rows"]
        self.assertEqual([row["rivals"]["two"] for row in rows], [2, 6])
        for row in rows:
            self.assertEqual(list(row["rivals"]), ["torch", "loop", "padded", "full", "two"])
            self.assertIsNone(row["rivals"]["full"])
            self.assertEqual(row["rivals_absent"], {"none": "not installed"})
            self.assertEqual(row["rival_versions"]["two"], "a program")
        table = self.rivals(self.PROGRAM).stdout
        self.assertRegex(table, r"two +2\.000 ms")
        self.assertIn("none          not there: not installed", table)

    def test_several_calls_at_once(self):
        result = self.rivals(self.PROGRAM, "--json", "--calls", 4)
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual((report["calls"], [row["rivals"]["two"] for row in report["rows"]]), (4, [2, 6]))
        self.assertIn("4 runs at once", self.rivals(self.PROGRAM, "--calls", 4).stdout)
        for wrong in ("0", "x", "101"):
            self.assertEqual(self.rivals(self.PROGRAM, "--calls", wrong).returncode, 2, wrong)
        result = self.run_command("bench", "moe", "--device", "cpu", "--decode", "--calls", 4)
        self.assertEqual((result.returncode, "--calls" in result.stderr), (2, True), result.stderr)

    def test_names_of_rivals_are_their_own(self):
        for name in ("own", "torch", "graph", "back_to_back"):
            result = self.rivals(self.PROGRAM.replace('"two"', f'"{name}"'))
            self.assertEqual((result.returncode, f"the name {name} is taken" in result.stderr), (2, True), result.stderr)

    def test_rivals_want_a_program(self):
        result = self.run_command("bench", "moe", "--device", "cpu", "--rivals", "")
        self.assertEqual((result.returncode, "--rivals names no program" in result.stderr), (2, True), result.stderr)

    def test_rivals_that_answer_badly(self):
        for program, message in [
            ("", "ended"), ("input(); raise SystemExit(3)", "(exit code 3)"),
            ("import os\ninput()\nos.kill(os.getpid(), 9)", "(exit code 137)"), ("print('no JSON', flush=True); input()", "no JSON"), ("import time; print({}); input()", "{}"),
            ("import json\ninput()\nprint(json.dumps({'rivals': {'a': 1}}))", "rivals"),
            ("input(); print('{\"rivals\": {}, \"absent\": {}}', flush=True); input()", "has no rival"),
            (self.PROGRAM.replace('"two": "a', r'"a\x1b[31m": "a'), r"a\u001b[31m"),
            (self.PROGRAM.replace("else 2}", "else 0}"), '{"ms":0}'),
        ]:
            result = self.rivals(program)
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertIn("--rivals", result.stderr)
            self.assertIn(message, result.stderr)

    def test_rows_before_a_failure_are_printed(self):
        program = self.PROGRAM.replace('["T"] == 64 and', '["T"] == 64 and question["prepare"]["f"] == 16 and')
        result = self.rivals(program, "--json", "--shape", "64,32,24,8,2")
        self.assertEqual((result.returncode, "ended without an answer" in result.stderr), (1, True), result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual([row["f"] for row in report["rows"]], [16, 16])
        self.assertIn("ended without an answer", report["error"])
        # What no memory holds, behind what it does; also of the CPU's own table and of few tokens.
        for options in (["--dtype", "fp32"], ["--decode"], ["--routing", "uniform"]):
            result = self.run_command(
                "bench", "moe", "--device", "cpu", "--rounds", 1, "--json", *options,
                "--shape", "4,16,8,2,1", "--shape", "4,1048576,67108864,2,1",
            )
            self.assertEqual((result.returncode, "--shape" in result.stderr), (1, True), result.stderr)
            report = json.loads(result.stdout)
            self.assertEqual({row["d"] for row in report["rows"]}, {16}, options)
            self.assertEqual((report["rounds"], "memory" in report["error"]), (1, True), report["error"])

    def test_rows_before_a_signal_are_printed(self):
        program = self.PROGRAM.replace(
            'if "prepare" in question:', 'if question.get("prepare", {}).get("f") == 24:\n        open("second", "w")\n        import time; time.sleep(1000)\n    if "prepare" in question:'
        )
        (self.folder / "rivals.py").write_text(program)
        command = [str(BINARY), "bench", "moe", "--device", "cpu", "--rounds", "1", "--json"]
        command += ["--shape", "64,32,16,8,2", "--shape", "64,32,24,8,2", "--rivals", f"exec {sys.executable} {self.folder}/rivals.py"]
        with subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            self.wait_for(lambda: (self.folder / "second").exists())
            running.terminate()
            out, told = running.communicate(timeout=60)
        self.assertEqual((running.returncode, b"SIGTERM" in told), (1, True), told)
        report = json.loads(out)
        self.assertEqual(([row["f"] for row in report["rows"]], "SIGTERM" in report["error"]), ([16, 16], True))

    def test_what_a_rival_started_ends_with_the_command(self):
        (self.folder / "rivals.py").write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()) + '.')\ntime.sleep(1000)\n")
        command = [str(BINARY), "bench", "moe", "--device", "cpu", "--rounds", "1", "--shape", "64,32,16,8,2"]
        command += ["--rivals", f"{sys.executable} {self.folder}/rivals.py; true"]
        with subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
            pid = self.folder / "pid"
            self.wait_for(lambda: pid.exists() and pid.read_text().endswith("."))
            running.terminate()
            # The program has our standard error too: it is over when that is.
            self.assertIn(b"SIGTERM", running.communicate(timeout=30)[1])
        self.wait_for(lambda: self.has_ended(pid.read_text()[:-1]))

    @staticmethod
    def has_ended(pid):
        try:
            return ") Z " in Path("/proc", pid, "stat").read_text()
        except OSError:
            return True

    def test_what_a_rival_left_running_ends_too(self):
        program = "import subprocess\nopen('pid', 'w').write(str(subprocess.Popen(['sleep', '1000']).pid))\n" + self.PROGRAM
        result = self.rivals(program)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.wait_for(lambda: self.has_ended((self.folder / "pid").read_text()))

    def test_table_names_the_device_and_every_shape(self):
        lines = self.check_command(
            "bench", "moe", "--device", "cpu", "--dtype", "bf16", "--rounds", 1, "--shape", "64,32,48,4,2"
        ).splitlines()
        self.assertRegex(lines[0], r"^CPU, \d+ threads?, bf16, medians of 1$")
        self.assertEqual(len(lines), 4)

    def test_decode(self):
        arguments = ["bench", "moe", "--device", "cpu", "--dtype", "fp32", "--rounds", 1, "--decode"]
        report = json.loads(self.check_command(*arguments, "--json", "--shape", "3,32,48,8,2", "--shape", "1,16,8,4,1"))
        self.assertEqual([(row["T"], row["E"]) for row in report["rows"]], [(3, 8), (1, 4)])
        for row in report["rows"]:
            # k experts for one token, at most k for each of several; their three matrices and the router are read.
            self.assertIn(row["experts_read"], [1] if row["T"] == 1 else range(2, 7))
            numbers = 3 * row["experts_read"] * row["d"] * row["f"] + row["E"] * row["d"]
            self.assertEqual(row["bytes"], 4 * numbers)
            self.assertAlmostEqual(row["gb_per_s"] * row["us"] * 1e3 / row["bytes"], 1, places=6)
            self.assertAlmostEqual(row["of_copy"] * row["copy_gb_per_s"] / row["gb_per_s"], 1, places=6)
            self.assertAlmostEqual(row["ratio"] * row["us"] / row["torch_us"], 1, places=6)
            self.assertLess(row["rival_differs_by"], 1e-5)
        lines = self.check_command(*arguments, "--shape", "3,32,48,8,2").splitlines()
        for dtype in ("fp16", "bf16"):
            short = ["bench", "moe", "--device", "cpu", "--rounds", 1, "--decode", "--dtype", dtype]
            row = json.loads(self.check_command(*short, "--json", "--shape", "1,32,48,8,2"))["rows"][0]
            self.assertEqual(row["bytes"], 2 * (3 * 2 * 32 * 48 + 8 * 32))
            refused = self.run_command(*short, "--shape", "1,60,48,8,2")
            self.assertEqual(refused.returncode, 2)
            self.assertIn("d = 60", refused.stderr)
        self.assertEqual(len(lines), 3)
        for option in (["--routing", "zipf"], ["--kernels"]):
            refused = self.run_command(*arguments, *option)
            self.assertEqual(refused.returncode, 2)
            self.assertIn(option[0], refused.stderr)

    def test_types_of_the_table(self):
        for dtype, said in (("fp16", "--routing"), ("int8", "unknown dtype int8")):
            result = self.run_command("bench", "moe", "--device", "cpu", "--dtype", dtype)
            self.assertEqual((result.returncode, said in result.stderr), (2, True), result.stderr)

    def test_refuses_what_is_no_shape(self):
        for shape in ["64,32,48,4", "64,32,48,4,5", "0,32,48,4,2", "64,32,48,4,2,1", "a", "99999999999999999999,32,48,4,2"]:
            result = self.run_command("bench", "moe", "--device", "cpu", "--shape", shape)
            self.assertEqual(result.returncode, 2, shape)
            self.assertIn("T,d,f,E,k", result.stderr)
        for shape, said in (("64,32,48,4,5", "k = 5 of E = 4"), ("0,32,48,4,2", "T = 0"), ("64,-8,48,4,2", "d = -8")):
            self.assertIn(said, self.run_command("bench", "moe", "--device", "cpu", "--shape", shape).stderr)


if __name__ == "__main__":
    unittest.main()
