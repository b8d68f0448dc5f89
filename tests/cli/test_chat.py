"""generate --chat: the prompt is the one that the folder's template makes, and special tokens in it are tokens."""

import json
import pathlib
import shutil
import unittest

import hf_models
from command import CommandTest

DATA = pathlib.Path(__file__).parents[1] / "data"
CASES = [json.loads(line) for line in (DATA / "chat_cases.jsonl").read_text().splitlines()]


class ChatTest(CommandTest):
    def setUp(self):
        super().setUp()
        config = dict(hf_models.CONFIGS["llama"], vocab_size=640, eos_token_id=None, max_position_embeddings=4096)
        hf_models.write_folder(self.folder / "model", config, hf_models.weights(config))
        shutil.copy(DATA / "tokenizer/llama3.json", self.folder / "model/tokenizer.json")
        (self.folder / "model/tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))

    def template(self, text: str):
        (self.folder / "model/chat_template.jinja").write_text(text)

    def chat(self, *arguments, **options) -> dict:
        return json.loads(self.check_command("generate", "model", "--chat", "--json", "--temperature", 0, *arguments, **options))

    def test_prompts_are_jinjas(self):
        wanted = [case for case in CASES if case["name"] in ("chatml 3", "llama2 3", "llama3 1", "mistral 3", "zephyr 1", "dbrx 3", "tulu 2")]
        self.assertEqual(len(wanted), 7)
        for case in wanted:
            self.template(case["template"])
            (self.folder / "messages.json").write_text(json.dumps(case["messages"]))
            answer = self.chat("--messages", "messages.json", "--max-new-tokens", 0)
            self.assertEqual(answer["prompt"], [case["expected"]], case["name"])
        try:
            import jinja2.sandbox
        except ImportError:
            return
        # Now, of the Jinja that is here, in transformers' environment.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        for case in wanted:
            made = environment.from_string(case["template"]).render(
                messages=case["messages"], tools=None, documents=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
            )
            self.assertEqual(made, case["expected"], case["name"])

    def test_special_tokens_are_one_token(self):
        special = next(t["content"] for t in json.loads((DATA / "tokenizer/llama3.json").read_text())["added_tokens"])
        self.template("{{ '" + special + "' }}{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}")
        answer = self.chat("--system", "be kind", "--prompt", "hello there", "--max-new-tokens", 5)
        self.assertEqual(answer["prompt"], [special + "system:be kinduser:hello there"])
        ids = self.check_command("data", "tokenizer", "encode", self.folder / "model/tokenizer.json", input=special)
        self.assertEqual(len(json.loads(ids)), 1)
        # The same ids as of the text itself, without what the tokenizer's own template would put around it.
        encoded = self.check_command("data", "tokenizer", "encode", self.folder / "model/tokenizer.json", input=answer["prompt"][0])
        by_ids = json.loads(self.check_command("generate", "model", "--prompt-ids", json.dumps([json.loads(encoded)]), "--json", "--temperature", 0, "--max-new-tokens", 5))
        self.assertEqual(answer["sequences"], by_ids["sequences"])

    def test_a_conversation(self):
        self.template("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] ")
        arguments = ("generate", "model", "--chat", "--temperature", 0, "--max-new-tokens", 4)
        said = self.check_command(*arguments, input="hello\n\nand now?\n")
        first = self.chat("--prompt", "hello", "--max-new-tokens", 4)["text"][0]
        self.assertTrue(said.startswith(first + "\n"), said)
        self.assertEqual(self.check_command(*arguments, "--prompt", "hello"), first + "\n")
        history = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": first}, {"role": "user", "content": "and now?"}]
        (self.folder / "history.json").write_text(json.dumps(history))
        second = self.chat("--messages", "history.json", "--max-new-tokens", 4)["text"][0]
        self.assertEqual(said, first + "\n" + second + "\n")

    def test_refusals(self):
        cases = [(("--chat", "--prompt", "x"), "no chat template")]
        for arguments, words in cases:
            result = self.run_command("generate", "model", *arguments)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(words, result.stderr)
        self.template("a\n{% macro f() %}{% endmacro %}")
        result = self.run_command("generate", "model", "--chat", "--prompt", "x")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("chat_template.jinja:2: {% macro %} is not supported", result.stderr)
        self.template("{{ raise_exception('only assistants') }}")
        result = self.run_command("generate", "model", "--chat", "--prompt", "x")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("refuses these messages: only assistants", result.stderr)
        self.template("{{ messages[0].content }}")
        (self.folder / "bad.json").write_text('[{"role": "user"}]')
        (self.folder / "silent.json").write_text('[{"role": "user", "content": ""}]')
        for arguments, words in (
            (("--system", "x", "--prompt", "y"), "need --chat"),
            (("--chat", "--prompt-ids", "[[1]]"), "--prompt-ids"),
            (("--chat", "--messages", "bad.json"), "message 0"),
            (("--chat", "--json"), "needs --prompt"),
            (("--chat", "--messages", "bad.json", "--prompt", "x"), "no --prompt"),
            (("--chat", "--prompt", ""), "--prompt is empty"),
            (("--chat", "--messages", "silent.json"), "makes no text"),
        ):
            result = self.run_command("generate", "model", *arguments)
            self.assertEqual(result.returncode, 2, f"{arguments}: {result.stderr}")
            self.assertIn(words, result.stderr)
        (self.folder / "model/tokenizer.json").unlink()
        shutil.copy(DATA / "tokenizer/bpe.model", self.folder / "model/tokenizer.model")
        result = self.run_command("generate", "model", "--chat", "--prompt", "x")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("tokenizer.json", result.stderr)



if __name__ == "__main__":
    unittest.main()
