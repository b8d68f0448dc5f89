"""Training on what the data verbs make: text by a tokenizer's file, and instructions with answers."""

import json
import pathlib
import unittest

from command import CONFIG, CommandTest, text

TOKENIZERS = pathlib.Path(__file__).resolve().parents[1] / "data" / "tokenizer"


class DataTrainingTest(CommandTest):
    def losses(self, run: str = "run") -> list:
        return [line["loss/train/total"] for line in self.metrics(run) if "loss/train/total" in line]

    def test_train_generate_and_info_with_a_tokenizer_file(self):
        self.write_data()
        (self.folder / "words.txt").write_text(text(3, 4000))
        self.check_command("data", "json", self.lines_of("words.txt"), "--out", "words/train")
        self.check_command("data", "json", self.lines_of("words.txt"), "--out", "words/val")
        for name, size in [("llama3.json", 600), ("small.cl100k_base.tiktoken", 501), ("bpe.model", 450)]:
            path = TOKENIZERS / name
            config = CONFIG.replace("local: data", "local: words").replace("40ba", "3ba").replace("4ba", "1ba")
            config = config.replace("{name: bytes}", f"{{name: '{path}'}}").replace("vocab_size: 257", "vocab_size: 640")
            self.write_config(content=config)
            info = json.loads(self.check_command("info", "config.yaml", "--json"))
            self.assertEqual(info["tokenizer"]["name"], str(path))
            self.assertLessEqual(abs(info["tokenizer"]["vocab_size"] - size), 10)
            self.write_config(content=config.replace("640", str(info["tokenizer"]["vocab_size"])))
            self.check_command("train", "config.yaml", f"save_folder=run-{name}")
            self.assertEqual(len(self.losses(f"run-{name}")), 3)
            out = json.loads(self.check_command("generate", f"run-{name}", "--prompt", "Hello", "--json",
                                                "--max-new-tokens", 8, "--temperature", 0))  # fmt: skip
            decoded = self.check_command("data", "tokenizer", "decode", path, input=json.dumps(out["sequences"][0]) + "\n")
            self.assertEqual(out["text"][0], json.loads(decoded))
        # A vocabulary that the model has no rows for.
        self.write_config(content=config.replace("vocab_size: 640", "vocab_size: 64"))
        result = self.run_command("train", "config.yaml", "save_folder=small")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("vocab_size 64 is below", result.stderr)

    def lines_of(self, name: str) -> pathlib.Path:
        out = self.folder / (name + ".jsonl")
        lines = (self.folder / name).read_text().splitlines()
        out.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines if line))
        return out

    def test_finetuning_learns_answers(self):
        lines = [{"prompt": f"say {word}: ", "response": word * 2} for word in text(4, 2000).split()[:200]]
        (self.folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for split in ["train", "val"]:
            self.check_command("data", "json", "pairs.jsonl", "--out", f"data/{split}")
        config = CONFIG.replace("name: text", "name: finetuning").replace("40ba", "12ba")
        config = config.replace("lr: 3.0e-3", "lr: 1.0e-2").replace("4ba", "2ba")
        packed = config.replace("max_seq_len: 32}", "max_seq_len: 32, packing_ratio: auto}")
        packed = packed.replace("attn_config: {rope: true}", "attn_config: {rope: true, attn_uses_sequence_id: true}")
        for name, content in [("plain", config), ("packed", packed)]:
            self.write_config(content=content)
            self.check_command("train", "config.yaml", f"save_folder={name}")
            losses = self.losses(name)
            self.assertEqual(len(losses), 12)
            self.assertLess(losses[-1], losses[0] - 0.5)
        # Packed runs go on at the sample after the last one.
        self.check_command("train", "config.yaml", "save_folder=rest", "load_path=packed/step-7")
        self.assertEqual(self.losses("rest"), self.losses("packed")[7:])


if __name__ == "__main__":
    unittest.main()
