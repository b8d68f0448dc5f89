"""The page that a run keeps, and `dropless report`."""

import json
import re
import unittest

from command import CommandTest


class ReportTest(CommandTest):
    def data(self, path) -> dict:
        page = (self.folder / path).read_text()
        return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))

    def test_training_keeps_the_page_and_a_resume_goes_on(self):
        self.write_data()
        self.write_config()
        self.check_command("train", "config.yaml", "max_duration=20ba")
        (run,) = self.data("run/report.html")["runs"]
        self.assertEqual(run["series"]["loss/train/total"]["step"], list(range(1, 21)))
        self.assertEqual([run["load"]["layers"], run["load"]["experts"]], [2, 4])
        self.assertEqual(run["load"]["step"], [10, 20])
        self.check_command("train", "config.yaml", "max_duration=24ba", "autoresume=true")
        (run,) = self.data("run/report.html")["runs"]
        events = [(event["event"], event["step"]) for event in run["events"]]
        expected = [("start", 0), ("save", 7), ("save", 14), ("save", 20), ("done", 20), ("resume", 20)]
        self.assertEqual(events[:6], expected)
        self.assertEqual(run["series"]["loss/train/total"]["step"][-1], 24)
        out = self.check_command("report", "run", "run", "--out", "both.html")
        self.assertEqual(out, "both.html\n")
        self.assertEqual(len(self.data("both.html")["runs"]), 2)
        self.assertIn("d_model: 32", self.data("both.html")["runs"][0]["config"])

    def test_every_tenth_step_tells_how_decided_the_routers_are(self):
        self.write_data()
        self.write_config()
        self.check_command("train", "config.yaml", "max_duration=20ba", "model.ffn_config.moe_loss_weight=0")
        entropy = {line["step"]: line.get("mb_moe/router_entropy") for line in self.metrics() if "loss/train/total" in line}
        self.assertEqual([step for step, value in entropy.items() if value is not None], [10, 20])
        for step in (10, 20):
            self.assertGreater(entropy[step], 0)
            self.assertLess(entropy[step], 1)

    def test_the_peak_of_memory_is_above_what_is_in_use(self):
        self.write_data()
        self.write_config()
        self.check_command("train", "config.yaml", "device=cpu")
        memory = [line for line in self.metrics() if "memory/peak_resident_mem" in line]
        self.assertEqual([line["step"] for line in memory], [1, 10, 20, 30, 40])
        for line in memory:
            self.assertGreaterEqual(line["memory/peak_resident_mem"], line["memory/current_resident_mem"])
            self.assertGreater(line["memory/current_resident_mem"], 0.02)

    def test_a_run_that_fails_says_so_on_its_last_page(self):
        self.write_data()
        self.write_config()
        result = self.run_command("train", "config.yaml", "optimizer.lr=1e30", "algorithms=null")
        self.assertEqual(result.returncode, 1, result.stderr)
        (run,) = self.data("run/report.html")["runs"]
        last = run["events"][-1]
        self.assertEqual(last["event"], "failed")
        self.assertIn(last["detail"], result.stderr)
        self.assertEqual(last["step"], run["step"])

    def test_refuses_what_is_no_run(self):
        (self.folder / "empty").mkdir()
        for arguments in [("none",), ("empty",)]:
            result = self.run_command("report", *arguments)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertRegex(result.stderr, "^error: .*\nhint: ")


if __name__ == "__main__":
    unittest.main()
