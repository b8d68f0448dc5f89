"""`profiler:` writes Chrome traces, which are read back here."""

import json
import unittest

from command import CommandTest

SCHEDULE = "profiler={schedule: {skip_first: 1, wait: 1, warmup: 1, active: 2, repeat: 1}}"


class ProfilerTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data(train_bytes=8000)  # 250 samples, 31 batches of 8
        self.write_config()

    def spans(self, path) -> dict:
        """name -> the complete events of that name, of a trace."""
        trace = json.loads((self.folder / path).read_text())
        spans = {}
        for event in trace["traceEvents"]:
            if event.get("ph") == "X":
                spans.setdefault(event["name"], []).append(event)
        return spans

    def within(self, inner, outer) -> bool:
        return outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]

    def test_spans_and_operators_of_the_active_steps(self):
        self.check_command("train", "config.yaml", "max_duration=8ba", "eval_interval=5ba", "save_interval=5ba", SCHEDULE)
        # Steps 4 and 5, of three microbatches each; evaluated and saved after step 5.
        self.assertEqual([path.name for path in (self.folder / "run/traces").iterdir()], ["ep0-ba5-rank0.json"])
        spans = self.spans("run/traces/ep0-ba5-rank0.json")
        count = {name: len(spans.get(name, [])) for name in ("data", "forward", "backward", "optimizer", "evaluate", "save", "log")}
        # A save looks at the updated weights by a pass over one microbatch.
        self.assertEqual(count, {"data": 2, "forward": 7, "backward": 7, "optimizer": 2, "evaluate": 1, "save": 1, "log": 2})
        products = spans["aten::linear"]
        for forward in spans["forward"]:
            self.assertTrue(any(self.within(product, forward) for product in products))
        self.assertTrue(any(self.within(update, span) for update in spans["aten::_fused_adamw_"] for span in spans["optimizer"]))
        for first, second in zip(spans["data"], spans["optimizer"]):
            self.assertLess(first["ts"], second["ts"])

    def test_losses_do_not_change(self):
        self.check_command("train", "config.yaml", "max_duration=6ba", "save_folder=plain")
        result = self.run_command("train", "config.yaml", "max_duration=6ba", "save_folder=profiled", SCHEDULE)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("ERROR", result.stderr, "libtorch has nothing to say of GPUs on a CPU")
        losses = [[line.get("loss/train/total") for line in self.metrics(run)] for run in ("plain", "profiled")]
        self.assertEqual(*losses)

    def test_every_epoch_and_a_run_that_ends_early(self):
        profiler = (
            "profiler={schedule: {wait: 2, warmup: 0, active: 3}, torch_prof_record_shapes: true, torch_prof_with_stack: true, "
            "json_trace_handler: {folder: elsewhere, filename: 'e{epoch}b{batch}r{rank}.json', num_traces_to_keep: 2}}"
        )
        result = self.run_command("train", "config.yaml", "max_duration=97ba", "eval_loader=null", profiler)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("profiler.torch_prof_with_stack has no effect", result.stderr)
        # Epochs of 31 steps: traces end at steps 5, 36, 67 and, cut off by the end of the run, 97.
        names = sorted(path.name for path in (self.folder / "elsewhere").iterdir())
        self.assertEqual(names, ["e2b67r0.json", "e3b97r0.json"])
        self.assertEqual(len(self.spans("elsewhere/e2b67r0.json")["optimizer"]), 3)
        linear = self.spans("elsewhere/e3b97r0.json")["aten::linear"][0]
        self.assertIn([96, 32], linear["args"]["Input Dims"])

    def test_what_cannot_be_written_is_a_warning(self):
        (self.folder / "taken").write_text("")
        result = self.run_command("train", "config.yaml", "max_duration=6ba",
                                  SCHEDULE[:-1] + ", json_trace_handler: {folder: taken}}")  # fmt: skip
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("no trace of the steps to 5: ", result.stderr)

    def test_broken_blocks(self):
        for block, words in [
            ("{}", "profiler.schedule: required mapping is missing"),
            ("{schedule: {active: 0}}", "profiler.schedule.active: must be at least 1"),
            ("{schedule: {}, json_trace_handler: {filename: a/b}}", "filename is the name of one file"),
            ("{schedule: {}, json_trace_handler: {num_traces_to_keep: 0}}", "-1 (all) or at least 1"),
            ("{schedule: {}, torch_prof_with_stck: true}", 'did you mean "torch_prof_with_stack"'),
        ]:
            with self.subTest(block):
                result = self.run_command("train", "config.yaml", f"profiler={block}")
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertIn(words, result.stderr)
                self.assertFalse((self.folder / "run").exists())


if __name__ == "__main__":
    unittest.main()
