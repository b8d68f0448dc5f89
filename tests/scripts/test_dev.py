"""The entry script in a scratch copy with stand-ins for the system's tools: what it asks for, what it
prints where, and how it fails. Nothing is installed or built."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


class DevTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name, "tree")
        self.root.mkdir()
        self.root.parent.chmod(0o755)
        shutil.copy(REPOSITORY / "dev", self.root / "dev")
        shutil.copytree(REPOSITORY / "scripts", self.root / "scripts")
        self.tools = self.root / "tools"
        self.tools.mkdir()

    def tool(self, name, script):
        path = self.tools / name
        path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def dev(self, *arguments, **options):
        environment = {"PATH": f"{self.tools}:{os.environ['PATH']}", "HOME": str(self.root)}
        return subprocess.run(
            [self.root / "dev", *arguments], capture_output=True, text=True, check=False, env=environment,
            stdin=subprocess.DEVNULL, timeout=120, **options,
        )

    def shell(self, script):
        """Runs `script` with the parts of ./dev loaded."""
        parts = "; ".join(f". {self.root}/scripts/dev/{part}.sh" for part in ("stage", "setup", "build", "check"))
        return subprocess.run(
            ["bash", "-c", f"set -euo pipefail; root={self.root}; caller_dir=$PWD; {parts}; {script}"],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120,
        )

    def test_help_names_every_verb(self):
        result = self.dev("help")
        self.assertEqual(result.returncode, 0, result.stderr)
        for verb in ("demo", "test", "build", "run", "bench", "gpu", "wheel", "check", "format", "clean"):
            self.assertRegex(result.stdout, rf"(?m)^  {verb} ")
        self.assertEqual(self.dev().stdout, result.stdout)

    def test_unknown_verb(self):
        for wrong, meant in (("biuld", "build"), ("tset", "test"), ("formt", "format"), ("benchmark", "bench")):
            result = self.dev(wrong)
            self.assertEqual((result.returncode, result.stdout), (2, ""))
            self.assertIn(f"did you mean '{meant}'?", result.stderr)
        for wrong in ("xyzzy", "-x"):
            result = self.dev(wrong)
            self.assertEqual(result.returncode, 2)
            self.assertNotIn("did you mean", result.stderr)

    def test_bad_arguments(self):
        self.tool("dpkg-query", "exit 1")
        self.tool("apt-get", "exit 1")
        for arguments in (("build", "cpv"), ("build", "cpu", "asan"), ("clean", "all"), ("demo", "tiny"), ("wheel",)):
            result = self.dev(*arguments)
            self.assertEqual((result.returncode, result.stdout), (2, ""), arguments)
            self.assertIn("HINT: ", result.stderr)

    def gpu(self, arguments):
        """`./dev gpu` with a stand-in for all that is built."""
        programs = self.root / "build" / "cuda" / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        rows = {"rows": [], "device": "a GPU"}
        for name in ("permute_cuda_benchmark", "ladder", "dropless"):
            (programs / name).write_text(f'#!/bin/bash\necho ran {name} "$@" >&2\ncat "$0.json" 2>/dev/null || true\n')
            (programs / name).chmod(0o755)
        (programs / "dropless.json").write_text(str(rows).replace("'", '"'))
        (self.root / "scripts" / "bench_rows.py").write_text("import sys; print('table of', sys.argv[1].split('/')[-1])")
        (self.root / "bin").mkdir(exist_ok=True)
        if not (self.root / "bin" / "python").exists():
            (self.root / "bin" / "python").symlink_to(sys.executable)
        self.tool("compute-sanitizer", 'echo "$2" "${5##*/}" "${@:6}" >&2')
        return self.shell(
            f"PATH={self.tools}:$PATH; venv={self.root}; has_gpu() {{ true; }}; check_preset() {{ :; }}; "
            f"build_all() {{ :; }}; run_tests() {{ echo tests \"$@\" >&2; }}; "
            f"command_of() {{ echo {programs}/dropless; }}; verb_gpu {arguments}"
        )

    def test_gpu_fills_the_tables(self):
        result = self.gpu("--rounds 3 --rivals 'python3 rivals.py'")
        self.assertEqual(result.returncode, 0, result.stderr)
        for line in (
            "tests cuda -L ^gpu$", "ran permute_cuda_benchmark --rounds 3", "ran ladder",
            "ran dropless bench moe --json --kernels --rounds 3 --rivals python3 rivals.py",
            "ran dropless bench moe --json --decode --rounds 3",
        ):  # fmt: skip
            self.assertIn(line, result.stderr)
        self.assertIn("table of layer.json", result.stdout)
        self.assertIn("table of skew.json", result.stdout)
        self.assertNotIn("memcheck", result.stderr)

    def test_gpu_sanitizes_on_request(self):
        result = self.gpu("--sanitize")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("memcheck moe_cuda_test --gtest_brief=1 --gtest_filter=*T130_*", result.stderr)
        self.assertIn("racecheck small_batch_cuda_test --gtest_brief=1 --gtest_filter=*ManyExperts*", result.stderr)
        for arguments, message in (("--round 3", "no option '--round'"), ("--rounds", "--rounds needs a value")):
            result = self.gpu(arguments)
            self.assertEqual((result.returncode, message in result.stderr), (2, True), result.stderr)

    def test_missing_packages_without_root(self):
        # Everything is installed but mold and libfmt-dev; libgtest-dev was removed.
        self.tool(
            "dpkg-query",
            'for p in "${@:3}"; do case $p in -*|mold|libfmt-dev) ;; libgtest-dev) echo "config-files $p";;'
            ' *) echo "installed $p";; esac; done; exit 1',
        )
        self.tool("sudo", "exit 1")
        self.root.chmod(0o777)
        unprivileged = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        result = self.dev("build", "cpu", **unprivileged)
        self.assertEqual((result.returncode, result.stdout), (2, ""), result.stderr)
        self.assertIn("sudo apt-get install -y mold libfmt-dev libgtest-dev\n", result.stderr)

    def test_failing_install_shows_its_log(self):
        if os.geteuid() != 0:
            self.skipTest("needs root")
        self.tool("dpkg-query", "exit 1")
        self.tool("apt-get", 'echo "apt-get $*"; [[ $* != *install* ]]')
        result = self.dev("build", "cpu")
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn("end of build/logs/packages.log", result.stderr)
        self.assertRegex(result.stderr, r"apt-get .*install -y --no-install-recommends ca-certificates g\+\+")

    def test_stage_passes_and_fails(self):
        result = self.shell("stage 'a b' hint echo quiet; echo after")
        self.assertEqual((result.returncode, result.stdout), (0, "after\n"))
        self.assertRegex(result.stderr, r"^a b +\d+\.\d s\n$")
        self.assertEqual((self.root / "build/logs/a-b.log").read_text(encoding="utf-8"), "quiet\n")

        result = self.shell("broken() { seq 100; return 7; }; stage x 'turn it off' broken; echo after")
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        self.assertIn("FAILED (exit code 7)", result.stderr)
        self.assertIn("\n61\n", result.stderr)
        self.assertNotIn("\n60\n", result.stderr)
        self.assertIn("HINT: turn it off", result.stderr)

    def test_passed_tests_are_left_out_of_ctest_output(self):
        output = "\n".join(
            (
                "Test project /x", "        Start   1: A.b", "  1/12 Test   #1: A.b ......   Passed    0.01 sec",
                " 2/12 Test #2: C.d ......***Failed    0.01 sec", "expected 1", "",
                "50% tests passed, 1 tests failed out of 2", "", "The following tests did not run:",
                "\t  3 - E.f (Skipped)",
            )
        )
        result = self.shell(f"ctest_essentials <<'END'\n{output}\nEND")
        self.assertEqual(
            result.stdout,
            " 2/12 Test #2: C.d ......***Failed    0.01 sec\nexpected 1\n\n50% tests passed, 1 tests failed out of 2\n\n"
            "1 tests skipped (no GPU here, or as the log says)\n",
        )

    def test_every_package_line_has_a_group(self):
        for line in (REPOSITORY / "scripts/apt-packages.txt").read_text(encoding="utf-8").splitlines():
            self.assertRegex(line, r"^(#.*|(build|check|fuzz|nightly) +[a-z0-9.+-]+)$")


if __name__ == "__main__":
    unittest.main()
