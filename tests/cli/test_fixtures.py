"""LLM Foundry's 26 training files: which run, which are refused and why; and the page that says so."""

import json
import math
import pathlib
import re
import subprocess
import tempfile
import unittest

import yaml_page
from command import BINARY

HUB = "nothing is fetched from the Hugging Face hub"
# What refuses the files that do not run: the key and words of the message.
REFUSED = {
    "finetune/1b_local_data_sft.yaml": ("train_loader.dataset.hf_name", "no folder here, and " + HUB),
    "finetune/7b_dolly_sft.yaml": ("train_loader.dataset.hf_name", "no folder here, and " + HUB),
    "finetune/dbrx-full-ft.yaml": ("model.pretrained_model_name_or_path", "databricks/dbrx-instruct is no folder here, and " + HUB),
    "finetune/dbrx-lora-ft.yaml": ("model.pretrained_model_name_or_path", "databricks/dbrx-instruct is no folder here, and " + HUB),
    "finetune/gpt2-arc-easy-cpu-streaming-dataset.yaml": ("model.pretrained_model_name_or_path", "gpt2 is no folder here, and " + HUB),
    "finetune/llama-3-8b_domain_adapt.yaml": ("model.pretrained_model_name_or_path", "Meta-Llama-3-8B is no folder here, and " + HUB),
    "finetune/mpt-30b-instruct.yaml": ("model.pretrained_model_name_or_path", "mosaicml/mpt-30b is no folder here, and " + HUB),
    "finetune/mpt-7b_dolly_sft.yaml": ("model.pretrained_model_name_or_path", "mosaicml/mpt-7b is no folder here, and " + HUB),
    "finetune/t5-small_dolly_sft.yaml": ("model.name", "hf_t5"),
    "pretrain/gpt-neo-125m.yaml": ("model.pretrained_model_name_or_path", "EleutherAI/gpt-neo-125M is no folder here, and " + HUB),
    "pretrain/gpt-neo-125m_eval.yaml": ("model.pretrained_model_name_or_path", "EleutherAI/gpt-neo-125M is no folder here, and " + HUB),
    "pretrain/gpt2-small.yaml": ("model.pretrained_model_name_or_path", "gpt2 is no folder here, and " + HUB),
    "pretrain/hf-llama-3.1-8B.yaml": ("model.pretrained_model_name_or_path", "Meta-Llama-3.1-8B is no folder here, and " + HUB),
    "pretrain/opt-3b.yaml": ("model.pretrained_model_name_or_path", "facebook/opt-2.7b is no folder here, and " + HUB),
}  # fmt: skip


class FixturesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.fates = yaml_page.fates(BINARY, cls.folder)

    def check_runs(self, fate, evaluates=True):
        self.assertTrue(fate.runs, fate.error)
        lines = [json.loads(line) for line in (fate.folder / "run" / "metrics.jsonl").read_text().splitlines()]
        steps = [line["loss/train/total"] for line in lines if "loss/train/total" in line]
        self.assertEqual(len(steps), 2)
        self.assertTrue(all(math.isfinite(loss) for loss in steps))
        self.assertEqual(any("metrics/eval/LanguageCrossEntropy" in line for line in lines), evaluates)

    def test_each_file(self):
        self.assertEqual(len(self.fates), 26)
        for fate in self.fates:
            with self.subTest(fate.name):
                if fate.name not in REFUSED:
                    self.check_runs(fate)
                    continue
                if fate.local:
                    evaluates = "\neval_loader:" in (fate.folder / pathlib.Path(fate.name).name).read_text()
                    self.check_runs(fate.local, evaluates)
                key, words = REFUSED[fate.name]
                self.assertEqual(fate.code, 2, fate.error)
                file = re.escape(pathlib.Path(fate.name).name)
                self.assertRegex(fate.error, rf"^{file}:\d+:\d+: {re.escape(key)}: ")
                self.assertIn(words, fate.error)
                self.assertTrue(fate.hint, "the way out")
                self.assertFalse((fate.folder / "run").exists() or (fate.folder / "runs").exists(), "nothing is started")

    def test_the_quick_start(self):
        """README of LLM Foundry: ten batches of mpt-125m.yaml, which stay within its warm-up of 100; here of a small model."""
        given = ("max_duration=", "eval_interval=", "save_folder=", "variables.data_local=")
        result = subprocess.run(
            [
                BINARY, "train", yaml_page.FIXTURES / "pretrain" / "mpt-125m.yaml",
                *(override for override in yaml_page.TINY if not override.startswith(given)),
                "variables.data_local=data", "train_loader.dataset.split=train_small", "eval_loader.dataset.split=val_small",
                "max_duration=10ba", "eval_interval=0", "save_folder=mpt-125m",
            ],
            cwd=self.folder, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        self.assertEqual(result.returncode, 0, result.stderr)
        warnings = re.findall(r"^warning: (.*warm-up.*)", result.stderr, re.M)
        self.assertEqual(len(warnings), 1, result.stderr)
        self.assertRegex(warnings[0], r"mpt-125m\.yaml:\d+:\d+: scheduler\.t_warmup: the run ends during the warm-up of 100ba")
        lines = [json.loads(line) for line in (self.folder / "mpt-125m" / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual([line["step"] for line in lines], list(range(1, 11)), "and no evaluation")
        for line in lines:
            self.assertAlmostEqual(line["lr-DecoupledAdamW/group0"], 6e-4 * (line["step"] - 1) / 100)

    def test_the_page_is_what_the_program_says(self):
        expected = yaml_page.page(BINARY, self.fates)
        self.maxDiff = None
        self.assertEqual(
            yaml_page.PAGE.read_text(), expected,
            "renew it: python tests/cli/yaml_page.py build/cpu/bin/dropless > docs/yaml.md",
        )  # fmt: skip


if __name__ == "__main__":
    unittest.main()
