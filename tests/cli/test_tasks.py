"""In-context tasks through `eval` and during training, against the plain PyTorch model: each continuation's
log-likelihood, the accuracies that follow, what is generated."""

import json
import re
import unittest

import torch
from command import CommandTest, read_safetensors

import plain_model
from test_plain_model import BASE

TASKS = """
icl_tasks:
- {label: words, dataset_uri: words.jsonl, num_fewshot: [0, 2], icl_task_type: language_modeling, batch_size: 3}
- label: choice
  dataset_uri: choice.jsonl
  num_fewshot: [1]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nA: "
  question_prelimiter: "Q: "
  has_categories: true
- {label: schema, dataset_uri: schema.jsonl, num_fewshot: [0], icl_task_type: schema}
- label: say
  dataset_uri: say.jsonl
  num_fewshot: [1]
  icl_task_type: generation_task_with_answers
  early_stopping_criteria: ["\\n"]
eval_gauntlet:
  weighting: EQUAL
  subtract_random_baseline: true
  rescale_accuracy: true
  categories:
  - name: reading
    benchmarks:
    - {name: words, num_fewshot: 2, random_baseline: 0.0}
    - {name: choice, num_fewshot: 1, random_baseline: 0.5}
  - name: writing
    benchmarks:
    - {name: say, num_fewshot: 1, random_baseline: 0.0}
"""


class TasksTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data()
        words = [{"context": f"word {i}", "continuation": "e"} for i in range(5)]
        choice = [
            {"query": f"up {i}?", "choices": ["yes", "no", "q"][: 2 + i % 2], "gold": i % 2, "category": "ab"[i % 2]}
            for i in range(6)
        ]
        schema = [{"context_options": ["the cup", "a table"], "continuation": "e fell", "gold": i % 2} for i in range(3)]
        say = [{"context": f"say {i}", "answer": "e", "aliases": ["The"]} for i in range(4)]
        for name, lines in (("words", words), ("choice", choice), ("schema", schema), ("say", say)):
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.words, self.choice, self.schema = words, choice, schema
        (self.folder / "tasks.yaml").write_text(TASKS)
        self.write_config()

    def train(self, *overrides):
        self.check_command("train", "config.yaml", "max_duration=30ba", *overrides)
        self.weights = plain_model.tensors(read_safetensors(self.folder / "run/latest/model.safetensors"))

    def loglikelihood(self, context: str, continuation: str, length=32):
        ids, more = list(context.encode()), list(f" {continuation}".encode())
        ids = ids[-(length - len(more)) :] + more
        logits = plain_model.logits(self.weights, torch.tensor([ids]), BASE)[0]
        rows = logits[len(ids) - len(more) - 1 : -1].log_softmax(-1)
        return rows[range(len(more)), more].sum().item(), rows.argmax(-1).tolist() == more

    def test_loglikelihoods_are_the_plain_models(self):
        self.train()
        answer = json.loads(
            self.check_command("eval", "run", "--tasks", "tasks.yaml", "--samples", "samples.jsonl", "--json")
        )
        self.assertEqual(
            list(answer["icl"]),
            ["words/0-shot", "words/2-shot", "choice/1-shot/a", "choice/1-shot/b", "schema/0-shot", "say/1-shot"],
        )
        samples = {}
        for line in (self.folder / "samples.jsonl").read_text().splitlines():
            sample = json.loads(line)
            samples.setdefault(sample["task"], []).append(sample)
        expected = [self.loglikelihood(line["context"], line["continuation"]) for line in self.words]
        for (value, greedy), sample in zip(expected, samples["words/0-shot"], strict=True):
            self.assertAlmostEqual(sample["loglikelihoods"][0], value, delta=1e-4)
            self.assertEqual(sample["correct"], greedy)
        for category in "ab":
            rows = [line for line in self.choice if line["category"] == category]
            right = 0
            for line, sample in zip(rows, samples[f"choice/1-shot/{category}"], strict=True):
                # Of two other examples one stands in front; which, the sample's own figures must fit.
                candidates = []
                for other in rows:
                    if other is line:
                        continue
                    shot = f"Q: {other['query']}\nA: {other['choices'][other['gold']]}\nQ: {line['query']}\nA:"
                    candidates.append([self.loglikelihood(shot, choice)[0] for choice in line["choices"]])
                closest = min(
                    candidates, key=lambda c: sum(abs(x - y) for x, y in zip(c, sample["loglikelihoods"], strict=True))
                )
                for ours, plain in zip(sample["loglikelihoods"], closest, strict=True):
                    self.assertAlmostEqual(ours, plain, delta=1e-4)
                means = [value / (1 + len(choice)) for value, choice in zip(closest, line["choices"], strict=True)]
                right += means.index(max(means)) == line["gold"]
                self.assertEqual(sample["correct"], means.index(max(means)) == line["gold"])
            result = answer["icl"][f"choice/1-shot/{category}"]
            self.assertAlmostEqual(result["InContextLearningMultipleChoiceAccuracy"], right / len(rows))
            self.assertEqual(result["questions"], len(rows))
        for line, sample in zip(self.schema, samples["schema/0-shot"], strict=True):
            values = [self.loglikelihood(context, line["continuation"])[0] for context in line["context_options"]]
            for ours, plain in zip(sample["loglikelihoods"], values, strict=True):
                self.assertAlmostEqual(ours, plain, delta=1e-4)
            self.assertEqual(sample["correct"], values.index(max(values)) == line["gold"])
        for sample in samples["say/1-shot"]:
            said = sample["text"].split("\n")[0]
            words = re.sub(r"[^\w\s]|_", " ", said.lower()).split()
            normal = " ".join(word for word in words if word not in ("a", "an", "the"))
            # Of "The" the normal form is nothing, with which anything begins: it counts as it stands.
            self.assertEqual(sample["correct"], normal.startswith("e") or said.lstrip().startswith("The"), said)
        accuracy = {name: next(iter(result.values())) for name, result in answer["icl"].items()}
        choice = (accuracy["choice/1-shot/a"] + accuracy["choice/1-shot/b"]) / 2
        reading = (accuracy["words/2-shot"] + (choice - 0.5) / 0.5) / 2
        self.assertAlmostEqual(answer["eval_gauntlet"]["reading"], reading)
        self.assertAlmostEqual(answer["eval_gauntlet"]["default_average"], (reading + accuracy["say/1-shot"]) / 2)
        table = self.check_command("eval", "run", "--tasks", "tasks.yaml", "--data", "data/val")
        self.assertIn("choice/1-shot/b", table)
        self.assertIn("perplexity", table)

    def test_during_training_and_from_the_config(self):
        self.train("icl_tasks=tasks.yaml", "eval_gauntlet_str=tasks.yaml", "icl_subset_num_batches=2", "eval_interval=15ba")
        lines = [line for line in self.metrics() if "metrics/words/0-shot/InContextLearningLMAccuracy" in line]
        self.assertEqual([line["step"] for line in lines], [15, 30])
        self.assertIn("metrics/eval/LanguageCrossEntropy", lines[0])
        overrides = ("icl_tasks=tasks.yaml", "eval_gauntlet=tasks.yaml", "icl_subset_num_batches=2")
        answer = json.loads(self.check_command("eval", "config.yaml", *overrides, "--json"))
        self.assertEqual(answer["icl"]["words/0-shot"]["questions"], 5)
        for name, result in answer["icl"].items():
            metric, value = next(iter(result.items()))
            self.assertAlmostEqual(lines[-1][f"metrics/{name}/{metric}"], value)
        self.assertAlmostEqual(
            lines[-1]["icl/metrics/eval_gauntlet/reading"], answer["eval_gauntlet"]["reading"]
        )

    def test_bad_tasks_stop_a_run_before_it_begins(self):
        for change, word in (
            (("icl_tasks=nowhere.yaml",), "nowhere.yaml"),
            (("icl_tasks=[{label: x, dataset_uri: none.jsonl, num_fewshot: 0, icl_task_type: schema}]",), "none.jsonl"),
            (("icl_tasks=[{label: x, dataset_uri: words.jsonl, num_fewshot: 0, icl_task_type: schema}]",), "words.jsonl:1"),
            (("icl_tasks=tasks.yaml", "icl_tasks_str=tasks.yaml"), "icl_tasks_str"),
            (("icl_tasks=tasks.yaml", "eval_gauntlet={weighting: LOUD, categories: []}"), "LOUD"),
            (("icl_tasks=tasks.yaml", "icl_subset_num_batches=0"), "icl_subset_num_batches"),
        ):
            result = self.run_command("train", "config.yaml", *change)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(word, result.stderr)
            self.assertFalse((self.folder / "run").exists())


if __name__ == "__main__":
    unittest.main()
