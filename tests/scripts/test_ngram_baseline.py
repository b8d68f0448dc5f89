"""Compares dropless_ngram with a case counted by hand and with a plain Python model on random bytes.

usage: test_ngram_baseline.py PROGRAM
"""

import json
import math
import random
import subprocess
import sys
import tempfile
import unittest
from collections import defaultdict
from pathlib import Path

PROGRAM = ""


def run(folder, train, held_out):
    """Writes the documents and their two lists below `folder`; the finished process."""
    lists = []
    for name, documents in (("train", train), ("held_out", held_out)):
        paths = []
        for i, document in enumerate(documents):
            path = Path(folder, f"{name}{i}")
            path.write_bytes(document)
            paths.append(f"{path}\n")
        lists.append(Path(folder, f"{name}.txt"))
        lists[-1].write_text("".join(paths), encoding="utf-8")
    return subprocess.run([PROGRAM, *map(str, lists)], capture_output=True, text=True, check=False)


def reference_nats(train, held_out, max_order):
    """Mean nats per byte by the definition, one dictionary of followers per context."""
    followers = defaultdict(lambda: defaultdict(int))
    for document in train:
        for i, byte in enumerate(document):
            for length in range(min(i, max_order - 1) + 1):
                followers[document[i - length : i]][byte] += 1
    nats, count = 0.0, 0
    for document in held_out:
        for i, byte in enumerate(document):
            p = 1 / 256
            for length in range(min(i, max_order - 1) + 1):
                seen = followers.get(document[i - length : i])
                if seen:
                    p = (seen.get(byte, 0) + len(seen) * p) / (sum(seen.values()) + len(seen))
            nats -= math.log(p)
            count += 1
    return nats / count


class NgramBaselineTest(unittest.TestCase):
    def score(self, train, held_out):
        with tempfile.TemporaryDirectory() as folder:
            result = run(folder, train, held_out)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def test_counted_by_hand(self):
        # Training "aab": c(a)=2, c(b)=1, t=2; after a: a once, b once, t=2.
        p_a = (2 + 2 / 256) / (3 + 2)
        p_b = (1 + 2 / 256) / (3 + 2)
        p_b_after_a = (1 + 2 * p_b) / (2 + 2)
        score = self.score([b"aab"], [b"ab"])
        self.assertEqual((score["bytes"], score["train_bytes"]), (2, 3))
        self.assertAlmostEqual(score["unigram_nats"], -(math.log(p_a) + math.log(p_b)) / 2, 14)
        self.assertAlmostEqual(score["witten_bell5_nats"], -(math.log(p_a) + math.log(p_b_after_a)) / 2, 14)

    def test_unseen_byte_gets_the_uniform_share(self):
        score = self.score([b"aaaa"], [b"\xff"])
        self.assertAlmostEqual(score["unigram_nats"], -math.log((1 / 256) / 5), 14)

    def test_equals_plain_python_on_random_bytes(self):
        rng = random.Random(5)
        for _ in range(20):
            letters = bytes(rng.sample(range(256), rng.choice((2, 3, 7))))

            def documents(count, letters=letters):
                return [bytes(rng.choices(letters, k=rng.randrange(300))) for _ in range(count)]

            train, held_out = documents(4), documents(3) + [letters]
            score = self.score(train, held_out)
            self.assertAlmostEqual(score["unigram_nats"], reference_nats(train, held_out, 1), 11)
            self.assertAlmostEqual(score["witten_bell5_nats"], reference_nats(train, held_out, 5), 11)

    def test_bad_input(self):
        with tempfile.TemporaryDirectory() as folder:
            result = run(folder, [b"a"], [])
            self.assertEqual(result.returncode, 2)
            self.assertIn("no held-out bytes", result.stderr)
            absent = subprocess.run(
                [PROGRAM, f"{folder}/absent", f"{folder}/train.txt"], capture_output=True, text=True, check=False
            )
            self.assertEqual(absent.returncode, 2)
            self.assertIn("absent", absent.stderr)


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
