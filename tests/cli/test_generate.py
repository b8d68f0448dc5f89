"""generate, eval and info on a trained model."""

import json
import math
import unittest

import torch
from command import CONFIG, CommandTest, read_safetensors

import plain_model
from test_plain_model import BASE


class GenerateTest(CommandTest):
    @classmethod
    def setUpClass(cls):
        cls.trained = None

    def setUp(self):
        super().setUp()
        self.write_data()
        self.write_config()
        self.check_command("train", "config.yaml", "max_duration=30ba")

    def generate(self, *arguments) -> dict:
        return json.loads(self.check_command("generate", "run", "--json", *arguments))

    def plain_logits(self, ids):
        weights = plain_model.tensors(read_safetensors(self.folder / "run/latest/model.safetensors"))
        return plain_model.logits(weights, torch.tensor([ids]), BASE)[0]

    def test_cached_generation_equals_the_plain_model(self):
        prompt = list(b"the shore ")
        answer = self.generate(
            "--prompt-ids", json.dumps([prompt]), "--temperature", 0, "--max-new-tokens", 12, "--logits"
        )
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(self.plain_logits(ids)[-1].argmax()))
        self.assertEqual(answer["sequences"], [ids[len(prompt) :]])
        logits = self.plain_logits(prompt)
        ours = torch.tensor(answer["logits_last"][0])
        self.assertLess(((ours - logits[-1]).norm() / logits[-1].norm()).item(), 1e-5)
        expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(prompt[1:])).item()
        self.assertAlmostEqual(answer["cross_entropy"], expected, places=5)

    def test_seed_decides_and_batching_does_not(self):
        a, b = list(b"abcd"), list(b"efgh")
        both = self.generate("--prompt-ids", json.dumps([a, b]), "--seed", 3, "--max-new-tokens", 8)
        again = self.generate("--prompt-ids", json.dumps([a, b]), "--seed", 3, "--max-new-tokens", 8)
        other = self.generate("--prompt-ids", json.dumps([a, b]), "--seed", 9, "--max-new-tokens", 8)
        alone = self.generate("--prompt-ids", json.dumps([a]), "--seed", 3, "--max-new-tokens", 8)
        self.assertEqual(both, again)
        self.assertNotEqual(both["sequences"], other["sequences"])
        self.assertEqual(both["sequences"][0], alone["sequences"][0])

    def test_prompts_of_different_lengths_equal_the_plain_model(self):
        prompts = [list(b"the shore "), list(b"a"), list(b"who knows what it was"), list(b"an")]
        answer = self.generate(
            "--prompt-ids", json.dumps(prompts), "--temperature", 0, "--max-new-tokens", 9, "--logits"
        )
        loss, scored = 0.0, 0
        for prompt, new, last in zip(prompts, answer["sequences"], answer["logits_last"], strict=True):
            ids = list(prompt)
            for _ in range(9):
                ids.append(int(self.plain_logits(ids)[-1].argmax()))
            self.assertEqual(new, ids[len(prompt) :])
            logits = self.plain_logits(prompt)
            self.assertLess(((torch.tensor(last) - logits[-1]).norm() / logits[-1].norm()).item(), 1e-5)
            loss += torch.nn.functional.cross_entropy(
                logits[:-1], torch.tensor(prompt[1:]), reduction="sum"
            ).item()
            scored += len(prompt) - 1
        self.assertAlmostEqual(answer["cross_entropy"], loss / scored, places=5)

    def test_stop_strings_end_the_text_before_them(self):
        arguments = ("--prompt", "the ", "--temperature", 0, "--max-new-tokens", 24)
        free = self.generate(*arguments)["text"][0]
        stop = free[6:9]
        expected = free[: free.index(stop)]
        answer = self.generate(*arguments, "--stop", "never", "--stop", stop, "--prompt", "w")
        self.assertEqual(answer["text"][0], expected)
        self.assertEqual(answer["finish"][0], "stop")
        self.assertEqual(len(answer["text"]), 2)
        printed = self.check_command("generate", "run", *arguments, "--stop", stop)
        self.assertEqual(printed, "the " + expected + "\n")
        for bad in (("--min-p", 2), ("--repetition-penalty", 0), ("--stop", "")):
            self.assertEqual(self.run_command("generate", "run", *arguments, *bad).returncode, 2, bad)

    def test_a_vocabulary_padded_beyond_the_tokenizers(self):
        self.write_config(content=CONFIG.replace("vocab_size: 257", "vocab_size: 2048"))
        self.check_command("train", "config.yaml", "max_duration=5ba", "save_folder=padded")
        # After five steps seven draws in eight would be ids that the tokenizer does not have.
        printed = self.check_command("generate", "padded", "--prompt", "a", "--max-new-tokens", 30)
        self.assertTrue(printed.startswith("a"))
        answer = json.loads(
            self.check_command("generate", "padded", "--json", "--prompt", "a", "--max-new-tokens", 30, "--logits")
        )
        self.assertLess(max(answer["sequences"][0]), 257)
        self.assertEqual(len(answer["logits_last"][0]), 2048)

    def test_prompts_fit_the_context_and_new_tokens_need_not(self):
        result = self.run_command("generate", "run", "--prompt", "a" * 33)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("33 tokens, and the model 32 positions", result.stderr)
        result = self.run_command("generate", "run", "--prompt", "a" * 32, "--max-new-tokens", 3)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("35 tokens are more than the 32", result.stderr)

    def test_edges(self):
        none = self.generate("--prompt-ids", "[[65]]", "--max-new-tokens", 0, "--logits")
        self.assertEqual(none["sequences"], [[]])
        self.assertIsNone(none["cross_entropy"])
        self.assertEqual(none["finish"], ["length"])
        narrow = self.generate("--prompt", "the ", "--top-k", 1, "--seed", 5, "--max-new-tokens", 6)
        greedy = self.generate("--prompt", "the ", "--temperature", 0, "--max-new-tokens", 6)
        self.assertEqual(narrow["sequences"], greedy["sequences"])
        printed = self.check_command("generate", "run", "--prompt", "the ", "--temperature", 0, "--max-new-tokens", 6)
        self.assertEqual(printed.rstrip("\n"), ("the " + greedy["text"][0]).rstrip("\n"))

    def test_eval_of_text_equals_the_plain_model(self):
        sample = self.folder / "sample.txt"
        sample.write_text("the quick brown fox jumps over the lazy dog, again and again\n")
        answer = json.loads(self.check_command("eval", "run", "--data", sample, "--json"))
        data = list(sample.read_bytes())
        pieces = [data[i : i + 32] for i in range(0, len(data), 32)]
        total, scored = 0.0, 0
        for piece in pieces:
            if len(piece) < 2:
                continue
            logits = self.plain_logits(piece)
            total += torch.nn.functional.cross_entropy(
                logits[:-1], torch.tensor(piece[1:]), reduction="sum"
            ).item()
            scored += len(piece) - 1
        self.assertEqual(answer["tokens"], scored)
        self.assertAlmostEqual(answer["cross_entropy"], total / scored, places=5)
        self.assertAlmostEqual(answer["perplexity"], math.exp(total / scored), places=3)

    def test_eval_of_config_equals_the_training_metric(self):
        answer = json.loads(self.check_command("eval", "config.yaml", "--json"))
        key = "metrics/eval/LanguageCrossEntropy"
        last = [line[key] for line in self.metrics() if key in line][-1]
        self.assertAlmostEqual(answer["cross_entropy"], last, places=9)

    def test_info_counts_parameters(self):
        by_config = json.loads(self.check_command("info", "config.yaml", "--json"))
        by_model = json.loads(self.check_command("info", "run", "--json"))
        expert = 3 * 4 * 48 * 32
        layer = 4 * 32 * 32 + 2 * 32 + 4 * 32 + expert
        total = 257 * 32 + 2 * layer + 32
        self.assertEqual(by_config["parameters"], {"total": total, "active": total - expert})
        self.assertEqual(by_model["parameters"], by_config["parameters"])
        shapes = {tensor["name"]: tensor["shape"] for tensor in by_model["tensors"]}
        self.assertEqual(shapes["transformer.blocks.1.ffn.experts.mlp.v1"], [4 * 48, 32])
        self.assertEqual(
            sorted(shapes), sorted(tensor["name"] for tensor in by_config["tensors"])
        )


if __name__ == "__main__":
    unittest.main()
