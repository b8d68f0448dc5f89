"""`dropless train --serve`: the report of a run as it goes."""

import json
import re
import select
import socket
import subprocess
import time
import unittest
import urllib.error
import urllib.request

from command import BINARY, CommandTest


class ServeTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data()
        self.write_config()

    def start(self, *arguments) -> subprocess.Popen:
        process = subprocess.Popen(
            [BINARY, "train", "config.yaml", "progress_bar=false", *arguments],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def address(self, process: subprocess.Popen) -> str:
        """Where it says that it serves."""
        said = ""
        while select.select([process.stderr], [], [], 60)[0]:
            line = process.stderr.readline()
            said += line
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                return found[0]
            if not line:
                break
        self.fail(f"no address in: {said}")

    def get(self, address: str, **headers):
        return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30)

    def wait_for_step(self, address: str, step: int) -> dict:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            (run,) = json.load(self.get(address + "data.json"))["runs"]
            if run["step"] >= step:
                return run
            time.sleep(0.1)
        self.fail(f"step {step} does not come")

    def test_page_and_data_follow_the_run(self):
        process = self.start("--serve", "0", "max_duration=5000ba", "save_interval=0ba")
        address = self.address(process)
        early = self.wait_for_step(address, 2)
        late = self.wait_for_step(address, early["step"] + 1)
        loss = late["series"]["loss/train/total"]
        self.assertEqual(loss["step"][0], 1)
        self.assertGreaterEqual(loss["step"][-1], early["step"] + 1)
        self.assertEqual(late["name"], "run")
        self.assertIn("d_model: 32", late["config"])

        page = self.get(address)
        self.assertEqual(page.headers["Content-Type"], "text/html; charset=utf-8")
        text = page.read().decode()
        (run,) = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["runs"]
        self.assertGreaterEqual(run["step"], late["step"])
        self.assertIn("connect-src 'self'", text)

        process.terminate()
        self.assertEqual(process.wait(timeout=60), 0)
        with self.assertRaises(urllib.error.URLError):
            self.get(address)
        (event, last) = [json.loads(line) for line in (self.folder / "run/events.jsonl").read_text().splitlines()][-2:]
        self.assertEqual([event["event"], last["event"]], ["save", "stop"])

    def test_unchanged_data_is_not_sent_again(self):
        process = self.start("--serve", "0", "max_duration=5000ba", "save_interval=0ba")
        address = self.address(process)
        self.wait_for_step(address, 1)
        for _ in range(200):
            answer = self.get(address + "data.json")
            try:
                again = self.get(address + "data.json", **{"If-None-Match": answer.headers["ETag"]})
                self.assertNotEqual(again.headers["ETag"], answer.headers["ETag"])
            except urllib.error.HTTPError as error:
                self.assertEqual(error.code, 304)
                break
        else:
            self.fail("never unchanged")

    def test_strangers_are_refused(self):
        process = self.start("--serve", "0", "max_duration=5000ba", "save_interval=0ba")
        address = self.address(process)
        port = int(address.split(":")[2].strip("/"))
        for path, headers, code in [
            ("", {"Host": f"evil.example:{port}"}, 403),
            ("data.json", {"Host": "127.0.0.1.evil.example"}, 403),
            ("metrics.jsonl", {}, 404),
            ("../config.yaml", {}, 404),
        ]:
            with self.subTest(path, headers=headers), self.assertRaises(urllib.error.HTTPError) as caught:
                self.get(address + path, **headers)
            self.assertEqual(caught.exception.code, code)
        self.assertEqual(self.get(address, Host=f"localhost:{port}").status, 200)
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(address, data=b"x", timeout=30)
        self.assertIn(caught.exception.code, (405, 501))
        # Only on loopback: 127.0.0.2 is this machine too, but another address of it.
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=10)
        # Who says nothing, or breaks off, holds nobody up.
        silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(20)]
        silent[0].sendall(b"GET / HTTP/1.1\r\nHost: loc")
        silent[1].sendall(b"\0" * 100_000)
        self.assertEqual(self.get(address + "data.json").status, 200)
        for connection in silent:
            connection.close()
        process.terminate()
        self.assertEqual(process.wait(timeout=60), 0)

    def test_a_port_that_is_taken_is_an_error(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            result = self.run_command("train", "config.yaml", "--serve", port)
        self.assertEqual(result.returncode, 2)
        self.assertEqual(
            result.stderr.splitlines()[-2:],
            [
                f"error: cannot serve the report on port {port} of 127.0.0.1: Address already in use",
                "hint: name another port, or 0 for any that is free",
            ],
        )
        self.assertFalse((self.folder / "run").exists())
        # Another run's server counts as well.
        process = self.start("--serve", "0", "max_duration=5000ba", "save_interval=0ba")
        port = self.address(process).split(":")[2].strip("/")
        result = self.run_command("train", "config.yaml", "save_folder=other", "--serve", port)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("Address already in use", result.stderr)
        for bad in ("65536", "-1", "http"):
            result = self.run_command("train", "config.yaml", "--serve", bad)
            self.assertEqual(result.returncode, 2, result.stderr)


if __name__ == "__main__":
    unittest.main()
