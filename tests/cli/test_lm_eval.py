"""Log-likelihoods of `dropless eval` beside those of lm-eval on the same questions: the stored ones
(tests/data/make_lm_eval.py), and where lm_eval is installed its own, run here."""

import importlib.util
import json
import pathlib
import unittest

import lm_eval_cases
from command import CommandTest

STORED = json.loads((pathlib.Path(__file__).parent.parent / "data/lm_eval.json").read_text())


class LmEvalTest(CommandTest):
    worst, count = 0.0, 0

    def tearDown(self):
        if self.count:
            print(f"{self.count} log-likelihoods, the largest difference {self.worst:.1e}")

    def check(self, name: str, folder: pathlib.Path, theirs: dict):
        summary = json.loads(
            self.check_command("eval", "model", "--tasks", "tasks.yaml", "--samples", "samples.jsonl", "--json", cwd=folder)
        )
        samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        for task, answers in theirs.items():
            ours = [sample for sample in samples if sample["task"] == f"{task}/0-shot"]
            self.assertEqual([len(sample["loglikelihoods"]) for sample in ours], [len(answer) for answer in answers])
            for sample, answer in zip(ours, answers):
                for value, expected in zip(sample["loglikelihoods"], answer):
                    if expected is None:
                        self.assertEqual(name, "llama2")  # whose small vocabulary joins words
                        continue
                    self.assertAlmostEqual(value, expected[0], delta=1e-4, msg=f"{name} {task} {sample['index']}")
                    self.worst = max(self.worst, abs(value - expected[0]))
                    self.count += 1
                if task == "words" and answer[0] is not None:
                    self.assertEqual(sample["correct"], answer[0][1])
            self.assertEqual(summary["icl"][f"{task}/0-shot"]["questions"], len(answers))

    def test_the_stored_figures(self):
        self.assertEqual(set(STORED), set(lm_eval_cases.NAMES))
        for name, theirs in STORED.items():
            with self.subTest(name):
                lm_eval_cases.write(self.folder / name, name)
                self.check(name, self.folder / name, theirs)

    @unittest.skipUnless(importlib.util.find_spec("lm_eval"), "lm_eval is not installed")
    def test_the_package_itself(self):
        for name in lm_eval_cases.NAMES:
            with self.subTest(name):
                lm_eval_cases.write(self.folder / name, name)
                self.check(name, self.folder / name, lm_eval_cases.lm_eval_answers(self.folder / name))


if __name__ == "__main__":
    unittest.main()
