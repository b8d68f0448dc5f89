"""Callbacks and loggers of the config: what they stop, write and export."""

import json
import os
import struct
import unittest

from command import CommandTest, read_safetensors

try:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
except ImportError:
    EventFileLoader = None


class CallbacksTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data()
        self.config = self.write_config()

    def train(self, *arguments, code=0):
        result = self.run_command("train", self.config, "eval_interval=0ba", "scheduler.t_warmup=0ba", *arguments)
        self.assertEqual(result.returncode, code, result.stderr)
        return result.stderr

    def steps(self, run="run"):
        return [line["step"] for line in self.metrics(run) if "loss/train/total" in line]

    def test_early_stopper_without_evaluations(self):
        stopper = "callbacks={early_stopper: {monitor: LanguagePerplexity, dataloader_label: eval}}"
        self.assertIn("callbacks.early_stopper has no effect: eval_interval is 0", self.train(stopper, "max_duration=2ba"))

    def test_early_stopper_stops_at_the_same_step_after_a_resume(self):
        # Perplexity cannot improve by 1e9: the first evaluation stays the best.
        arguments = [
            "eval_interval=5ba", "save_interval=6ba",
            "callbacks={early_stopper: {monitor: LanguagePerplexity, dataloader_label: eval, "
            "min_delta: 1e9, patience: 8ba}}",
        ]  # fmt: skip
        err = self.train(*arguments)
        self.assertIn("stopped early: early_stopper: metrics/eval/LanguagePerplexity", err)
        self.assertEqual(self.steps()[-1], 14)
        self.assertEqual(os.readlink(self.folder / "run" / "latest"), "step-14")
        self.train("save_folder=cut", "max_duration=40ba", *arguments)
        cut = self.folder / "cut"
        for name in ["step-14", "step-12"]:
            os.rename(cut / name, self.folder / name)
        os.unlink(cut / "latest")
        self.assertIn("resumed from cut/step-6", self.train("save_folder=cut", "autoresume=true", *arguments))
        self.assertEqual(self.steps("cut"), list(range(1, 15)))

    def test_an_eval_interval_of_zero_never_evaluates(self):
        evaluated = lambda: [line["step"] for line in self.metrics() if "metrics/eval/LanguageCrossEntropy" in line]
        for interval, first, steps in [("0", "false", []), ("0ba", "true", [0]), ("3ba", "false", [3, 4])]:
            with self.subTest(interval):
                self.train("max_duration=4ba", f"eval_interval={interval}", f"eval_first={first}", "save_overwrite=true")
                self.assertEqual(evaluated(), steps)

    def test_monitors_add_their_figures(self):
        self.train("max_duration=4ba", "save_folder=none")
        for line in self.metrics("none"):
            self.assertFalse({"time/train", "time/remaining_estimate", "throughput/device/tokens_per_sec"} & line.keys())
        arguments = [
            "max_duration=8ba", "eval_interval=2ba", "save_interval=3ba", "loggers={tensorboard: {}}",
            "callbacks={speed_monitor: {window_size: 10, time_unit: minutes, gpu_flops_available: 1e12}, "
            "runtime_estimator: {skip_batches: 2}, mbmoe_tok_per_expert: {log_interval: 4, log_every_layer: true}, "
            "lr_monitor: {}, memory_monitor: {}}",
        ]  # fmt: skip
        err = self.train(*arguments)
        self.assertIn("speed_monitor.window_size has no effect", err)
        train = lambda: [line for line in self.metrics() if "loss/train/total" in line]
        lines = train()
        for before, line in zip([None, *lines], lines):
            for what in ["tokens", "samples", "batches", "flops"]:
                self.assertEqual(line[f"throughput/device/{what}_per_sec"], line[f"throughput/{what}_per_sec"])
            self.assertAlmostEqual(line["throughput/device/mfu"], line["throughput/flops_per_sec"] / 1e12)
            self.assertAlmostEqual(line["time/total"], line["time/train"] + line["time/val"])
            self.assertEqual("time/remaining_estimate" in line, line["step"] > 2)
            self.assertEqual("mb_moe/layer1_median_tpe" in line, line["step"] in [4, 8])
            if before:
                self.assertAlmostEqual(line["time/train"] - before["time/train"], 1 / line["throughput/batches_per_sec"] / 60)
        self.assertEqual([line["step"] for line in lines if line["time/val"] == 0], [1, 2])
        self.assertGreaterEqual(lines[-1]["time/remaining_estimate"], 0)
        # A resumed run's times go on.
        os.rename(self.folder / "run/step-8", self.folder / "step-8")
        os.unlink(self.folder / "run/latest")
        self.train(*arguments, "autoresume=true")
        again = train()
        self.assertEqual(again[:6], lines[:6])
        self.assertGreater(again[6]["time/train"], lines[5]["time/train"])
        self.assertGreaterEqual(again[6]["time/val"], lines[5]["time/val"])

    def test_token_accuracy(self):
        self.train("max_duration=20ba", "eval_interval=20ba")
        lines = self.metrics()
        measured = [line["step"] for line in lines if "metrics/train/TokenAccuracy" in line]
        self.assertEqual(measured, [10, 20])
        for line in lines:
            for part in ["train", "eval"]:
                self.assertTrue(0 < line.get(f"metrics/{part}/TokenAccuracy", 0.5) < 1)
        self.assertIn("metrics/eval/TokenAccuracy", lines[-1])

    def test_loss_spike_ends_the_run_and_names_the_checkpoint(self):
        callback = "callbacks={kill_loss_spike: {log_only: %s, window_size: 5, loss_cap: 0.1}}"
        err = self.train(callback % "false", code=1)
        self.assertIn("error: kill_loss_spike: 5 of the last 5 losses are above loss_cap 0.1", err)
        self.assertIn("last good checkpoint: run/step-7", err)
        err = self.train(callback % "true", "save_folder=logged", "max_duration=12ba")
        self.assertEqual(err.count("warning: kill_loss_spike"), 1, "said once")

    def test_samples_are_written_as_training_goes(self):
        callback = (
            "callbacks={generate_callback: {prompts: ['the', 'a b'], interval: 4ba, max_new_tokens: 5}}"
        )
        self.train(callback, "max_duration=10ba")
        read = lambda: [json.loads(line) for line in (self.folder / "run/samples.jsonl").read_text().splitlines()]
        lines = read()
        self.assertEqual(
            [(line["step"], line["prompt"]) for line in lines],
            [(step, prompt) for step in [4, 8, 10] for prompt in ["the", "a b"]],
        )
        text = self.check_command(
            "generate", "run", "--prompt", "the", "--max-new-tokens", 5, "--temperature", 0, "--json"
        )
        self.assertEqual(json.loads(text)["text"], [lines[4]["text"]])
        # A resumed run has each once.
        os.rename(self.folder / "run/step-10", self.folder / "step-10")
        os.unlink(self.folder / "run/latest")
        self.train(callback, "max_duration=10ba", "autoresume=true")
        self.assertEqual(read(), lines)

    def test_hf_checkpointer_exports_what_it_saves(self):
        self.train(
            "max_duration=6ba", "model.norm_type=rmsnorm", "model.tie_word_embeddings=false",
            "callbacks={hf_checkpointer: {save_folder: out, save_interval: 3ba, precision: bfloat16}}",
        )  # fmt: skip
        self.assertEqual(sorted(os.listdir(self.folder / "out")), ["ba3", "ba6"])
        self.check_command("convert", "run/step-6", "by-hand", "--to", "hf", "--dtype", "bf16")
        self.check_same_files("by-hand", "out/ba6")

    def test_an_export_is_replaced_only_when_told_to(self):
        callback = "callbacks={hf_checkpointer: {save_folder: out, save_interval: 2ba, overwrite: false}}"
        there = self.folder / "out" / "ba4"
        there.mkdir(parents=True)
        (there / "x").write_text("x")
        err = self.train("max_duration=6ba", "model.norm_type=rmsnorm", callback, code=2)
        self.assertRegex(err, r"callbacks\.hf_checkpointer\.save_folder: .*out/ba4 is not empty")
        self.assertFalse((self.folder / "run").exists())
        same = callback.replace("save_interval", "huggingface_folder_name: x, save_interval")
        err = self.train("max_duration=6ba", "model.norm_type=rmsnorm", same, code=2)
        self.assertRegex(err, r"huggingface_folder_name: the export at step 4 would be written over another, out/x")
        self.train("max_duration=3ba", "model.norm_type=rmsnorm", callback)
        self.assertEqual(sorted(os.listdir(self.folder / "out")), ["ba2", "ba3", "ba4"])
        err = self.train("max_duration=4ba", "model.norm_type=rmsnorm", callback, "autoresume=true")
        self.assertIn("out/ba4 is there already and stays", err)
        self.assertEqual(os.listdir(there), ["x"])

    def test_samples_have_the_positions_that_they_need(self):
        callback = "callbacks={{generate_callback: {{prompts: [ab], interval: 2ba, max_new_tokens: {}}}}}"
        learned = ["max_duration=2ba", "model.learned_pos_emb=true", "model.attn_config.rope=false", "model.max_seq_len=32"]
        err = self.train(*learned, callback.format(32), code=2)
        self.assertIn("callbacks.generate_callback.max_new_tokens: 32 tokens behind the 2 of prompt 0", err)
        self.train(*learned, callback.format(31))
        self.assertEqual(len((self.folder / "run/samples.jsonl").read_text().splitlines()), 1)

    def check_same_files(self, one, other):
        self.assertEqual(sorted(os.listdir(self.folder / one)), sorted(os.listdir(self.folder / other)))
        for name in os.listdir(self.folder / one):
            same = (self.folder / one / name).read_bytes() == (self.folder / other / name).read_bytes()
            self.assertTrue(same, name)

    def test_hf_checkpointer_exports_what_transformers_lacks_as_llm_foundry_does(self):
        callback = "callbacks={hf_checkpointer: {save_folder: '{run_name}/hf', save_interval: 3ba}}"
        learned = ["model.learned_pos_emb=true", "model.attn_config.rope=false"]
        self.train("max_duration=3ba", "run_name=mpt", "save_folder=mpt", *learned, callback)
        self.check_command("convert", "mpt/step-3", "by-hand", "--to", "llm-foundry")
        self.check_same_files("by-hand", "mpt/hf/ba3")
        self.assertEqual(json.loads((self.folder / "by-hand/config.json").read_text())["model_type"], "mpt")
        err = self.train("save_folder=none", "run_name=none", "model.ffn_config.moe_router_score=sigmoid", callback, code=2)
        self.assertRegex(err, r"callbacks\.hf_checkpointer: .*moe_router_score")
        self.assertRegex(err, "hint: take the callback out")
        self.assertFalse((self.folder / "none").exists())

    def test_frozen_layers_do_not_move(self):
        name = "transformer.blocks.0.attn.Wqkv.weight"
        self.train(
            "max_duration=4ba", "save_interval=1ba",
            f"callbacks={{layer_freezing: {{layer_names: [model.{name}]}}}}",
        )  # fmt: skip
        weights = [read_safetensors(self.folder / f"run/step-{n}/model.safetensors") for n in [1, 4]]
        self.assertEqual({key for key in weights[0] if weights[0][key] == weights[1][key]}, {name})
        err = self.train(
            "save_folder=none", "callbacks={layer_freezing: {layer_names: [model.transformer.wqkv]}}", code=2
        )
        self.assertIn("callbacks.layer_freezing.layer_names.0: no parameter to freeze is called", err)

    def test_global_lr_scaling_is_another_rate_and_decay(self):
        groups = "[{param_str_match: wte, lr: 2e-3}]"
        scaled = f"optimizer={{lr: 1e-3, weight_decay: 0.3, param_groups: {groups}}}"
        self.train("max_duration=5ba", "save_folder=scaled", scaled, "callbacks={global_lr_scaling: {lr_scale: 0.5, wd_pct: 0.2}}")
        same = scaled.replace("1e-3", "5e-4").replace("0.3", "1e-4").replace("2e-3", "1e-3, weight_decay: 2e-4")
        self.train("max_duration=5ba", "save_folder=same", same)
        self.assertEqual(self.metrics("scaled")[4]["lr-DecoupledAdamW/group1"], self.metrics("same")[4]["lr-DecoupledAdamW/group1"])
        files = [(self.folder / run / "step-5/model.safetensors").read_bytes() for run in ("scaled", "same")]
        self.assertEqual(*files)

    def test_optimizer_monitor_logs_the_norm_of_each_tensor(self):
        self.train("max_duration=4ba", "save_interval=1ba", "callbacks={optimizer_monitor: {batch_log_interval: 2}}")
        lines = self.metrics()
        self.assertNotIn("l2_norm/param/transformer.wte.weight", lines[0])
        line = lines[3]
        before = read_safetensors(self.folder / "run/step-3/model.safetensors")
        for kind, file in [("param", "model"), ("moment", "optimizer"), ("update", "model")]:
            stored = read_safetensors(self.folder / f"run/step-4/{file}.safetensors")
            key = "transformer.norm_f.weight"
            raw = stored[f"exp_avg/{key}" if kind == "moment" else key][2]
            values = struct.unpack(f"<{len(raw) // 4}f", raw)
            if kind == "update":
                values = [now - then for now, then in zip(values, struct.unpack(f"<{len(raw) // 4}f", before[key][2]))]
            self.assertAlmostEqual(line[f"l2_norm/{kind}/{key}"], sum(v * v for v in values) ** 0.5, places=5)
        squares = sum(value**2 for key, value in line.items() if key.startswith("l2_norm/grad/transformer"))
        self.assertLessEqual(squares**0.5, 1.0 + 1e-5, "clipped to the threshold")

    def test_a_step_that_is_not_finite_is_skipped_when_the_config_says_so(self):
        # A learning rate without bounds: soon no loss is finite, and stays so.
        ruin = ["optimizer.lr=1e30", "save_interval=1000ba"]
        err = self.train(*ruin, code=1)
        self.assertIn("the weights were not updated", err)
        err = self.train(*ruin, "save_folder=skips", "skip_nonfinite_steps=3", code=1)
        self.assertEqual(err.count("its update is skipped"), 3, err)
        self.assertIn("after 3 steps in a row that were skipped", err)
        self.assertEqual([line["skipped"] for line in self.metrics("skips")][-3:], [True] * 3)
        self.assertFalse((self.folder / "skips" / "latest").exists(), "ruined weights are not saved")

    def test_activation_checkpointing_changes_nothing_but_memory(self):
        self.train("max_duration=4ba")
        self.train("max_duration=4ba", "save_folder=again", "fsdp_config={activation_checkpointing: true}")
        runs = [[line for line in self.metrics(run) if "loss/train/total" in line] for run in ["run", "again"]]
        for kept, again in zip(*runs, strict=True):
            for key in ["loss/train/total", "l2_norm/grad/global"]:
                self.assertAlmostEqual(kept[key], again[key], places=5)
            self.assertEqual(kept["mb_moe/all_layers_max_tpe"], again["mb_moe/all_layers_max_tpe"])

    def test_weights_alone(self):
        self.train("max_duration=4ba", "save_weights_only=true")
        self.assertFalse((self.folder / "run/step-4/optimizer.safetensors").exists())
        err = self.train("max_duration=6ba", "autoresume=true", code=2)
        self.assertIn("holds weights alone", err)
        self.assertIn("load_weights_only=true", err)
        load = ["save_folder=next", "load_path=run", "load_weights_only=true", "max_duration=1ba"]
        self.assertIn("weights of run/step-4", self.train(*load))
        # Another model's: what fits is taken over.
        more = [*load, "save_folder=more", "model.n_layers=3"]
        err = self.train(*more, code=2)
        self.assertIn("transformer.blocks.2", err)
        self.assertIn("load_strict_model_weights=false", err)
        err = self.train(*more, "load_strict_model_weights=false")
        self.assertIn("which keep their initial values: transformer.blocks.2", err)
        err = self.train(*more, "save_folder=ignore", "load_ignore_keys=[state/model/transformer.blocks.2*]")
        self.assertNotIn("lacks", err)
        self.assertIn("'state/model/transformer.blocks.2*' matches no tensor of run/step-4", err)
        err = self.train(*load, "save_folder=head", "load_ignore_keys=[state/model/transformer.norm_f*, state/optimizers]")
        self.assertIn("leaves out 1 of the 18 tensors of run/step-4: transformer.norm_f.weight", err)
        self.assertNotIn("matches no tensor", err)
        (self.folder / "ep1-ba4-rank0.pt").write_bytes(b"PK")
        err = self.train("load_path=ep1-ba4-rank0.pt", "save_folder=x", "load_weights_only=true", code=2)
        self.assertIn("ep1-ba4-rank0.pt is a pickle", err)
        self.assertIn("convert_composer_to_hf.py", err)
        err = self.train("load_path=run", "save_folder=x", "load_strict_model_weights=false", code=2)
        self.assertIn("load_weights_only: true", err)

    def test_what_a_resume_leaves_out(self):
        self.train("max_duration=4ba", "save_folder=first")
        load = ["load_path=first", "max_duration=5ba"]
        state = lambda run: json.loads((self.folder / run / "step-5/state.json").read_text())
        self.train(*load, "save_folder=whole")
        err = self.train(*load, "save_folder=data", "load_ignore_keys=[state/dataset_state]")
        self.assertIn("begin anew: the position in the data", err)
        self.assertNotEqual(state("data")["data"], state("whole")["data"])
        self.train("max_duration=1ba", "save_folder=one")
        one = json.loads((self.folder / "one/step-1/state.json").read_text())
        self.assertEqual(state("data")["data"], one["data"])
        err = self.train(*load, "save_folder=fresh", "load_ignore_keys=['state/optim*', rng]")
        self.assertIn("begin anew: the optimizer's memory; the random generator", err)
        self.assertEqual([state(run)["optimizer_steps"] for run in ["whole", "fresh"]], [5, 1])
        for pattern in ["state/callbacks", "state/*", "state/model/lm_head*"]:
            err = self.train(*load, "save_folder=none", f"load_ignore_keys=[{pattern}]", code=2)
            self.assertIn(f"load_ignore_keys: '{pattern}' is nothing that a resume can do without", err)

    def test_tensorboard_has_every_scalar(self):
        self.train("max_duration=12ba", "save_interval=4ba", "loggers={tensorboard: {}}")
        folder = self.folder / "run" / "tensorboard"
        self.assertEqual(len(os.listdir(folder)), 1)
        for name in ["step-12", "step-8"]:
            os.rename(self.folder / "run" / name, self.folder / name)
        os.unlink(self.folder / "run/latest")
        self.train("max_duration=12ba", "loggers={tensorboard: {}}", "autoresume=true")
        self.assertGreaterEqual(len(os.listdir(folder)), 1)
        if EventFileLoader is None:
            self.skipTest("the package tensorboard is not installed (scripts/requirements-full.txt)")
        scalars, restarts = {}, []
        for name in sorted(os.listdir(folder)):
            for event in EventFileLoader(str(folder / name)).Load():
                if event.HasField("session_log"):
                    restarts.append(event.step)
                for value in event.summary.value:
                    number = value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
                    scalars[event.step, value.tag] = number
        self.assertEqual(restarts, [5])
        for line in self.metrics():
            for key, value in line.items():
                if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                    if "throughput" in key or "memory" in key:
                        self.assertIn((line["step"], key), scalars)
                    else:
                        got = scalars[line["step"], key]
                        self.assertAlmostEqual(got, value, delta=1e-6 * max(1, abs(value)), msg=key)

    def test_callbacks_are_read_strictly(self):
        for callback, message in [
            ("{early_stopper: {monitor: x, dataloader_label: eval}}", "there is no metric x"),
            ("{early_stopper: {monitr: x}}", "monitor"),
            ("{generate_callback: {prompts: [], interval: 1ba}}", "prompts is empty"),
            ("{generate_callback: {prompts: [a]}}", "interval: required key is missing"),
            ("{kill_loss_spike: {window_size: 0}}", "window_size"),
            ("{kill_loss_spik: {}}", "did you mean"),
            ("{speed_monitor: {window_sise: 1}}", 'window_sise: unknown key; did you mean "window_size"?'),
            ("{lr_monitor: {interval: 1}}", "interval: unknown key"),
            ("{mbmoe_tok_per_expert: {log_every_leyer: true}}", 'did you mean "log_every_layer"?'),
            ("{hf_checkpointer: {save_folder: x, save_interval: 1ba, huggingface_folder_name: 'a{bath}'}}", "nothing is filled in for {bath}"),
            ("{hf_checkpointer: {save_folder: 'x{run_name', save_interval: 1ba}}", "nothing is filled in for {run_name"),
            ("{layer_freezing: {layer_names: [no]}}", "callbacks.layer_freezing.layer_names.0: no parameter to freeze"),
            ("{hf_checkpointer: {save_folder: x, save_interval: 1ba, precision: fp8}}", "unknown precision fp8"),
        ]:
            with self.subTest(callback):
                err = self.train(f"callbacks={callback}", code=2)
                self.assertIn(message, err)
                self.assertFalse((self.folder / "run").exists())


if __name__ == "__main__":
    unittest.main()
