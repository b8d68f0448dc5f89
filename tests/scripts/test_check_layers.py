"""Plants violations of every rule in a small tree and expects check_layers.py to name file, line and rule."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

CHECKER = Path(__file__).parents[2] / "scripts" / "check_layers.py"

# A tree that follows the rules, down the main path.
SOUND = {
    "include/dropless/error.h": "#pragma once\n#include <string>\n",
    "include/dropless/moe.h": '#include "dropless/error.h"\n',
    "src/common/check.h": '#include "dropless/error.h"\n',
    "src/cpu/kernels.h": '#include "dropless/moe.h"\n',
    "src/cpu/reference/moe.cc": '#include "src/cpu/kernels.h"\n#include "src/common/check.h"\n',
    "src/cuda/device/tile.h": "#include <cuda_fp16.h>\n#include <cstdint>\n",
    "src/cuda/kernels.h": '#include "dropless/moe.h"\n',
    "src/cuda/moe.cu": '#include "src/cuda/device/tile.h"\n#include "src/cuda/kernels.h"\n',
    "src/ops/moe.cc": '#include "src/cpu/kernels.h"\n#include "src/cuda/kernels.h"\n',
    "train/base/log.h": "#include <fmt/format.h>\n",
    "train/bridge/autograd.h": '#include <torch/torch.h>\n#include "dropless/moe.h"\n',
    "train/data/mds.h": '#include "train/base/log.h"\n#include "dropless/error.h"\n',
    "train/nn/moe.h": '#include <torch/nn.h>\n#include "train/bridge/autograd.h"\n',
    "train/optim/adamw.h": "#include <ATen/ATen.h>\n",
    "train/checkpoint/safetensors.h": '#include "train/base/log.h"\n',
    "train/run/trainer.h": '#include "train/nn/moe.h"\n#include "train/checkpoint/safetensors.h"\n',
    "apps/train.cc": '#include "train/run/trainer.h"\n#include <CLI/CLI.hpp>\n',
    "tests/train/run/trainer_test.cc": '#include "train/run/trainer.h"\n#include "dropless/moe.h"\n',
}


class CheckLayersTest(unittest.TestCase):
    def check(self, changes):
        """Exit code and output for the sound tree with `changes` (file -> text) laid over it."""
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**SOUND, **changes}.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            result = subprocess.run(
                [sys.executable, str(CHECKER), folder], capture_output=True, text=True, check=False
            )
        return result.returncode, result.stdout

    def expect_violation(self, file, text, line, message):
        code, output = self.check({file: text})
        self.assertEqual(code, 1, output)
        self.assertEqual(len(output.splitlines()), 1, output)
        self.assertTrue(output.startswith(f"{file}:{line}: "), output)
        self.assertIn(message, output)

    def test_sound_tree_passes(self):
        self.assertEqual(self.check({}), (0, ""))

    def test_upward(self):
        self.expect_violation(
            "src/common/math.h", '\n#include "src/ops/moe.h"\n', 2, "src/ops/moe.h does not exist"
        )
        self.expect_violation("src/common/math.h", '\n\n#include "src/cpu/kernels.h"\n', 3, "upward")
        self.expect_violation("train/base/time.h", '#include "train/data/mds.h"\n', 1, "upward")
        self.expect_violation("include/dropless/route.h", '#include "src/common/check.h"\n', 1, "upward")

    def test_siblings(self):
        self.expect_violation("train/nn/norm.h", '#include "train/optim/adamw.h"\n', 1, "siblings")
        self.expect_violation("train/optim/lion.h", '#include "train/checkpoint/safetensors.h"\n', 1, "siblings")
        self.expect_violation("train/bridge/views.h", '#include "train/base/log.h"\n', 1, "siblings")

    def test_cpu_and_cuda_do_not_know_each_other(self):
        self.expect_violation("src/cpu/moe.cc", '#include "src/cuda/kernels.h"\n', 1, "cpu and cuda")
        self.expect_violation("src/cuda/moe.cu", '#include "src/cpu/kernels.h"\n', 1, "cpu and cuda")

    def test_torch_free_rooms(self):
        for room in ("src/ops", "include/dropless", "train/base", "train/data", "train/checkpoint", "tests/ops"):
            for header in ("torch/torch.h", "ATen/core/Tensor.h", "c10/util/Half.h"):
                self.expect_violation(f"{room}/x.h", f"\n#include <{header}>\n", 2, "without libtorch")

    def test_the_launcher_is_linked_without_torch(self):
        tree = {
            "apps/launcher.cc": '#include "train/run/config.h"\n',
            "train/run/config.h": '#include "train/base/log.h"\n',
            "train/run/config.cc": '#include "train/run/config.h"\n#include "train/nn/moe_config.h"\n',
            "train/nn/moe_config.h": "",
        }
        self.assertEqual(self.check(tree), (0, ""))
        code, output = self.check({**tree, "train/nn/moe_config.h": "\n#include <ATen/ATen.h>\n"})
        self.assertEqual((code, len(output.splitlines())), (1, 1), output)
        self.assertRegex(output, r"^train/nn/moe_config\.h:2: apps/launcher\.cc is linked of this")
        code, output = self.check({**tree, "train/run/config.cc": '#include "train/nn/moe.h"\n'})
        self.assertIn("apps/launcher.cc is linked of this", output)
        code, output = self.check({**tree, "apps/data_x.cc": "#include <ATen/ATen.h>\n"})
        self.assertRegex(output, r"^apps/data_x\.cc:1: apps/launcher\.cc is linked of this")

    def test_only_bridge_reaches_kernels(self):
        for room in ("train/nn", "train/run", "train/data"):
            self.expect_violation(f"{room}/x.h", '#include "dropless/moe.h"\n', 1, "through train/bridge")
        both = '#include <torch/torch.h>\n#include "dropless/moe.h"\n'
        self.expect_violation("apps/bench.cc", both, 2, "only train/bridge includes both")

    def test_trainer_sees_only_public_headers(self):
        self.expect_violation("train/nn/x.h", '#include "src/common/check.h"\n', 1, "may include only")

    def test_device_headers_stand_alone(self):
        self.expect_violation("src/cuda/device/x.h", '#include "dropless/error.h"\n', 1, "nothing outside itself")
        self.expect_violation("src/cuda/device/x.h", "#include <cute/tensor.hpp>\n", 1, "nothing outside itself")
        self.expect_violation("src/cuda/device/x.h", '#include "absent.h"\n', 1, "does not exist")
        self.assertEqual(self.check({"src/cuda/device/x.h": '#include "tile.h"\n'}), (0, ""))

    def test_nobody_but_apps_includes_run(self):
        self.expect_violation("train/nn/x.h", '#include "train/run/trainer.h"\n', 1, "only apps")

    def test_nobody_includes_tests(self):
        self.expect_violation("apps/x.cc", '#include "tests/train/run/trainer_test.cc"\n', 1, "upward")

    def test_paths_are_written_from_the_root(self):
        self.expect_violation("train/nn/x.h", '#include "moe.h"\n', 1, "repository's root")

    def test_unknown_folder(self):
        self.expect_violation("train/misc/x.h", "", 1, "no room")

    def test_circles(self):
        code, output = self.check(
            {
                "train/nn/a.h": '#include "train/nn/b.h"\n',
                "train/nn/b.h": '// b\n#include "train/nn/c.h"\n',
                "train/nn/c.h": '#include "train/nn/a.h"\n',
            }
        )
        self.assertEqual(code, 1)
        self.assertIn("train/nn/a.h:1: circle of includes: train/nn/a.h -> train/nn/b.h -> train/nn/c.h -> train/nn/a.h", output)

    def test_a_file_that_includes_itself(self):
        code, output = self.check({"train/nn/a.h": '#include "train/nn/a.h"\n'})
        self.assertEqual(code, 1)
        self.assertIn("train/nn/a.h -> train/nn/a.h", output)

    def test_commented_out_includes_do_not_count(self):
        self.assertEqual(self.check({"train/base/x.h": "// #include <torch/torch.h>\n"}), (0, ""))


if __name__ == "__main__":
    unittest.main()
