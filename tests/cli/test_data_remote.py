"""Training on a set behind an HTTP server that fails, cuts and lies."""

import functools
import http.server
import json
import os
import pathlib
import shutil
import threading
import time
import unittest

from command import CONFIG, CommandTest, text


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `trouble` of the server says how the shards come: fine, flaky, cut, absent, with other
    bytes (lies), with a Content-Length that is one short (short), a byte a second (slow), 40 KB a second
    (steady), or as a page that does not end, of an error (endless error)."""

    def do_GET(self):
        trouble = self.server.trouble
        if trouble == "endless" and self.path.endswith("index.json"):
            self.send_response(200)
            self.send_header("Content-Length", str(2 << 30))
            return self.end_headers()
        if ".mds" not in self.path or trouble == "fine":
            return super().do_GET()
        self.server.asked.append(self.path)
        body = pathlib.Path(self.translate_path(self.path)).read_bytes()
        if trouble == "flaky" and self.server.asked.count(self.path) == 1:
            return self.send_error(503)
        if trouble == "absent":
            return self.send_error(404)
        if trouble == "endless error":
            return self.pour()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) - (trouble == "short")))
        self.end_headers()
        if trouble == "slow":
            return self.trickle()
        if trouble == "steady":
            for begin in range(0, len(body), 8000):
                self.server.closing.wait(0.2)
                self.wfile.write(body[begin : begin + 8000])
                self.wfile.flush()
            return None
        self.wfile.write(body[: len(body) // 2] if trouble == "cut" else b"x" + body[1:] if trouble == "lies" else body)
        self.close_connection = True

    def pour(self):
        self.send_response(503)
        self.end_headers()
        try:
            while not self.server.closing.wait(0.01):
                self.wfile.write(b"x" * 65536)
        except OSError:
            self.close_connection = True

    def trickle(self):
        while not self.server.closing.wait(1):
            try:
                self.wfile.write(b"x")
                self.wfile.flush()
            except OSError:
                return

    def log_message(self, *arguments):
        pass


class RemoteTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data()
        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(self.folder))
        )
        self.server.asked = []
        self.server.closing = threading.Event()
        self.addCleanup(self.server.closing.set)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def train(self, trouble: str, timeout: int = 60, cache: str = ""):
        self.server.trouble = trouble
        cache = cache or f"cache-{trouble}"
        remote = f"remote: 'http://127.0.0.1:{self.server.server_port}/data', download_retry: 1, validate_hash: xxh128, download_timeout: {timeout}"
        self.write_config(content=CONFIG.replace("local: data", f"local: {cache}, {remote}").replace("40ba", "6ba"))
        return self.run_command("train", "config.yaml", f"save_folder=run-{trouble}", "save_overwrite=true")

    def test_shards_are_fetched_and_fetched_again(self):
        for trouble in ["fine", "flaky"]:
            result = self.train(trouble)
            self.assertEqual(result.returncode, 0, result.stderr)
            cached = self.folder / f"cache-{trouble}" / "train" / "shard.00000.mds"
            self.assertEqual(cached.read_bytes(), (self.folder / "data" / "train" / "shard.00000.mds").read_bytes())
        losses = [
            [line["loss/train/total"] for line in self.metrics(run) if "loss/train/total" in line]
            for run in ["run-fine", "run-flaky"]
        ]
        self.assertEqual(len(losses[0]), 6)
        self.assertEqual(losses[0], losses[1])

    def test_what_fails_is_an_error_that_names_the_shard(self):
        for trouble, timeout in [("cut", 60), ("absent", 60), ("lies", 60), ("short", 60), ("slow", 2), ("endless error", 60)]:
            begin = time.monotonic()
            result = self.train(trouble, timeout)
            self.assertLess(time.monotonic() - begin, 60, trouble)  # two tries, and nothing hangs
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertIn("shard.00000.mds", result.stderr)
            self.assertFalse((self.folder / f"cache-{trouble}" / "train" / "shard.00000.mds").exists())

    def test_a_damaged_copy_in_the_cache_is_fetched_again(self):
        shard = self.folder / "cache" / "train" / "shard.00000.mds"
        self.assertEqual(self.train("fine", cache="cache").returncode, 0)
        whole = shard.read_bytes()
        broken = whole[:-1] + bytes([whole[-1] ^ 1])
        shard.write_bytes(broken)
        result = self.train("fine", cache="cache")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"shard\.00000\.mds: xxh128 is .*; it is made again from http://")
        self.assertEqual(shard.read_bytes(), whole)
        shard.write_bytes(broken)
        result = self.train("lies", cache="cache")
        self.assertEqual(result.returncode, 1)
        self.assertIn("the file there is not the one of the index", result.stderr)

    def test_merge_and_cat_of_urls(self):
        self.check_command("data", "text", "data/train/index.json", "--out", "other/b", "--concat-tokens", 8)
        self.server.trouble = "fine"
        url = f"http://127.0.0.1:{self.server.server_port}"
        said = self.check_command("data", "merge", url + "/data/train", url + "/other/b/", "--out", "all")
        self.assertRegex(said, r"^all: \d+ samples in \d+ shards\n$")
        index = json.loads((self.folder / "all" / "index.json").read_text())
        self.assertEqual(
            {shard["raw_data"]["basename"].rpartition("/")[0] for shard in index["shards"]}, {"data/train", "other/b"}
        )
        # Copied to the root of both, as a set of its own.
        (self.folder / "all/index.json").rename(self.folder / "index.json")
        whole = self.check_command("data", "cat", url, "--local", "whole")
        self.assertEqual(whole, "".join(self.check_command("data", "cat", part) for part in ("data/train", "other/b")))
        for other in (f"http://localhost:{self.server.server_port}/other/b", "other/b"):
            for pair in ((url + "/data/train", other), (other, url + "/data/train")):
                result = self.run_command("data", "merge", *pair, "--out", "x")
                self.assertEqual((result.returncode, "no folder holds both" in result.stderr), (2, True), result.stderr)
        self.assertEqual(self.run_command("data", "merge", url + "/none", "--out", "x").returncode, 2)
        self.server.trouble = "endless"
        result = self.run_command("data", "merge", url + "/data/train", "--out", "x")
        self.assertEqual(result.returncode, 1)
        self.assertIn("index.json: longer than the 1073741824 bytes", result.stderr)
        self.server.trouble = "slow"
        result = self.run_command("data", "cat", url + "/data/train", "--local", "slow", "--download-timeout", 1, "--download-retry", 0)
        self.assertEqual(result.returncode, 1)
        self.assertIn("--download-timeout", result.stderr)

    def test_a_slow_line_is_no_dead_one(self):
        """A shard that takes two seconds and more, while a second below 16 KiB/s ends a try."""
        self.assertGreater((self.folder / "data/train/shard.00000.mds").stat().st_size, 70_000)
        self.server.trouble = "steady"
        url = f"http://127.0.0.1:{self.server.server_port}/data/train"
        # On a busy machine the server itself may stand still for a second; a bound on the whole would end every try.
        far = self.check_command("data", "cat", url, "--local", "near", "--download-timeout", 1, "--download-retry", 4)
        self.assertEqual(far, self.check_command("data", "cat", "data/train"))

    def test_a_set_that_is_no_copy_of_the_remotes_stays_whole(self):
        """`local` is the user's own set, and the place named as its remote holds another one, or none."""
        (self.folder / "mine.txt").write_text(text(3, 20000))
        self.check_command("data", "text", "mine.txt", "--out", "mine/train", "--concat-tokens", 32, "--size-limit", "5kb")
        (self.folder / "mine/train/shard.00004.mds").unlink()
        before = sorted((self.folder / "mine/train").iterdir())
        self.assertGreater(len(before), 12)
        self.server.trouble = "fine"
        for place in ("data", "nowhere"):
            remote = f"remote: 'http://127.0.0.1:{self.server.server_port}/{place}', download_retry: 0, cache_limit: 25kb"
            self.write_config(content=CONFIG.replace("local: data", f"local: mine, {remote}", 1).replace("40ba", "6ba"))
            result = self.run_command("train", "config.yaml", "save_overwrite=true")
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(f"mine/train holds another set than http://127.0.0.1:{self.server.server_port}/{place}/train", result.stderr)
            self.assertEqual(sorted((self.folder / "mine/train").iterdir()), before)
        # Of a copy, what was removed comes again.
        remote = f"remote: 'http://127.0.0.1:{self.server.server_port}/mine', download_retry: 0, cache_limit: 25kb"
        shutil.copytree(self.folder / "mine", self.folder / "copy")
        for shard in range(3):
            (self.folder / f"copy/train/shard.{shard:05}.mds").unlink()
        content = CONFIG.replace("local: data", f"local: copy, {remote}", 1).replace("40ba", "3ba").replace("shuffle: true", "shuffle: false")
        self.write_config(content=content)
        result = self.run_command("train", "config.yaml", "save_overwrite=true")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertLess(sum(path.stat().st_size for path in (self.folder / "copy/train").glob("*.mds")), 30_000)

    def test_a_limited_cache_keeps_what_is_needed_next(self):
        """Of 32 shards, in any order: each sample needs one of them."""
        (self.folder / "mine.txt").write_text(text(3, 40000))
        self.check_command("data", "text", "mine.txt", "--out", "mine/train", "--concat-tokens", 32, "--size-limit", "5kb")
        index = json.loads((self.folder / "mine/train/index.json").read_text())
        shards, samples = len(index["shards"]), sum(shard["samples"] for shard in index["shards"])
        self.assertGreater(shards, 24)
        self.server.trouble = "counted"
        losses, counts, warned = [], [], []
        for limit in (5 * shards // 2, 20, 10 * shards):  # in kb: half of the shards, four of them, all
            self.server.asked.clear()
            remote = f"remote: 'http://127.0.0.1:{self.server.server_port}/mine', cache_limit: {limit}kb"
            content = CONFIG.replace("local: data", f"local: cache-{limit}, {remote}", 1).replace("40ba", f"{samples // 8}ba")
            self.write_config(content=content)
            result = self.run_command("train", "config.yaml", f"save_folder=run-{limit}", "save_interval=1ep", "eval_interval=0")
            self.assertEqual(result.returncode, 0, result.stderr)
            warned.append(result.stderr.count("raise cache_limit to"))
            losses.append([line["loss/train/total"] for line in self.metrics(f"run-{limit}") if "loss/train/total" in line])
            counts.append(len(self.server.asked))
        self.assertEqual(losses[0], losses[1])
        self.assertEqual(losses[0], losses[2])
        read = 8 * len(losses[0])
        # Kept by the last use, half of the samples would find their shard gone; kept by the next use, about a third.
        self.assertLess(counts[0], 0.42 * read, counts)
        self.assertLess(counts[1], 0.95 * read, counts)
        self.assertEqual(counts[2], shards)
        self.assertEqual(warned, [0, 1, 0])  # where not even the shards of one batch fit

    def test_what_a_killed_download_left_is_removed(self):
        (self.folder / "near").mkdir()
        old, new = (self.folder / "near" / f"shard.00000.mds.tmp-{pid}-0" for pid in (2**22 + 1, 2**22 + 2))
        others = [self.folder / "near" / f"{name}.tmp-{2**22 + 1}-0{end}" for name, end in (("shard.00000.mds", ".tar"), ("x", ""))]
        for path in (old, new, *others):
            path.write_bytes(b"half")
            os.utime(path, (0, 0))
        os.utime(new)
        self.server.trouble = "fine"
        url = f"http://127.0.0.1:{self.server.server_port}/data/train"
        self.check_command("data", "cat", url, "--local", "near")
        self.assertEqual([path.exists() for path in (old, new, *others)], [False, True, True, True])


if __name__ == "__main__":
    unittest.main()
