"""Interrupted runs equal straight ones to the bit: losses, weights, moments and the sample order."""

import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time
import unittest

from command import BINARY, CommandTest, read_safetensors


class ResumeTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data()
        self.config = self.write_config()
        self.check_command("train", self.config, "save_folder=straight")

    def start(self, *arguments, stderr=subprocess.DEVNULL) -> subprocess.Popen:
        return subprocess.Popen(
            [BINARY, "train", self.config, *arguments],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )

    def wait_for_step(self, process: subprocess.Popen, run: str, step: int):
        """Waits until metrics.jsonl has a line of that step."""
        path = self.folder / run / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if path.exists() and any(
                f'"step":{step},' in line for line in path.read_text().splitlines()
            ):
                return
            if process.poll() is not None:
                self.fail(f"the run ended with {process.returncode} before step {step}")
            time.sleep(0.002)
        process.kill()
        self.fail(f"no step {step} within two minutes")

    def losses(self, run: str) -> list:
        keys = ["loss/train/total", "loss/train/loss", "loss/train/lbl", "l2_norm/grad/global"]
        return [
            (line["step"], *(line[key] for key in keys))
            for line in self.metrics(run)
            if "loss/train/total" in line
        ]

    def evaluations(self, run: str) -> list:
        key = "metrics/eval/LanguageCrossEntropy"
        return [(line["step"], line[key]) for line in self.metrics(run) if key in line]

    def assert_equal_runs(self, run: str):
        self.assertEqual([step for step, *_ in self.losses(run)], list(range(1, 41)))
        self.assertEqual(self.losses(run), self.losses("straight"))
        self.assertEqual(self.evaluations(run), self.evaluations("straight"))
        for file in ["model.safetensors", "optimizer.safetensors"]:
            ours = read_safetensors(self.folder / run / "latest" / file)
            theirs = read_safetensors(self.folder / "straight" / "latest" / file)
            self.assertEqual(ours, theirs, file)

    def test_sigterm_saves_and_resumes(self):
        process = self.start("save_folder=stopped", "save_interval=1000ba")
        self.wait_for_step(process, "stopped", 20)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        self.assertEqual(process.wait(timeout=60), 0)
        self.assertLess(time.monotonic() - sent, 10)
        stopped_at = int(os.readlink(self.folder / "stopped" / "latest").removeprefix("step-"))
        self.assertGreaterEqual(stopped_at, 20)
        self.assertLess(stopped_at, 40, "the signal came too late to test anything")
        self.check_command("train", self.config, "save_folder=stopped", "autoresume=true")
        self.assert_equal_runs("stopped")

    def test_a_signal_ends_a_sample_that_is_being_drawn(self):
        samples = "callbacks={generate_callback: {prompts: [a], interval: 2ba, max_new_tokens: 1000000}}"
        process = self.start("save_folder=drawing", samples)
        self.wait_for_step(process, "drawing", 2)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(timeout=10), 0)
        self.assertEqual(os.readlink(self.folder / "drawing" / "latest"), "step-2")

    def test_samples_that_a_signal_cut_off_are_drawn_after_the_resume(self):
        def samples(tokens):
            return f"callbacks={{generate_callback: {{prompts: [a, b, a], interval: 2ba, max_new_tokens: {tokens}}}}}"

        process = self.start("save_folder=cut", samples(1_000_000))
        self.wait_for_step(process, "cut", 2)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(timeout=10), 0)
        path = self.folder / "cut" / "samples.jsonl"
        self.assertEqual(path.read_text(), "")
        drawn = {"step": 2, "prompt": "a", "text": "drawn before"}
        path.write_text(json.dumps(drawn) + "\n")
        self.check_command("train", self.config, "save_folder=cut", samples(3), "max_duration=4ba", "autoresume=true")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        self.assertEqual(lines[0], drawn)
        steps = [(line["step"], line["prompt"]) for line in lines]
        self.assertEqual(steps, [(2, "a"), (2, "b"), (2, "a"), (4, "a"), (4, "b"), (4, "a")])

    def test_a_request_to_save_is_met_and_the_run_goes_on(self):
        process = self.start("save_folder=asked", "save_interval=1000ba")
        self.wait_for_step(process, "asked", 10)
        process.send_signal(signal.SIGUSR1)
        self.assertEqual(process.wait(timeout=60), 0)
        events = [json.loads(line) for line in (self.folder / "asked" / "events.jsonl").read_text().splitlines()]
        saves = [event["step"] for event in events if event["event"] == "save"]
        self.assertEqual(len(saves), 2)
        self.assertGreaterEqual(saves[0], 10)
        self.assertLess(saves[0], 40, "the signal came too late to test anything")
        self.assertTrue((self.folder / "asked" / f"step-{saves[0]}" / "manifest.json").exists())
        self.assert_equal_runs("asked")

    def test_a_terminal_that_is_gone_saves_too(self):
        process = self.start("save_folder=hangup", "save_interval=1000ba")
        self.wait_for_step(process, "hangup", 5)
        process.send_signal(signal.SIGHUP)
        self.assertEqual(process.wait(timeout=60), 0)
        self.assertTrue((self.folder / "hangup" / "latest" / "manifest.json").exists())

    def test_a_run_folder_that_is_taken_away_ends_the_run(self):
        process = self.start("save_folder=lost", "max_duration=4000ba", "save_interval=200ba", "eval_interval=0ba")
        self.wait_for_step(process, "lost", 5)
        os.rename(self.folder / "lost", self.folder / "moved")
        (self.folder / "lost").mkdir()
        self.assertEqual(process.wait(timeout=100), 1)
        self.assertEqual(list((self.folder / "lost").iterdir()), [])

    def test_kill_resumes_from_the_last_save(self):
        for step in [9, 25]:
            run = f"killed-{step}"
            process = self.start(f"save_folder={run}")
            self.wait_for_step(process, run, step)
            process.kill()
            process.wait()
            self.check_command("train", self.config, f"save_folder={run}", "autoresume=true")
            self.assert_equal_runs(run)

    def test_killed_at_twenty_random_steps(self):
        """Each goes on from at most one save-interval before, and ends as the run that was never killed."""
        short = ("max_duration=16ba", "save_interval=3ba", "eval_interval=0ba")
        self.check_command("train", self.config, "save_folder=short", *short)
        for seed in range(20):
            with self.subTest(seed=seed):
                rng, run = random.Random(seed), f"random-{seed}"
                process = self.start(f"save_folder={run}", *short)
                self.wait_for_step(process, run, rng.randint(1, 14))
                time.sleep(rng.random() * 0.01)
                process.kill()
                process.wait()
                lost_from = self.step_of(run)
                result = self.run_command("train", self.config, f"save_folder={run}", *short, "autoresume=true")
                self.assertEqual(result.returncode, 0, result.stderr)
                resumed = re.search(r"resumed from \S+ at step (\d+)", result.stderr)
                self.assertLessEqual(lost_from - (int(resumed[1]) if resumed else 0), 3)
                self.assertEqual(self.losses(run), self.losses("short"))
                for file in ["model.safetensors", "optimizer.safetensors"]:
                    ends = [read_safetensors(self.folder / name / "latest" / file) for name in (run, "short")]
                    self.assertEqual(*ends, file)

    def test_saving_beside_the_training(self):
        self.check_command("train", self.config, "save_folder=async", "save_async=true")
        self.assert_equal_runs("async")
        process = self.start("save_folder=async-killed", "save_async=true", "save_interval=2ba")
        self.wait_for_step(process, "async-killed", 25)
        process.kill()
        process.wait()
        self.check_command("train", self.config, "save_folder=async-killed", "autoresume=true", "save_async=true")
        self.assert_equal_runs("async-killed")
        # Each save is told of, however soon the next one comes, and but for the newest removed.
        self.check_command(
            "train", self.config, "save_folder=async-each", "save_async=true", "save_interval=1ba",
            "save_num_checkpoints_to_keep=1",
        )  # fmt: skip
        events = [json.loads(line) for line in (self.folder / "async-each" / "events.jsonl").read_text().splitlines()]
        self.assertEqual([event["step"] for event in events if event["event"] == "save"], list(range(1, 41)))
        self.assertEqual([path.name for path in (self.folder / "async-each").glob("step-*")], ["step-40"])
        # A save that fails in the background ends the run as one in front does.
        result = self.run_command(
            "train", self.config, "save_folder=full", "save_async=true",
            env={**os.environ, "DROPLESS_FAIL_AT": "rename step-14.tmp:ENOSPC"},
        )  # fmt: skip
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("step-14.tmp", result.stderr)
        self.assertIn("last good checkpoint: full/step-7", result.stderr)

    def test_damaged_checkpoint_falls_back_loudly(self):
        self.check_command("train", self.config, "save_folder=hurt")
        model = self.folder / "hurt" / "step-40" / "model.safetensors"
        raw = bytearray(model.read_bytes())
        raw[len(raw) // 2] ^= 1
        model.write_bytes(raw)
        result = self.run_command("train", self.config, "save_folder=hurt", "autoresume=true")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("step-40", result.stderr)
        self.assertIn("resumed from hurt/step-35", result.stderr)
        self.assert_equal_runs("hurt")

    def test_a_resume_draws_the_noise_of_a_straight_run(self):
        noisy = [
            "model.resid_pdrop=0.1", "model.emb_pdrop=0.1", "model.attn_config.attn_pdrop=0.2",
            "model.ffn_config={moe_jitter_eps: 0.1, moe_selection_bias: true}",
            "max_duration=8ba", "save_interval=4ba", "eval_loader=null",
        ]  # fmt: skip
        self.check_command("train", self.config, "save_folder=noisy", *noisy)
        quiet = self.losses("straight")[:8]
        self.assertNotEqual(self.losses("noisy"), quiet)
        # Another run, saved at other steps, of which the last two are lost.
        self.check_command("train", self.config, "save_folder=again", *noisy, "save_interval=3ba")
        for step in [6, 8]:
            shutil.rmtree(self.folder / "again" / f"step-{step}")
        (self.folder / "again" / "latest").unlink()
        os.symlink("step-3", self.folder / "again" / "latest")
        self.check_command("train", self.config, "save_folder=again", *noisy, "autoresume=true")
        self.assertEqual(self.losses("again"), self.losses("noisy"))
        for file in ["model.safetensors", "optimizer.safetensors"]:
            ours = read_safetensors(self.folder / "again" / "latest" / file)
            theirs = read_safetensors(self.folder / "noisy" / "latest" / file)
            self.assertEqual(ours, theirs, file)

    def test_first_interrupt_saves_too(self):
        process = self.start("save_folder=interrupted", "save_interval=1000ba")
        self.wait_for_step(process, "interrupted", 5)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=60), 0)
        self.assertTrue((self.folder / "interrupted" / "latest" / "manifest.json").exists())

    def test_second_interrupt_ends_at_once(self):
        # Steps of seconds: the second signal comes long before the first step is done.
        process = self.start(
            "save_folder=impatient", "global_train_batch_size=600", "model.d_model=256",
            "model.ffn_config.ffn_hidden_size=1024", "device_train_microbatch_size=auto",
            "model.n_layers=12", stderr=subprocess.PIPE,
        )  # fmt: skip
        self.addCleanup(process.stderr.close)
        deadline = time.monotonic() + 60
        while not (self.folder / "impatient" / "metrics.jsonl").exists():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        self.assertIsNone(process.poll(), "the first signal waits for the step")
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=2), 1)
        self.assertIn(b"stopped at once; nothing was saved", process.stderr.read())
        self.assertFalse((self.folder / "impatient" / "latest").exists())

    def test_resume_refuses_a_changed_model(self):
        """Weights of equal shapes that would compute something else."""
        for override, key, before, now in [
            ("model.norm_type=layernorm", "model.norm_type", "rmsnorm", "layernorm"),
            ("model.attn_config.rope_theta=5000", "rope_theta", "10000", "5000"),
            ("model.attn_config.softmax_scale=1", "softmax_scale", "null", "1"),
            ("model.ffn_config.ffn_act_fn.name=relu", "ffn_act_fn", "silu", "relu"),
            ("model.ffn_config.moe_top_k=1", "moe_top_k", "2", "1"),
        ]:
            message = f"{key} is {before} in straight/step-40 and {now} in this config"
            for how in ["autoresume=true", "load_path=straight"]:
                with self.subTest(override=override, how=how):
                    folder = "straight" if how == "autoresume=true" else "new"
                    result = self.run_command(
                        "train", self.config, f"save_folder={folder}", how, override,
                        "max_duration=41ba",
                    )  # fmt: skip
                    self.assertEqual(result.returncode, 2, result.stderr)
                    self.assertIn(message, result.stderr)
                    self.assertIn("load_weights_only=true", result.stderr)
        # Weights of other shapes cannot be taken over alone either.
        result = self.run_command(
            "train", self.config, "save_folder=new", "load_path=straight",
            "model.ffn_config.ffn_hidden_size=64",
        )  # fmt: skip
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("ffn_hidden_size is 48", result.stderr)
        self.assertNotIn("load_weights_only", result.stderr)
        result = self.run_command(
            "train", self.config, "save_folder=tuned", "load_path=straight",
            "load_weights_only=true", "model.attn_config.rope_theta=5000", "max_duration=5ba",
        )  # fmt: skip
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("rope_theta is 10000", result.stderr)

    @unittest.skipIf(os.cpu_count() == 1, "one thread is all there is")
    def test_another_number_of_threads_is_said(self):
        arguments = ["train", self.config, "save_folder=straight", "autoresume=true"]
        result = self.run_command(*arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.assertRegex(result.stderr, r"saved by \d+ threads and resumed by 1: ")
        self.assertNotIn("resumed by", self.run_command(*arguments).stderr)

    def test_every_optimizer_resumes_to_the_bit(self):
        for optimizer, moments in [
            ("{name: adamw, lr: 1e-3}", 2),
            ("{name: decoupled_lionw, lr: 1e-4, param_groups: [{param_str_match: norm, lr: 1e-5}]}", 1),
            ("{name: adalr_lion, lr: 1e-4, disable_grad: wte}", 1),
            ("{name: sgd, lr: 1e-2, momentum: 0.9}", 1),
        ]:
            name = optimizer.split()[1].strip(",")
            with self.subTest(name):
                arguments = [
                    "train", self.config, f"save_folder={name}", "optimizer=null", f"optimizer={optimizer}",
                    "max_duration=6ba", "save_interval=3ba", "autoresume=true", "scheduler=null",
                    "scheduler={name: inv_sqrt_with_warmup, t_warmup: 1ba, t_scale: 2ba, t_cooldown: 2ba}",
                ]  # fmt: skip
                self.check_command(*arguments)
                run = self.folder / name
                files = ["model.safetensors", "optimizer.safetensors"]
                straight = [read_safetensors(run / "step-6" / file) for file in files]
                metrics = self.losses(name)
                shutil.rmtree(run / "step-6")
                (run / "latest").unlink()
                self.assertIn("resumed from", self.run_command(*arguments).stderr)
                self.assertEqual(self.losses(name), metrics)
                self.assertEqual([read_safetensors(run / "step-6" / f) for f in files], straight)
                weights, memory = straight
                frozen = "disable_grad" in optimizer
                self.assertEqual(len(memory) - 1, moments * (len(weights) - frozen))

    def test_another_optimizer_begins_anew(self):
        """Weights, position and schedule go on; its memory is that of one step."""
        blocks = {
            "lion": "{name: decoupled_lionw, lr: 1e-4}",
            "sgd": "{name: sgd, lr: 1e-2}",
            "adamw": "{name: decoupled_adamw, lr: 1e-3}",
        }
        floats = lambda tensors: [v[0] for _, _, raw in tensors for v in struct.iter_unpack("<f", raw)]
        for old, new in [("lion", "adamw"), ("sgd", "adamw"), ("adamw", "lion")]:
            with self.subTest(f"{old} -> {new}"):
                run = f"{old}-{new}"
                arguments = ["train", self.config, f"save_folder={run}", "optimizer=null", "max_duration=6ba", "save_interval=3ba"]
                self.check_command(*arguments, f"optimizer={blocks[old]}")
                straight = self.losses(run)
                shutil.rmtree(self.folder / run / "step-6")
                (self.folder / run / "latest").unlink()
                result = self.run_command(*arguments, f"optimizer={blocks[new]}", "autoresume=true", "save_interval=1ba")
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn("was saved by another optimizer", result.stderr)
                self.assertIn(f"resumed from {run}/step-3 at step 3", result.stderr)
                self.assertEqual(self.losses(run)[:4], straight[:4])
                (line,) = [line for line in self.metrics(run) if line["step"] == 4 and "loss/train/total" in line]
                memory = read_safetensors(self.folder / run / "step-4" / "optimizer.safetensors")
                first = floats(memory[name] for name in sorted(memory) if name.startswith("exp_avg/"))
                if new == "lion":
                    self.assertAlmostEqual(line["lr-DecoupledLionW/group0"], 1e-4 * 0.75)
                    norm = sum((value / 0.01) ** 2 for value in first) ** 0.5
                    self.assertAlmostEqual(norm, min(1.0, line["l2_norm/grad/global"]), places=3)
                    continue
                self.assertAlmostEqual(line["lr-DecoupledAdamW/group0"], 1e-3 * 0.75)
                second = floats(memory[name] for name in sorted(memory) if name.startswith("exp_avg_sq/"))
                for m, v in zip(first, second, strict=True):
                    self.assertAlmostEqual((m / 0.1) ** 2, v / 0.05, delta=1e-4 * v / 0.05 + 1e-20)

    def test_another_memory_of_the_same_optimizer_is_refused(self):
        arguments = ["train", self.config, "save_folder=plain", "optimizer=null"]
        self.check_command(*arguments, "optimizer={name: sgd, lr: 1e-2}", "max_duration=5ba")
        result = self.run_command(*arguments, "optimizer={name: sgd, lr: 1e-2, momentum: 0.9}", "autoresume=true")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("the `optimizer` block has changed (momentum", result.stderr)

    def test_resume_takes_a_changed_run(self):
        """What does not change the function of the weights may change."""
        self.check_command(
            "train", self.config, "save_folder=straight", "autoresume=true", "max_duration=42ba",
            "optimizer.lr=1e-3", "model.ffn_config.moe_loss_weight=0.1",
            "model.norm_type=low_precision_rmsnorm", "device_train_microbatch_size=8",
        )  # fmt: skip
        self.assertEqual([step for step, *_ in self.losses("straight")], list(range(1, 43)))

    def test_two_runs_cannot_share_a_folder(self):
        process = self.start("save_folder=shared")
        self.wait_for_step(process, "shared", 1)
        process.send_signal(signal.SIGSTOP)
        result = self.run_command("train", self.config, "save_folder=shared/", "autoresume=true")
        process.send_signal(signal.SIGCONT)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("in use by another process", result.stderr)
        self.assertEqual(process.wait(timeout=60), 0)
        self.assert_equal_runs("shared")

    def test_run_folder_of_another_run_is_refused(self):
        result = self.run_command("train", self.config, "save_folder=straight")
        self.assertEqual(result.returncode, 2)
        self.assertIn("holds another run", result.stderr)
        before = (self.folder / "straight" / "metrics.jsonl").read_bytes()
        self.assertEqual((self.folder / "straight" / "metrics.jsonl").read_bytes(), before)
        self.check_command("train", self.config, "save_folder=straight", "save_overwrite=true")


if __name__ == "__main__":
    unittest.main()
