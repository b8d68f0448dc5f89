"""The demo's corpus: which files are listed, and which of them are held out."""

import contextlib
import io
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import demo_corpus


class DemoCorpusTest(unittest.TestCase):
    def test_lists_library_sources_only(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in (
                "os.py", "email/mime.py", "email/test/x.py", "test/x.py", "idlelib/idle_test/x.py",
                "encodings/utf_8.py", "site-packages/a.py", "tests/x.py", "notes.txt", "a-b.py", "a/c.py",
                "__pycache__/os.py",
            ):
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("", encoding="utf-8")
            # '-' sorts before '/', and '/' before letters: one order of plain strings.
            self.assertEqual(demo_corpus.list_sources(Path(folder)), ["a-b.py", "a/c.py", "email/mime.py", "os.py"])

    def test_every_twentieth_is_held_out(self):
        train, held_out = demo_corpus.split([str(i) for i in range(50)])
        self.assertEqual(held_out, ["7", "27", "47"])
        self.assertEqual(len(train), 47)
        self.assertFalse(set(train) & set(held_out))

    def test_this_interpreter_has_a_corpus(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(demo_corpus.main([folder]), 0)
            held_out = Path(folder, "held_out.txt").read_text(encoding="utf-8").splitlines()
        self.assertGreater(len(held_out), 10)
        self.assertTrue(all(Path(path).is_file() for path in held_out))

    def test_options_are_no_folders(self):
        with contextlib.redirect_stderr(io.StringIO()) as told:
            self.assertEqual([demo_corpus.main([word]) for word in ("--help", "-x")], [0, 2])
        self.assertEqual(told.getvalue().count("usage"), 2)
        self.assertFalse(Path("--help").exists())


if __name__ == "__main__":
    unittest.main()
