"""The data verbs and `version`, as cli.md's contract and docs/data.md give them."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import unittest

from command import BINARY, CommandTest, text


class DataTest(CommandTest):
    def setUp(self):
        super().setUp()
        (self.folder / "a.txt").write_text(text(1, 700))
        (self.folder / "b.txt").write_bytes("häß\n".encode() + b"\xff\x00")

    def lines(self, *arguments, **options) -> list:
        return [json.loads(line) for line in self.check_command(*arguments, **options).splitlines()]

    def tokens(self, line: dict) -> list:
        raw = bytes.fromhex(line["tokens"]["hex"])
        return [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]

    def test_text_becomes_pieces_of_tokens(self):
        self.check_command(
            "data", "text", "a.txt", "b.txt", "--out", "set", "--tokenizer", "bytes",
            "--concat-tokens", 64, "--eos-text", "<|endoftext|>",
        )  # fmt: skip
        stream = []
        for name in ["a.txt", "b.txt"]:
            stream += list((self.folder / name).read_bytes()) + [256]
        pieces = [stream[i : i + 64] for i in range(0, len(stream) - 63, 64)]
        rows = self.lines("data", "cat", "set")
        self.assertEqual([self.tokens(row) for row in rows], pieces)
        self.assertEqual(rows[0]["tokens"]["dtype"], "int32")
        info = json.loads(self.check_command("data", "info", "set", "--json"))
        self.assertEqual(info["num_samples"], len(pieces))
        self.assertEqual(info["column_names"], ["tokens"])
        self.assertEqual(info["column_encodings"], ["ndarray:int32"])
        self.assertEqual(self.check_command("data", "verify", "set").strip(), "")

    def test_text_by_a_tokenizer_file(self):
        tokenizers = pathlib.Path(__file__).resolve().parents[1] / "data" / "tokenizer"
        cases = json.loads((tokenizers / "cases.json").read_text("utf-8"))
        for name in ["llama3.json", "small.cl100k_base.tiktoken", "bpe.model"]:
            texts = [bytes.fromhex(text) for text in cases["texts"]]
            ids = cases["tokenizers"][name]["ids"]
            files = [self.folder / f"{i}.txt" for i in range(20)]
            for file, text in zip(files, texts):
                file.write_bytes(text)
            folder = f"set-{name}"
            verb = ["data", "tokenizer", "encode", tokenizers / name]
            whole = json.loads(self.check_command(*verb, "--template", files[0]))
            prefix = whole[: len(whole) - len(ids[0])]
            self.assertEqual(len(prefix), name == "llama3.json")  # its template begins a text
            want = [i for row in ids[:20] for i in prefix + row]
            self.check_command("data", "text", *files, "--out", folder, "--tokenizer", tokenizers / name,
                               "--concat-tokens", 16)  # fmt: skip
            rows = [self.tokens(row) for row in self.lines("data", "cat", folder)]
            self.assertEqual(rows, [want[i : i + 16] for i in range(0, len(want) - 15, 16)])
            coded = self.check_command(*verb, files[0])
            self.assertEqual(json.loads(coded), ids[0])
            decoded = self.check_command("data", "tokenizer", "decode", tokenizers / name, input=coded)
            self.assertEqual(json.loads(decoded), texts[0].decode())

    def test_a_trained_tokenizer_equals_the_packages(self):
        data = pathlib.Path(__file__).resolve().parents[1] / "data"
        spec = importlib.util.spec_from_file_location("tokenizer_corpus", data / "tokenizer_corpus.py")
        corpus = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(corpus)
        lines = [json.dumps({"text": document}) for document in corpus.training_text()]
        (self.folder / "text.jsonl").write_text("\n".join(lines))
        self.check_command("data", "tokenizer", "train", "text.jsonl", "--out", "t.json", "--vocab-size", 600,
                           "--min-count", 0)  # fmt: skip
        trained = json.loads((self.folder / "t.json").read_text("utf-8"))
        package = json.loads((data / "tokenizer" / "gpt2.json").read_text("utf-8"))
        self.assertEqual(trained["model"]["vocab"], package["model"]["vocab"])
        self.assertEqual(trained["model"]["merges"], package["model"]["merges"])
        result = self.run_command("data", "tokenizer", "train", "text.jsonl", "--out", "t.json")
        self.assertEqual(result.returncode, 2)
        self.assertIn("t.json", result.stderr)

    def test_bad_tokenizers_are_refused(self):
        (self.folder / "bad.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
        (self.folder / "bad.tiktoken").write_text("YQ== 0\nnot base64\n")
        (self.folder / "bad.model").write_bytes(b"\xff\xff\xff")
        (self.folder / "empty").mkdir()
        for name, part in [("bad.json", "WordPiece"), ("bad.tiktoken", "bad.tiktoken:2"), ("bad.model", "bad.model"),
                           ("empty", "holds no tokenizer"), ("gpt2", "neither 'bytes' nor")]:  # fmt: skip
            result = self.run_command("data", "text", "a.txt", "--out", "set", "--tokenizer", name, "--concat-tokens", 4)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(part, result.stderr)
            self.assertFalse((self.folder / "set").exists())

    def test_json_lines(self):
        (self.folder / "t.jsonl").write_text('{"text": "one ä"}\n{"id": 3, "text": "two"}\n')
        self.check_command("data", "json", "t.jsonl", "--out", "texts")
        self.assertEqual([row["text"]["v"] for row in self.lines("data", "cat", "texts")], ["one ä", "two"])
        self.check_command("data", "json", "t.jsonl", "--out", "rows", "--concat-tokens", 3)
        stream = list("one ätwo".encode())
        self.assertEqual([self.tokens(row) for row in self.lines("data", "cat", "rows")], [stream[i : i + 3] for i in (0, 3, 6)])
        (self.folder / "p.jsonl").write_text('{"prompt": "q", "response": "a"}\n')
        self.check_command("data", "json", "p.jsonl", "--out", "pairs")
        self.assertEqual(self.lines("data", "cat", "pairs")[0]["response"], {"t": "str", "v": "a"})
        chat = [{"role": "user", "content": "ä"}, {"role": "assistant", "content": "b"}]
        (self.folder / "m.jsonl").write_text("\ufeff" + json.dumps({"messages": chat}) + "\n")  # a byte order mark
        self.check_command("data", "json", "m.jsonl", "--out", "chats")
        self.assertEqual(self.lines("data", "cat", "chats")[0]["messages"]["v"], chat)
        (self.folder / "bad.jsonl").write_text('{"text": "x"}\n{"text": 5}\n')
        result = self.run_command("data", "json", "bad.jsonl", "--out", "bad")
        self.assertEqual(result.returncode, 2)
        self.assertIn("bad.jsonl:2", result.stderr)
        self.assertFalse((self.folder / "bad").exists())

    def test_chats_without_an_answer_are_refused_by_their_line(self):
        chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        for broken, said in [
            ({"messages": []}, "empty"), ({"messages": "x"}, "no list"), ({"messages": [{"role": "user"}]}, "message 0"),
            ({"messages": chat[:1]}, "the last message is from 'user'"), ({"messages": [*chat, {"role": "assistant", "content": None}]}, "message 2"),
            ({"messages": chat[1:]}, "to no question"), ({"messages": [chat[0], *chat]}, "messages 0 and 1 are both from 'user'"),
            ({"messages": [{"role": "wizard\n", "content": "q"}, chat[1]]}, "message 0 is from 'wizard"),
            ({"messages": [chat[0], {**chat[1], "weight": 0}]}, "message 1 has a 'weight'"),
        ]:  # fmt: skip
            (self.folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"messages": chat}, broken]))
            result = self.run_command("data", "json", "m.jsonl", "--out", "chats")
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn("m.jsonl:2: ", result.stderr)
            self.assertIn(said, result.stderr)
            self.assertFalse((self.folder / "chats").exists())
        (self.folder / "p.jsonl").write_text('{"prompt": "", "response": ""}\n')
        result = self.run_command("data", "json", "p.jsonl", "--out", "pairs")
        self.assertEqual(result.returncode, 2)
        self.assertIn("p.jsonl:1: the response is empty", result.stderr)

    def test_verify_names_an_index_that_cannot_be_used(self):
        self.check_command("data", "text", "a.txt", "--out", "set")
        path = self.folder / "set" / "index.json"
        whole = path.read_text()
        for old, new in [
            ('"version": 2}', '"version": 3}'), ('"mds"', '"json"'), ('"str"', '"strr"'), ('"xxh128"', '"crc0"'),
            ('"compression": null', '"compression": "lz4"'), (whole, "{"),
        ]:  # fmt: skip
            self.assertIn(old, whole)
            path.write_text(whole.replace(old, new))
            result = self.run_command("data", "verify", "set")
            self.assertEqual(result.returncode, 1, (new, result.stderr))
            self.assertRegex(result.stdout, r"^index\.json: .+\n$", new)
        path.unlink()
        self.assertEqual(self.run_command("data", "verify", "set").returncode, 2)

    def test_from_and_count(self):
        self.check_command("data", "text", "a.txt", "--out", "set", "--tokenizer", "bytes", "--concat-tokens", 50)
        every = self.lines("data", "cat", "set")
        self.assertEqual(self.lines("data", "cat", "set", "--from", 3, "--count", 4), every[3:7])

    def test_whole_texts_and_raw_bytes(self):
        self.check_command("data", "text", "a.txt", "--out", "set")
        self.assertEqual(
            self.lines("data", "cat", "set"),
            [{"text": {"t": "str", "v": (self.folder / "a.txt").read_text()}}],
        )
        # A str column may hold invalid UTF-8: damage when decoded, readable raw.
        broken = '{"text":{"t":"bytes","hex":"41ff00"}}\n'
        self.check_command("data", "write", "broken", "--columns", '{"text":"str"}', input=broken)
        result = self.run_command("data", "cat", "broken")
        self.assertEqual(result.returncode, 1)
        self.assertIn("text", result.stderr)
        self.assertEqual(self.lines("data", "cat", "broken", "--raw")[0]["text"]["len"], 3)

    def test_text_that_is_not_utf8_is_refused_before_anything_is_written(self):
        result = self.run_command("data", "text", "b.txt", "--out", "set")
        self.assertEqual(result.returncode, 2)
        self.assertIn("b.txt", result.stderr)
        self.assertFalse((self.folder / "set").exists())

    def test_nothing_stays_under_the_final_name_on_failure(self):
        result = self.run_command("data", "text", "a.txt", "absent.txt", "--out", "set")
        self.assertEqual(result.returncode, 2)
        self.assertIn("absent.txt", result.stderr)
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["a.txt", "b.txt"])

    def test_a_killed_call_is_gone_on_with(self):
        with open(self.folder / "web.jsonl", "w") as lines:
            for i in range(4000):
                lines.write(json.dumps({"text": text(i, 500)}) + "\n")
        call = ["data", "json", "web.jsonl", "--concat-tokens", "100", "--size-limit", "40kb", "--out"]
        self.check_command(*call, "whole")
        for kill in ["kill", "terminate"]:
            shutil.rmtree(self.folder / "set", ignore_errors=True)
            process = subprocess.Popen(
                [BINARY, *call, "set"], cwd=self.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
            )
            while not (self.folder / "set.dropless-tmp" / "shard.00005.mds").exists():
                self.assertIsNone(process.poll(), "ended before it was cut off")
            getattr(process, kill)()
            message = process.communicate(timeout=60)[1]
            self.assertFalse((self.folder / "set").exists())
            if kill == "terminate":
                self.assertIn("the same command goes on", message)
            again = self.run_command(*call, "set")
            self.assertEqual(again.returncode, 0, again.stderr)
            self.assertRegex(again.stderr, r"going on after \d+ samples of \d+ documents")
            self.assertEqual(
                {p.name: p.read_bytes() for p in (self.folder / "set").iterdir()},
                {p.name: p.read_bytes() for p in (self.folder / "whole").iterdir()},
            )
            self.assertFalse((self.folder / "set.dropless-tmp").exists())

    def test_refusals(self):
        self.check_command("data", "text", "a.txt", "--out", "set")
        for code, message, arguments in [
            (2, "set", ["text", "a.txt", "--out", "set"]),  # not empty
            (2, "nowhere", ["cat", "nowhere"]),
            (2, "nowhere", ["info", "nowhere", "--json"]),
            (2, "gpt9", ["text", "a.txt", "--out", "x", "--tokenizer", "gpt9", "--concat-tokens", "8"]),
        ]:
            with self.subTest(arguments):
                result = self.run_command("data", *arguments)
                self.assertEqual(result.returncode, code, result.stderr)
                self.assertIn(message, result.stderr)
                self.assertEqual(result.stdout, "")

    def test_exist_ok_replaces_sets_only(self):
        write = ["data", "write", "--columns", '{"a":"int"}', "--exist-ok"]
        self.check_command("data", "text", "a.txt", "--out", "parent/set")
        result = self.run_command(*write, "parent", input="")
        self.assertEqual(result.returncode, 2)
        self.assertIn("parent holds set", result.stderr)
        self.assertTrue((self.folder / "parent" / "set" / "index.json").exists())
        self.check_command(*write, "parent/set", input='{"a":{"t":"int","v":"5"}}\n')
        self.assertEqual(self.lines("data", "cat", "parent/set"), [{"a": {"t": "int", "v": "5"}}])

    def test_damage_is_named(self):
        self.check_command("data", "text", "a.txt", "--out", "set")
        (shard,) = (self.folder / "set").glob("*.mds")
        shard.write_bytes(shard.read_bytes()[:-5])
        result = self.run_command("data", "verify", "set")
        self.assertEqual(result.returncode, 1)
        self.assertTrue(result.stdout.startswith(shard.name + ": "), result.stdout)
        self.assertEqual(self.run_command("data", "cat", "set").returncode, 1)

    def test_a_shard_that_changes_while_it_is_read(self):
        (self.folder / "long.txt").write_bytes(bytes(range(256)) * 1500)
        self.check_command("data", "text", "long.txt", "--out", "many", "--concat-tokens", 32, "--size-limit", "100kb")
        last = sorted((self.folder / "many").glob("*.mds"))[-1].name
        for name, change in [
            ("shard.00000.mds", lambda path: os.truncate(path, 30_000)),
            (last, lambda path: os.truncate(path, 1000)),
            (last, lambda path: path.unlink()),
            (last, lambda path: path.write_bytes(b"\xff" * path.stat().st_size)),
        ]:
            shutil.rmtree(self.folder / "set", ignore_errors=True)
            shutil.copytree(self.folder / "many", self.folder / "set")
            with subprocess.Popen(
                [BINARY, "data", "cat", self.folder / "set"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as reader:
                reader.stdout.readline()  # the pipe holds 64 KB: it waits in the first shard
                change(self.folder / "set" / name)
                _, error = reader.communicate(timeout=60)
            self.assertEqual(reader.returncode, 1, error)
            self.assertIn(name, error)

    def test_cat_into_write_reproduces_the_set(self):
        self.check_command("data", "text", "a.txt", "--out", "set", "--tokenizer", "bytes", "--concat-tokens", 32)
        rows = self.check_command("data", "cat", "set")
        self.check_command("data", "write", "copy", "--columns", '{"tokens":"ndarray:int32"}', "--hashes", "xxh128", input=rows)
        for name in ["index.json", "shard.00000.mds"]:
            self.assertEqual(
                (self.folder / "set" / name).read_bytes(), (self.folder / "copy" / name).read_bytes(), name
            )

    def test_a_key_that_is_no_column_is_refused(self):
        line = '{"a":{"t":"int","v":"5"},"b":{"t":"int","v":"6"}}\n'
        result = self.run_command("data", "write", "set", "--columns", '{"a":"int","c":"str"}', input=line)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("line 1: 'b' is no column; the columns are 'a', 'c'", result.stderr)
        self.assertFalse((self.folder / "set").exists())

    def test_output_that_cannot_be_written_is_the_users_mistake(self):
        (self.folder / "file").write_text("")
        for out in ["file/set", "/proc/set", "/dev/null/set"]:
            for arguments in [["text", "a.txt", "--out", out], ["write", out, "--columns", '{"a":"int"}']]:
                with self.subTest(arguments):
                    result = self.run_command("data", *arguments, input="")
                    self.assertEqual(result.returncode, 2, result.stderr)
                    self.assertIn(out.rsplit("/", 1)[0], result.stderr)
                    self.assertIn("hint:", result.stderr)

    def test_counts_agree_with_their_nouns(self):
        said = self.check_command("data", "text", "a.txt", "--out", "one")
        self.assertEqual(said, "one: 1 document\n")
        said = self.check_command("data", "text", "a.txt", "a.txt", "--out", "two", "--concat-tokens", 1399)
        self.assertEqual(said, "two: 2 documents, 1 sample of 1399 tokens, 1 token left over\n")
        self.assertRegex(self.check_command("data", "info", "one"), r"^one: 1 sample in 1 shard, \d+ bytes")

    def test_compressed_sets(self):
        self.check_command("data", "text", "a.txt", "--out", "raw", "--concat-tokens", 20, "--size-limit", 1000)
        rows = self.check_command("data", "cat", "raw")
        for compression in ["zstd", "zstd:19", "gz:1", "bz2:3", "br:2", "snappy"]:
            name = compression.replace(":", "-")
            with self.subTest(compression):
                self.check_command(
                    "data", "write", name, "--columns", '{"tokens":"ndarray:int32"}', "--compression", compression,
                    "--hashes", "sha1,xxh64", "--size-limit", 1000, input=rows,
                )  # fmt: skip
                before = sorted(p.name for p in (self.folder / name).iterdir())
                self.assertEqual(self.check_command("data", "cat", name, "--validate-hash", "xxh64"), rows)
                self.assertEqual(sorted(p.name for p in (self.folder / name).iterdir()), before)
                self.check_command("data", "verify", name)
                info = json.loads(self.check_command("data", "info", name, "--json"))
                self.assertEqual(info["compression"], compression)
                self.assertEqual(set(info["shards"][0]["zip"]["hashes"]), {"sha1", "xxh64"})
                self.check_command("data", "cat", name, "--local", "cache-" + name, "--from", 1)
                self.assertEqual(
                    (self.folder / ("cache-" + name) / "shard.00001.mds").stat().st_size,
                    info["shards"][1]["bytes"],
                )
        result = self.run_command("data", "write", "x", "--columns", '{"a":"int"}', "--compression", "lz4", input="")
        self.assertEqual(result.returncode, 2)
        self.assertIn("lz4", result.stderr)
        result = self.run_command("data", "cat", "zstd", "--validate-hash", "md5")
        self.assertEqual(result.returncode, 2)
        self.assertIn("md5", result.stderr)

    def test_merge(self):
        for name in ["b", "a"]:
            self.check_command("data", "text", name + ".txt", "--out", "all/" + name, "--concat-tokens", 7)
        said = self.check_command("data", "merge", "all")
        self.assertRegex(said, r"^all: \d+ samples in 2 shards\n$")
        merged = self.check_command("data", "cat", "all")
        parts = [self.check_command("data", "cat", "all/" + name) for name in ["a", "b"]]
        self.assertEqual(merged, "".join(parts))
        self.check_command("data", "merge", "all/b", "all/a", "--out", "all")
        self.assertEqual(self.check_command("data", "cat", "all"), "".join(reversed(parts)))
        self.check_command("data", "text", "a.txt", "--out", "other/a", "--concat-tokens", 7)
        # Of folders elsewhere: named from the deepest one that holds them, which the index is for.
        result = self.run_command("data", "merge", "all/a", "other/a", "--out", "elsewhere")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(f"names shards below {self.folder.resolve()}/: copy it there", result.stderr)
        (self.folder / "elsewhere/index.json").rename(self.folder / "index.json")
        self.assertEqual(self.check_command("data", "cat", "."), parts[0] * 2)
        result = self.run_command("data", "merge", "all/a", "other/a", "--out", "all")
        self.assertEqual(result.returncode, 2)  # both would be "a" there
        self.assertIn("would both be 'a'", result.stderr)
        for arguments in [["all/a", "all/b"], ["s3://bucket/all"], ["all/a", "--out", "s3://bucket/all"], ["nowhere"], ["all/a"], ["all/a", "nowhere", "--out", "all"]]:
            self.assertEqual(self.run_command("data", "merge", *arguments).returncode, 2, arguments)

    def test_order_equals_the_packages(self):
        """Every case of tests/data/make_order_cases.py: all shuffles, batching and sampling methods, weights, worlds."""
        path = pathlib.Path(__file__).parent.parent / "data" / "order_cases.jsonl"
        cases = [json.loads(line) for line in path.read_text().splitlines()]
        self.assertGreaterEqual(sum("sha256" in want for _, want in cases), 600)
        specs = "".join(json.dumps(spec) + "\n" for spec, _ in cases)
        answers = [
            json.loads(line) for line in self.check_command("data", "order", "--digest", input=specs).splitlines()
        ]
        self.assertEqual(len(answers), len(cases))
        for (spec, want), got in zip(cases, answers):
            with self.subTest(spec):
                self.assertEqual(got.pop("id"), spec["id"])
                self.assertEqual({"error": True} if "error" in got else got, want)

    def test_order_of_a_set_on_disk(self):
        self.check_command("data", "text", "a.txt", "--out", "sets/one", "--concat-tokens", 9, "--size-limit", 500)
        spec = {"id": "x", "streams": [{"dir": "sets", "split": "one"}], "nodes": 2, "batch_size": 4, "shuffle_algo": None}
        (line,) = self.lines("data", "order", "--root", self.folder, input=json.dumps(spec))
        self.assertEqual(line["id"], "x")
        self.assertEqual(line["shape"], [2, 1, 1, 10, 4])
        self.assertEqual(sorted(i for i in line["order"] if i >= 0)[-1], 76)
        bad = ['{"id":7,"streams":[{"dir":"nowhere"}]}', "no json", '{"id":9,"streams":[],"shufle":1}']
        lines = self.lines("data", "order", input="\n".join(bad))
        self.assertEqual([line["id"] for line in lines], [7, None, 9])
        for line, part in zip(lines, ["nowhere", "JSON", "shufle"]):
            self.assertIn(part, line["error"])

    def test_orders_too_large_to_make_are_error_lines_of_their_own(self):
        small = {"streams": [{"shard_sizes": [9, 9]}], "shuffle_algo": "py1e"}
        huge, top = 4_000_000_000, 2**63 - 1
        bad = [
            {"batch_size": huge}, {"num_canonical_nodes": huge}, {"nodes": 10**8, "ranks_per_node": 10**8},
            {"nodes": huge}, {"ranks_per_node": huge, "workers_per_rank": huge, "batch_size": huge},
            {"epoch_size": "10t"}, {"epoch_size": 10**13}, {"streams": [{"shard_sizes": [9], "choose": 10**13}]},
            {"streams": [{"shard_sizes": [9], "repeat": 1e13}]}, {"streams": [{"shard_sizes": [10**13]}]},
            {"streams": [{"shard_sizes": [2**52] * 4}]}, {"streams": [{"shard_sizes": [2**64 - 1]}]},
            {"batching_method": "device_per_stream", "num_canonical_nodes": huge},
            {"nodes": 3, "num_canonical_nodes": 2, "initial_physical_nodes": 2**62, "ranks_per_node": 4},
            {"nodes": top, "ranks_per_node": top, "replication": 2}, {"shuffle_block_size": top},
            {"shuffle_algo": "py1br", "shuffle_block_size": top}, {"epoch": top}, {"shuffle_seed": top},
            {"sample_in_epoch": top}, {"batch_size": 2**64 - 1},
        ]
        specs = [dict(small, id=i) | change for i, change in enumerate(bad)]
        good = dict(small, id="good", epoch_size=12, sampling_granularity=2**53)
        lines = self.lines("data", "order", input="\n".join(map(json.dumps, [*specs, good])))
        self.assertEqual([line["id"] for line in lines], [*range(len(bad)), "good"])
        for line, change in zip(lines, bad):
            self.assertIn("error", line, change)
            self.assertGreater(len(line["error"]), 10, change)
        self.assertEqual(len(lines[-1]["order"]), 12)

    def test_weights_that_are_no_numbers_are_named(self):
        for weight, said in [
            ('"repeat":1e400', "1e400"), ('"proportion":1e400', "1e400"), ('"choose":1e400', "1e400"), ('"repeat":-1e400', "1e400"),
            ('"repeat":NaN', '"repeat":N'), ('"proportion":Infinity', '"proportion":I'), ('"choose":1e30', "choose: 1e+30 is no whole number"),
            ('"repeat":1e300', "stream 0: repeat is 1e+300"), ('"repeat":-1', "stream 0: repeat is -1"),
            ('"proportion":-0.5', "stream 0: proportion is -0.5"), ('"choose":-2', "stream 0: choose is -2"),
            ('"repeat":1,"repeat":2', "repeat"),
        ]:  # fmt: skip
            (line,) = self.lines("data", "order", input='{"id":1,"streams":[{"shard_sizes":[9],' + weight + "}]}\n")
            self.assertIn(said, line["error"], weight)

    def test_interrupted_epochs_go_on_with_other_worlds(self):
        """A run on 2 processes that ends mid-epoch and goes on on 1 or 4: each sample as often as without the break."""
        spec = {"streams": [{"shard_sizes": [30, 50, 16]}], "shuffle_algo": "py1e", "num_canonical_nodes": 4, "id": 0}

        def global_batches(ranks, sample):
            nodes = dict(spec, nodes=1, ranks_per_node=ranks, batch_size=8 // ranks, sample_in_epoch=sample)
            (line,) = self.lines("data", "order", input=json.dumps(nodes))
            _, ranks, _, batches, size = line["shape"]
            rows = [line["order"][i : i + size] for i in range(0, len(line["order"]), size)]
            return [sorted(sum((rows[r * batches + k] for r in range(ranks)), [])) for k in range(batches)]

        whole = global_batches(2, 0)
        self.assertEqual(sorted(sum(whole, [])), list(range(96)))
        for done in [1, 5, 11]:
            for ranks in [1, 2, 4]:
                self.assertEqual(global_batches(ranks, 8 * done), whole[done:], (done, ranks))

    def test_version(self):
        version = json.loads(self.check_command("version", "--json"))
        self.assertRegex(version["version"], r"^\d+\.\d+\.\d+$")
        self.assertEqual(
            set(version), {"version", "commit", "torch", "cuda", "gpu", "cpu_features", "backends"}
        )
        self.assertIn("reference", version["backends"])
        self.assertEqual("cuda" in version["backends"], version["cuda"] is not None)


if __name__ == "__main__":
    unittest.main()
