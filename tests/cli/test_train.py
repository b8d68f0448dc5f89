"""What a person sees of a training run: the progress line on terminals and pipes, and the last line."""

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import termios
import time
import unittest

from command import BINARY, CommandTest


class TrainTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data()
        self.config = self.write_config()

    def on_terminal(self, columns: int, *arguments) -> str:
        """Standard error of a run whose standard error is a terminal of that width."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(
            [BINARY, "train", self.config, *arguments], cwd=self.folder, stderr=slave
        )
        os.close(slave)
        out = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # Linux says EIO once the last writer has gone
                break
            if not piece:
                break
            out += piece
        os.close(master)
        self.assertEqual(process.wait(timeout=60), 0, out)
        return out.decode()

    def test_goes_on_without_a_key_that_was_taken_out(self):
        text = (self.folder / "config.yaml").read_text().replace("model:\n", "stale: 1\nmodel:\n  stale: 1\n", 1)
        (self.folder / "config.yaml").write_text(text)
        self.assertIn("stale: unknown key", self.run_command("train", "config.yaml", "max_duration=2ba").stderr)
        without = ("stale=null", "model.stale=null", "scheduler.t_warmup=0ba")
        self.check_command("train", "config.yaml", "max_duration=2ba", *without)
        self.check_command("info", "run")
        self.check_command("train", "config.yaml", "max_duration=4ba", "autoresume=true", *without)

    def test_every_figure_fits_80_columns(self):
        out = self.on_terminal(80)
        lines = [line for line in re.split(r"[\r\n]|\x1b\[K", out) if "40/40" in line]
        self.assertTrue(lines, out)
        self.assertLessEqual(max(map(len, lines)), 79)
        self.assertRegex(
            lines[-1],
            r"\[=+ 100% =+\] 40/40 ETA 0s loss \d\.\d{4} [\d.]+( k)? tok/s load \d\.\d\dx lr 3\.\de-04",
        )

    def test_mkl_asks_the_command_for_the_processor(self):
        """Exported, the symbol takes the place of libtorch's own, and MKL its AVX-512 kernels (apps/main.cc)."""
        command = BINARY.parent.parent / "libexec" / "dropless"
        exported = subprocess.run(["nm", "-D", "--defined-only", command], capture_output=True, text=True, check=True)
        self.assertIn("mkl_serv_intel_cpu_true", exported.stdout)

    def test_a_signal_while_libtorch_is_loaded_waits_for_the_handlers(self):
        for delay in [0.005, 0.02, 0.05, 0.1, 0.15]:
            with self.subTest(delay):
                process = subprocess.Popen(
                    [BINARY, "train", self.config, f"save_folder=early-{delay}", "max_duration=10000ba"],
                    cwd=self.folder, stderr=subprocess.PIPE,
                )  # fmt: skip
                time.sleep(delay)
                process.send_signal(signal.SIGTERM)
                _, err = process.communicate(timeout=60)
                self.assertEqual(process.returncode, 0, err)
                self.assertIn(b"stopped by a signal", err)

    def test_a_warning_is_said_once(self):
        """Although the launcher reads the config too."""
        err = self.run_command("train", self.config, "python_log_level=debug", "max_duration=1ba").stderr
        self.assertEqual(err.count("python_log_level has"), 1, err)
        self.assertEqual(err.count("train config.yaml"), 1, err)
        # And by the launcher, where it refuses the config.
        err = self.run_command("train", self.config, "python_log_level=debug", "code_paths=[a]").stderr
        self.assertEqual((err.count("warning:"), err.count("error:")), (1, 1), err)

    def test_a_config_is_a_file(self):
        """A pipe could be read but once, and is not waited for."""
        os.mkfifo(self.folder / "pipe.yaml")
        for arguments in (["pipe.yaml"], [self.config, "icl_tasks=pipe.yaml"]):
            result = self.run_command("train", *arguments, timeout=10)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn("pipe.yaml", result.stderr)

    def test_the_launcher_names_what_is_missing(self):
        alone = self.folder / "bin" / "dropless"
        alone.parent.mkdir()
        shutil.copy(BINARY, alone)
        result = subprocess.run([alone, "version"], capture_output=True, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"cannot start {self.folder.resolve()}/libexec/dropless", result.stderr)
        self.assertIn("hint:", result.stderr)

    def test_goes_on_when_nobody_reads_the_progress(self):
        reader, writer = os.pipe()
        process = subprocess.Popen([BINARY, "train", self.config], cwd=self.folder, stderr=writer)
        os.close(writer)
        os.close(reader)
        self.assertEqual(process.wait(timeout=60), 0)
        self.assertTrue((self.folder / "run" / "step-40").is_dir())

    def test_no_progress_bar_means_plain_lines(self):
        out = self.on_terminal(80, "progress_bar=false")
        self.assertNotIn("\x1b", out)
        self.assertRegex(out, r"\ntrain  40/40  100%  ETA 0s  loss ")
        out = self.on_terminal(80, "progress_bar=false", "log_to_console=false", "save_folder=quiet")
        self.assertNotIn("40/40", out)

    def test_the_last_line_counts_the_tokens_trained_on(self):
        """Rows of 5 tokens where max_seq_len allows 32."""
        ids = "".join(f"{i:02x}000000" for i in (101, 32, 116, 101, 10))
        sample = '{"tokens":{"t":"ndarray","dtype":"int32","shape":[5],"hex":"%s"}}\n' % ids
        self.check_command(
            "data", "write", "short", "--columns", '{"tokens":"ndarray:int32"}', input=sample * 64
        )
        result = self.run_command(
            "train", self.config, "train_loader.dataset.local=short",
            "train_loader.dataset.split=null",
        )  # fmt: skip
        self.assertEqual(result.returncode, 0, result.stderr)
        steps = [line for line in self.metrics() if "loss/train/total" in line]
        self.assertEqual(steps[-1]["time/token"], 40 * 8 * 5)
        seconds = sum(8 * 5 / line["throughput/tokens_per_sec"] for line in steps)
        self.assertTrue(all(0 < line["throughput/data_wait"] < 1 for line in steps))
        found = re.search(r"done: 40 steps in \S+ \(([\d.]+)( k)? tokens/s\)", result.stderr)
        self.assertIsNotNone(found, result.stderr)
        rate = float(found[1]) * (1000 if found[2] else 1)
        self.assertAlmostEqual(rate / (40 * 8 * 5 / seconds), 1, delta=0.02)


if __name__ == "__main__":
    unittest.main()
